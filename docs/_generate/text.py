"""Small things that all pages share: docstrings in parts, code without its docstring, tables, links to source pages."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from ruff import find_ruff_bin

ROOT = Path(__file__).parents[2]
WIDTH = 88  # of code on a page


@dataclass(frozen=True)
class Docstring:
    """A docstring in Google's layout, in parts."""

    paragraphs: tuple[str, ...] = ()
    args: dict[str, str] = field(default_factory=dict)
    returns: str = ""


def docstring(thing: object) -> Docstring:
    """The parts of a docstring; code marks become Markdown's."""
    text = inspect.getdoc(thing) or ""
    sections = re.split(r"^(Args|Attributes|Returns|Raises):$", text, flags=re.MULTILINE)
    named = {sections[i]: textwrap.dedent(sections[i + 1]).strip("\n") for i in range(1, len(sections), 2)}
    paragraphs = tuple(" ".join(p.split()) for p in sections[0].strip().split("\n\n") if p.strip())
    args = _entries(named.get("Args") or named.get("Attributes") or "")
    return Docstring(tuple(map(code_marks, paragraphs)), args, code_marks(" ".join(named.get("Returns", "").split())))


def _entries(text: str) -> dict[str, str]:
    """`name: words`, and `a, b: words` for several; deeper lines go on with the one above."""
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=\S)", text):
        names, colon, words = entry.partition(":")
        if colon:
            found |= {name.strip(): code_marks(" ".join(words.split())) for name in names.split(",")}
    return found


def code_marks(text: str) -> str:
    """Double backticks, as docstrings have them, become single ones."""
    return text.replace("``", "`")


def sentence(text: str) -> str:
    """With a capital at the beginning and a full stop at the end."""
    text = text.strip()
    return text and text[0].upper() + text[1:] + ("" if text[-1] in ".!?:" else ".")


def code(text: str, language: str = "python") -> str:
    """A block of code."""
    return f"```{language}\n{text.rstrip()}\n```"


def body(function: Callable[..., Any]) -> str:
    """The source of a function, without its decorators and its docstring, laid out for a page's width."""
    source = textwrap.dedent(inspect.getsource(function))
    try:
        node = ast.parse(source).body[0]
    except SyntaxError:  # a lambda in the middle of a call
        return source
    if not isinstance(node, ast.FunctionDef):
        return source
    lines = source.splitlines()
    if ast.get_docstring(node) and len(node.body) > 1:
        del lines[node.body[0].lineno - 1 : node.body[0].end_lineno]
    return laid_out("\n".join(lines[node.lineno - 1 :]))


@cache
def laid_out(source: str) -> str:
    """Code in lines that fit a page; the repository's are longer."""
    command = [find_ruff_bin(), "format", "--isolated", "--line-length", str(WIDTH), "--stdin-filename", "page.py", "-"]
    return subprocess.run(command, input=source, capture_output=True, text=True, check=True, encoding="utf-8").stdout.rstrip()


def breakable(name: str) -> str:
    """A name as code that may break into lines after each underscore, for narrow screens."""
    return f"<code>{name.replace('_', '_<wbr>')}</code>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(c) for c in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "&#124;") if "`" not in text else " ".join(text.split())


def module_of(thing: object) -> ModuleType:
    """The module that defines something."""
    return sys.modules[getattr(thing, "__module__", "")]


def path_of(module: ModuleType) -> str:
    """A module's file as one finds it in the repository."""
    file = Path(module.__file__ or "").resolve()
    return file.relative_to(ROOT).as_posix() if file.is_relative_to(ROOT) else file.name


def source_link(module: ModuleType, up: str = "../") -> str:
    """A link to the page that holds a module's source."""
    return f"[`{path_of(module)}`]({up}{source_page(module)})"


def source_page(module: ModuleType) -> str:
    """The path of the page that holds a module's source."""
    return f"source/{module.__name__}.md"


def source(module: ModuleType) -> str:
    """A page that holds a module's source; the search leaves it out, as it has the pages about it."""
    head = "---\nsearch:\n  exclude: true\nhide:\n  - toc\n---"
    return page(head, f"# `{path_of(module)}`", f'```{{ .python linenums="1" }}\n{inspect.getsource(module).rstrip()}\n```')


def page(*parts: str) -> str:
    """A page from its parts; empty ones are left out."""
    return "\n\n".join(p.strip("\n") for p in parts if p.strip()) + "\n"
