"""The report as one HTML page: a template, its styles and scripts, and the data, in one file that needs no network."""

from __future__ import annotations

import html
import json
import os
import re
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from hfgraph.errors import CannotWrite
from hfgraph.page.data import page_data

if TYPE_CHECKING:
    from hfgraph.report import Report

_ASSETS = files(__name__) / "assets"
_SCRIPTS = ("dagre.min.js", "words.js", "tree.js", "drawing.js", "detail.js", "tables.js", "page.js")


def write(report: Report, path: str | os.PathLike[str]) -> None:
    """Write a report's page.

    Raises:
        CannotWrite: the folder does not exist, or may not be written to.
    """
    check_writable(path)
    Path(path).write_text(render(report), encoding="utf-8")


def check_writable(path: str | os.PathLike[str]) -> None:
    """Refuse a path that cannot be written, before any work.

    Raises:
        CannotWrite.
    """
    file = Path(path)
    if file.is_dir():
        raise CannotWrite(str(path), "it is a folder")
    if not file.absolute().parent.is_dir():
        raise CannotWrite(str(path), "its folder does not exist")
    if not os.access(file if file.exists() else file.absolute().parent, os.W_OK):
        raise CannotWrite(str(path), "it may not be written to")


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


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")
