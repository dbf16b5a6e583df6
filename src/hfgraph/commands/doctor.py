"""`hfgraph doctor`: what is here, what will be used, and what is missing."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

import hfgraph
from hfgraph.commands import DOES_NOT_HOLD, HOLDS, Command
from hfgraph.commands._console import print_parts, progress

if TYPE_CHECKING:
    from rich.console import RenderableType

    from hfgraph.doctoring import Checkup
    from hfgraph.doctoring.check import Check

_TEXT = """\
Say in one screen which versions, devices and compiler are here, what hfgraph will use on them, and what is missing.
A small program is compiled as Inductor would compile it. Nothing is installed, nothing is downloaded.

exit status: 0 all that is needed is here, 1 something is missing, 2 wrong usage"""

_STYLE = {"ok": "green", "note": "yellow", "missing": "bold red"}
_WIDTH = 120


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON on standard output, and nothing else")


def _run(given: argparse.Namespace) -> int:
    with progress(given.json) as say:
        from hfgraph import doctoring

        found = doctoring.examine(say)
    if given.json:
        print(json.dumps({"hfgraph": hfgraph.__version__, **found.to_dict()}, indent=2))
    else:
        print_parts(lambda: plain(found), lambda: panel(found))
    return HOLDS if found.ok else DOES_NOT_HOLD


def plain(found: Checkup) -> str:
    """The screen as text, in columns. A section is named beside its first line, so that all of it fits 24 lines."""
    checks = [c for section in found.sections.values() for c in section]
    widths = max(map(len, found.sections), default=0), max((len(c.status) for c in checks), default=0), max((len(c.name) for c in checks), default=0)
    indent = sum(widths) + 6
    lines = [f"hfgraph {hfgraph.__version__}"]
    for title, c in _rows(found):
        text = _wrapped(c.found, indent) or [""]
        text += _wrapped(f"-> {c.advice}", indent) if c.advice else []
        lines.append(f"{title:{widths[0]}}  {c.status:{widths[1]}}  {c.name:{widths[2]}}  {text[0]}".rstrip())
        lines += [" " * indent + rest for rest in text[1:]]
    return "\n".join([*lines, verdict(found)])


def panel(found: Checkup) -> list[RenderableType]:
    """The screen for a terminal."""
    from rich import box
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    for _ in range(3):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for title, c in _rows(found):
        text = Text(c.found)
        if c.advice:
            text.append(f"\n{c.advice}", "bold" if c.status == "missing" else "dim")
        table.add_row(Text(title, "dim"), Text(c.status, _STYLE[c.status]), Text(c.name, "bold"), text)
    style = "green" if found.ok else "red"
    title = Text(f"hfgraph {hfgraph.__version__}", "bold")
    below = Text(verdict(found), f"bold {style}")
    return [Panel(table, title=title, title_align="left", subtitle=below, subtitle_align="left", border_style=style, box=box.ROUNDED)]


def _rows(found: Checkup) -> Iterator[tuple[str, Check]]:
    """Every line, the first of a section with its title."""
    for title, checks in found.sections.items():
        for i, c in enumerate(checks):
            yield title if i == 0 else "", c


def _wrapped(text: str, indent: int) -> list[str]:
    return textwrap.wrap(text, _WIDTH - indent, break_long_words=False, break_on_hyphens=False)


def verdict(found: Checkup) -> str:
    """The last line."""
    if found.ok:
        return "All that is needed is here."
    return f"Missing: {', '.join(c.name for c in found.missing)}."


COMMAND = Command("doctor", "what is here, what will be used, what is missing", _TEXT, "hfgraph doctor --json | jq .ok", _arguments, _run)
