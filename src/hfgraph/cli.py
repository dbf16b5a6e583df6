"""The command line: `hfgraph explain MODEL` and `hfgraph verify MODEL`.

Exit status: 0 holds, 1 does not hold, 2 wrong usage. torch and transformers load only once there is work to do.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import hfgraph
from hfgraph.errors import HfgraphError, IllegalGraph

if TYPE_CHECKING:
    from rich.console import RenderableType

HOLDS, DOES_NOT_HOLD, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130

_EXPLAIN = """\
Run the model once and show what hfgraph recognises and rewrites in it, where, and what it nearly did.

exit status: 0 done, 2 wrong usage"""
_EXPLAIN_EXAMPLE = "example: hfgraph explain Qwen/Qwen2.5-0.5B-Instruct --prompt 'The capital of France is'"
_VERIFY = """\
Prove on this model that rewriting changes nothing: eager, rewritten graph and compiled model are compared, with
float64 as the judge, on the true weights and on perturbed ones.

exit status: 0 holds, 1 does not hold, 2 wrong usage"""
_VERIFY_EXAMPLE = "example: hfgraph verify ./my-model --sabotage --json | jq .ok"


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
        return DOES_NOT_HOLD if isinstance(ours, IllegalGraph) else WRONG_USAGE


def parser() -> argparse.ArgumentParser:
    """The commands and their flags; each help text ends with an example."""
    top = argparse.ArgumentParser(
        prog="hfgraph",
        description="A torch.compile backend for Hugging Face models: recognises, rewrites, proves.",
        epilog='example: hfgraph verify Qwen/Qwen2.5-0.5B-Instruct\n\nin Python: model.compile(backend="hfgraph")',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action=_Version)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _command(commands, "explain", "what hfgraph does to a model", _EXPLAIN, _EXPLAIN_EXAMPLE, _explain)
    verify = _command(commands, "verify", "prove that rewriting changes nothing", _VERIFY, _VERIFY_EXAMPLE, _verify)
    verify.add_argument("--sabotage", action="store_true", help="then falsify each applied rule in turn: every one must be caught")
    return top


def _command(commands: Any, name: str, short: str, text: str, example: str, run: Any) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=short, description=text, epilog=example, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.set_defaults(run=run)
    command.add_argument("model", metavar="MODEL", help="a hub name, or a local folder with config.json")
    command.add_argument("--json", action="store_true", help="print JSON on standard output, and nothing else")
    command.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto", help="of the weights (default: as stored)")
    command.add_argument("--batch", type=_positive, default=None, metavar="N", help="sequences (default: 2; with --prompt 1)")
    inputs = command.add_mutually_exclusive_group()
    inputs.add_argument("--length", type=_positive, default=16, metavar="N", help="random tokens per sequence (default: 16)")
    inputs.add_argument("--prompt", metavar="TEXT", help="run on this text instead of random tokens")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of the random tokens (default: 0)")
    return command


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, found {text!r}")
    return number


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


# --- commands ----------------------------------------------------------------------------------------


def _explain(given: argparse.Namespace) -> int:
    with _progress(given) as say:
        model, inputs = _prepare(given, say)
        say("tracing and rewriting")
        import torch

        with torch.no_grad():
            report = hfgraph.explain(model, **inputs)
    _show(given, report, "report_parts")
    return HOLDS


def _verify(given: argparse.Namespace) -> int:
    with _progress(given) as say:
        model, inputs = _prepare(given, say)
        say("comparing eager, rewritten and compiled" + (", then each rule falsified" if given.sabotage else ""))
        verdict = hfgraph.verify(model, sabotage=given.sabotage, **inputs)
    _show(given, verdict, "verdict_parts")
    return HOLDS if verdict.ok else DOES_NOT_HOLD


def _prepare(given: argparse.Namespace, say: Any) -> tuple[Any, dict[str, Any]]:
    """The model and its inputs."""
    say("starting torch and transformers")
    from hfgraph import models

    models.quiet()
    say(f"loading {given.model}")
    model = models.load(given.model, given.dtype)
    if given.prompt is not None:
        return model, models.encoded(model, given.prompt, batch=given.batch or 1)
    return model, models.inputs(model, batch=given.batch or 2, length=given.length, seed=given.seed)


# --- output ------------------------------------------------------------------------------------------


@contextmanager
def _progress(given: argparse.Namespace) -> Iterator[Any]:
    """A line on a terminal's standard error that says what is going on, and for how long; nothing with --json."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=given.json or not console.is_terminal) as progress:
        task = progress.add_task("")
        yield lambda text: progress.update(task, description=text)


def _show(given: argparse.Namespace, result: Any, parts: str) -> None:
    """Tables on a terminal, plain text in a pipe, JSON where asked for."""
    if given.json:
        print(json.dumps({"model": given.model, **result.to_dict()}, indent=2))
        return
    from rich.console import Console

    from hfgraph import tables

    console = Console()
    if not console.is_terminal:
        print(result)
        return
    shown: list[RenderableType] = getattr(tables, parts)(result)
    console.print(*shown, sep="\n")


if __name__ == "__main__":
    sys.exit(main())
