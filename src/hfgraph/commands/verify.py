"""`hfgraph verify MODEL`: prove that rewriting changes nothing."""

from __future__ import annotations

import argparse

from hfgraph.commands import DOES_NOT_HOLD, HOLDS, Command
from hfgraph.commands._console import print_json, print_parts, progress
from hfgraph.commands._model import model_arguments, prepare

_TEXT = """\
Prove on this model that rewriting changes nothing: eager, rewritten graph and compiled model are compared, with
float64 as the judge, on the true weights and on perturbed ones.

exit status: 0 holds, 1 does not hold, 2 wrong usage"""


def _arguments(parser: argparse.ArgumentParser) -> None:
    model_arguments(parser)
    parser.add_argument("--sabotage", action="store_true", help="then falsify each applied rule in turn: every one must be caught")


def _run(given: argparse.Namespace) -> int:
    with progress(given.json) as say:
        model, inputs = prepare(given, say)
        say("comparing eager, rewritten and compiled" + (", then each rule falsified" if given.sabotage else ""))
        import hfgraph
        from hfgraph import tables

        verdict = hfgraph.verify(model, sabotage=given.sabotage, **inputs)
    if given.json:
        print_json(given.model, verdict.to_dict())
    else:
        print_parts(lambda: str(verdict), lambda: tables.verdict_parts(verdict))
    return HOLDS if verdict.ok else DOES_NOT_HOLD


COMMAND = Command("verify", "prove that rewriting changes nothing", _TEXT, "hfgraph verify ./my-model --sabotage --json | jq .ok", _arguments, _run)
