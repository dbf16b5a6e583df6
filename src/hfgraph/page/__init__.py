"""The report as one HTML page: a template, its styles and scripts, and the data, in one file that needs no network."""

from __future__ import annotations

import html
import json
import os
import re
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from hfgraph.files import check_writable
from hfgraph.page.data import page_data

if TYPE_CHECKING:
    from hfgraph.report import Report

_ASSETS = files(__name__) / "assets"
_SCRIPTS = ("dagre.min.js", "words.js", "tree.js", "drawing.js", "detail.js", "tables.js", "page.js")


def write(report: Report, path: str | os.PathLike[str]) -> None:
    """Write a report's page.

    Raises:
        CannotWrite: it is a folder, its folder does not exist, or it may not be written to.
    """
    check_writable(path)
    Path(path).write_text(render(report), encoding="utf-8")


def render(report: Report) -> str:
    """A report's page."""
    data = page_data(report)
    parts = {
        "TITLE": html.escape(f"{data['model']} · hfgraph"),
        "STYLE": _asset("page.css"),
        # `</script>` in a model's source line must not end the script.
        "DATA": json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c"),
        "SCRIPT": "\n".join(_asset(name) for name in _SCRIPTS),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda m: parts[m[1]], _asset("page.html"))


def framed(report: Report) -> str:
    """A report's page inside of another page, a notebook for instance; styles and scripts of the two do not mix."""
    return f'<iframe srcdoc="{html.escape(render(report))}" width="100%" height="760" style="border:0"></iframe>'


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")
