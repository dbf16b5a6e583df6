"""`hfgraph doctor`: what is here, what will be used, and what is missing."""

from __future__ import annotations

import argparse
import json
import textwrap
from typing import TYPE_CHECKING

import hfgraph
from hfgraph.commands import DOES_NOT_HOLD, HOLDS, Command
from hfgraph.commands._console import print_parts, progress

if TYPE_CHECKING:
    from rich.console import RenderableType

    from hfgraph.doctoring import Checkup

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
    """The screen as text, in columns."""
    name_width = max(len(c.name) for checks in found.sections.values() for c in checks)
    indent = len("missing") + name_width + 4
    lines = [f"hfgraph {hfgraph.__version__}"]
    for title, checks in found.sections.items():
        lines += ["", title]
        for c in checks:
            text = textwrap.wrap(c.found, _WIDTH - indent, break_long_words=False, break_on_hyphens=False) or [""]
            text += textwrap.wrap(f"-> {c.advice}", _WIDTH - indent, break_long_words=False, break_on_hyphens=False) if c.advice else []
            lines.append(f"{c.status:7}  {c.name:{name_width}}  {text[0]}")
            lines += [" " * indent + rest for rest in text[1:]]
    return "\n".join([*lines, "", verdict(found)])


def panel(found: Checkup) -> list[RenderableType]:
    """The screen for a terminal."""
    from rich import box
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for i, (title, checks) in enumerate(found.sections.items()):
        if i:
            table.add_row()
        table.add_row("", Text(title, "dim"))
        for c in checks:
            text = Text(c.found)
            if c.advice:
                text.append(f"\n{c.advice}", "bold" if c.status == "missing" else "dim")
            table.add_row(Text(c.status, _STYLE[c.status]), Text(c.name, "bold"), text)
    style = "green" if found.ok else "red"
    title = Text(f"hfgraph {hfgraph.__version__}", "bold")
    return [
        Panel(
            table, title=title, title_align="left", subtitle=Text(verdict(found), f"bold {style}"), subtitle_align="left", border_style=style, box=box.ROUNDED
        )
    ]


def verdict(found: Checkup) -> str:
    """The last line."""
    if found.ok:
        return "All that is needed is here."
    return f"Missing: {', '.join(c.name for c in found.missing)}."


COMMAND = Command("doctor", "what is here, what will be used, what is missing", _TEXT, "hfgraph doctor --json | jq .ok", _arguments, _run)
