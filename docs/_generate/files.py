"""Pages from files of the repository: what is done, contributing, the changelog."""

from __future__ import annotations

import re

from _generate.text import ROOT

# What links in those files point at -> where it is on the site.
_PLACES = {"docs/design.md": "design.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "README.md": "index.md"}


def pages() -> dict[str, str]:
    """Every page, by path."""
    return {
        "status.md": "# What is done, and what is not\n\n" + section("README.md", "What is done, and what is not"),
        "contributing.md": read("CONTRIBUTING.md"),
        "changelog.md": read("CHANGELOG.md"),
    }


def read(name: str) -> str:
    """A file, for this Markdown: lists nest by four spaces here, and an item after a longer one needs an empty line before it."""
    text = (ROOT / name).read_text(encoding="utf-8")
    text = re.sub(r"^ {3}(?=\S)", " " * 4, text, flags=re.MULTILINE)
    text = re.sub(r"^( {4}\S.*)\n(?=\d+\. )", "\\1\n\n", text, flags=re.MULTILINE)
    return re.sub(r"\]\(([\w./-]+)\)", lambda found: f"]({_PLACES.get(found[1], found[1])})", text)


def section(name: str, heading: str) -> str:
    """What stands under a heading of a file.

    Raises:
        ValueError: there is no such heading.
    """
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", read(name), flags=re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"{name} has no section {heading!r}")
    return found[1].strip() + "\n"
