"""`hfgraph explain MODEL`: what hfgraph does to a model."""

from __future__ import annotations

import argparse

from hfgraph.commands import HOLDS, Command
from hfgraph.commands._console import print_json, print_parts, progress
from hfgraph.commands._model import model_arguments, prepare
from hfgraph.files import check_writable

_TEXT = """\
Run the model once and show what hfgraph recognises and rewrites in it, where, and what it nearly did. With --html also
as a page: the model's layers, each place with its line of code, the graph before and after, and why a place was left.

exit status: 0 done, 2 wrong usage"""


def _arguments(parser: argparse.ArgumentParser) -> None:
    model_arguments(parser)
    parser.add_argument("--html", metavar="FILE", help="also write the report as one page that needs no network")


def _run(given: argparse.Namespace) -> int:
    if given.html:
        check_writable(given.html)
    with progress(given.json) as say:
        model, inputs = prepare(given, say)
        say("tracing and rewriting")
        import torch

        import hfgraph
        from hfgraph import tables

        with torch.no_grad():
            report = hfgraph.explain(model, **inputs)
        if given.html:
            report.to_html(given.html)
    if given.json:
        print_json(given.model, report.to_dict())
    else:
        print_parts(lambda: str(report), lambda: tables.report_parts(report))
        if given.html:
            print(f"The page is in {given.html}")
    return HOLDS


COMMAND = Command(
    "explain",
    "what hfgraph does to a model",
    _TEXT,
    "hfgraph explain Qwen/Qwen2.5-0.5B-Instruct --prompt 'The capital of France is' --html report.html",
    _arguments,
    _run,
)
