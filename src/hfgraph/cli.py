"""The command line: `hfgraph COMMAND`, one file per command in `hfgraph.commands`.

Exit status: 0 holds, 1 does not hold, 2 wrong usage. torch and transformers load only once there is work to do.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence
from typing import Any

import hfgraph
from hfgraph.commands import DOES_NOT_HOLD, HOLDS, INTERRUPTED, WRONG_USAGE, all_commands
from hfgraph.errors import HfgraphError, IllegalGraph, WorkerDied, WorkerFailed


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit status."""
    given = parser().parse_args(argv)
    try:
        return given.run(given)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as e:
        ours = getattr(e, "inner_exception", e)  # Dynamo wraps what a backend raises
        if not isinstance(ours, HfgraphError):
            raise
        print(f"hfgraph {given.command}: {ours}", file=sys.stderr)
        return DOES_NOT_HOLD if isinstance(ours, IllegalGraph | WorkerDied | WorkerFailed) else WRONG_USAGE


def parser() -> argparse.ArgumentParser:
    """The commands and their flags; each help text ends with an example."""
    raw = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(
        prog="hfgraph",
        description="A torch.compile backend for Hugging Face models: recognises, rewrites, proves.",
        epilog='example: hfgraph verify Qwen/Qwen2.5-0.5B-Instruct\n\nin Python: model.compile(backend="hfgraph")',
        formatter_class=raw,
    )
    top.add_argument("--version", action=_Version)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for c in all_commands():
        command = commands.add_parser(c.name, help=c.short, description=c.text, epilog=f"example: {c.example}", formatter_class=raw)
        c.arguments(command)
        command.set_defaults(run=c.run)
    return top


class _Version(argparse.Action):
    """Versions come from package metadata: asking for them loads nothing."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print versions and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        found = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("torch", "transformers", "triton") if _is_installed(p))
        print(f"hfgraph {hfgraph.__version__} ({found})")
        parser.exit(HOLDS)


def _is_installed(package: str) -> bool:
    return any(importlib.metadata.distributions(name=package))


if __name__ == "__main__":
    sys.exit(main())
