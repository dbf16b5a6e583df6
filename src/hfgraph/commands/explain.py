"""`hfgraph explain MODEL`: what hfgraph does to a model."""

from __future__ import annotations

import argparse

from hfgraph.commands import HOLDS, Command
from hfgraph.commands._console import print_json, print_parts, progress
from hfgraph.commands._model import model_arguments, prepare

_TEXT = """\
Run the model once and show what hfgraph recognises and rewrites in it, where, and what it nearly did.

exit status: 0 done, 2 wrong usage"""


def _run(given: argparse.Namespace) -> int:
    with progress(given.json) as say:
        model, inputs = prepare(given, say)
        say("tracing and rewriting")
        import torch

        import hfgraph
        from hfgraph import tables

        with torch.no_grad():
            report = hfgraph.explain(model, **inputs)
    if given.json:
        print_json(given.model, report.to_dict())
    else:
        print_parts(lambda: str(report), lambda: tables.report_parts(report))
    return HOLDS


COMMAND = Command(
    "explain",
    "what hfgraph does to a model",
    _TEXT,
    "hfgraph explain Qwen/Qwen2.5-0.5B-Instruct --prompt 'The capital of France is'",
    model_arguments,
    _run,
)
