"""What commands print: progress on a terminal's standard error, then tables, plain text, or JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType


@contextmanager
def progress(quiet: bool) -> Iterator[Callable[[str], None]]:
    """A line on a terminal's standard error that says what is going on, and for how long; nothing where `quiet`."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("")
        yield lambda text: bar.update(task, description=text)


@contextmanager
def steps(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal's standard error: what is being done, steps done, steps in all; nothing where `quiet`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = BarColumn(bar_width=30), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False)
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda text, done, total: bar.update(task, description=text, completed=done, total=total or None)


def print_json(model: str, result: Mapping[str, Any]) -> None:
    """The result of a command on one model, for scripts."""
    print(json.dumps({"model": model, **result}, indent=2))


def print_parts(text: Callable[[], str], parts: Callable[[], list[RenderableType]]) -> None:
    """Tables on a terminal, plain text in a pipe."""
    from rich.console import Console

    console = Console()
    if console.is_terminal:
        console.print(*parts(), sep="\n")
    else:
        print(text())
