"""`hfgraph zoo`: what is recognised in every architecture that transformers has."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from hfgraph.commands import DOES_NOT_HOLD, HOLDS, Command
from hfgraph.commands._console import print_parts, steps
from hfgraph.commands._model import positive
from hfgraph.errors import ContradictoryOptions
from hfgraph.files import check_writable

_TEXT = """\
Build architectures of transformers, tiny and with random weights, count what each computes in eager mode (norms, rotated tensors,
attentions, gated MLPs, mixtures of experts, linears of one input), and compare with what hfgraph finds, module by module; every miss
comes with its reason. Logits are compared as well. An interrupted run goes on where it was: what --out holds already is kept,
unless hfgraph, torch or transformers changed since.

exit status: 0 all logits are eager's, 1 some are not, or a model failed, 2 wrong usage"""


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="*", help="architectures, by their model_type (default: all)")
    parser.add_argument("--family", choices=("causal", "seq2seq", "mlm", "vlm"), help="all of one family")
    parser.add_argument("--list", action="store_true", help="print the names, and examine nothing")
    parser.add_argument("--jobs", type=positive, default=os.cpu_count() or 1, metavar="N", help="processes (default: one per core)")
    parser.add_argument("--json", action="store_true", help="print JSON on standard output, and nothing else")
    parser.add_argument("--out", type=Path, metavar="FILE", help="keep the records in this file, and go on from it")


def _run(given: argparse.Namespace) -> int:
    if given.out:
        check_writable(given.out)
    if given.names and given.family:
        raise ContradictoryOptions("NAME", "--family", "name architectures, or a family of them")
    from hfgraph import zoo

    names = given.names or zoo.names(given.family or "")
    for name in names:
        zoo.class_name(name)  # refuses what it does not know
    if given.list:
        print("\n".join(names))
        return HOLDS
    with steps(given.json) as say:
        say("starting torch and transformers", 0, len(names))
        from hfgraph.zoo.survey import survey

        coverage = survey(names, jobs=min(given.jobs, len(names)), file=given.out, say=say)
    if given.json:
        print(json.dumps(coverage.to_dict(), indent=2))
    else:
        from hfgraph.tables import render
        from hfgraph.zoo import show

        print_parts(lambda: render(show.parts(coverage)), lambda: show.parts(coverage))
    return DOES_NOT_HOLD if coverage.wrong else HOLDS


COMMAND = Command("zoo", "what is recognised in every architecture", _TEXT, "hfgraph zoo --family causal --out coverage.json", _arguments, _run)
