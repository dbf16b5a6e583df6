"""What commands on one model share: its name, dtype and inputs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any


def positive(text: str) -> int:
    """A whole number from 1, for argparse."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, found {text!r}")
    return number


def model_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, --json, --dtype, and what the model is run on."""
    parser.add_argument("model", metavar="MODEL", help="a hub name, or a local folder with config.json")
    parser.add_argument("--json", action="store_true", help="print JSON on standard output, and nothing else")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto", help="of the weights (default: as stored)")
    parser.add_argument("--batch", type=positive, default=None, metavar="N", help="sequences (default: 2; with --prompt 1)")
    inputs = parser.add_mutually_exclusive_group()
    inputs.add_argument("--length", type=positive, default=16, metavar="N", help="random tokens per sequence (default: 16)")
    inputs.add_argument("--prompt", metavar="TEXT", help="run on this text instead of random tokens")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random tokens (default: 0)")


def prepare(given: argparse.Namespace, say: Callable[[str], None]) -> tuple[Any, dict[str, Any]]:
    """The model and its inputs."""
    say("starting torch and transformers")
    from hfgraph import models

    models.quiet()
    say(f"loading {given.model}")
    model = models.load(given.model, given.dtype)
    if given.prompt is not None:
        return model, models.encoded(model, given.prompt, batch=given.batch or 1)
    return model, models.inputs(model, batch=given.batch or 2, length=given.length, seed=given.seed)
