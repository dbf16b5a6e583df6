"""Pages that are made from the code: ops, rules, options, commands; and from files of the repository. Pure functions, path -> Markdown."""

from __future__ import annotations

from typing import Any

from _generate import coverage, files, ops, rules, usage
from _generate.registry import Registry


def pages(registry: Registry) -> dict[str, str]:
    """Every page, by path."""
    return {**files.pages(), **coverage.pages(), **usage.pages(registry), **ops.pages(registry), **rules.pages(registry)}


def with_registry(nav: list[Any], registry: Registry) -> list[Any]:
    """The navigation of mkdocs.yml, with a page for each op and rule below their lists."""
    below = {
        "ops/index.md": [{op.name: ops.path(op)} for op in registry.ops],
        "rules/index.md": [{stage.capitalize(): [{r.name: rules.path(r)} for r in found]} for stage, found in registry.stages.items()],
    }

    def grown(entry: Any) -> Any:
        if isinstance(entry, list):
            return [grown(e) for e in entry]
        if isinstance(entry, dict):
            return {title: [value, *below[value]] if isinstance(value, str) and value in below else grown(value) for title, value in entry.items()}
        return entry

    return grown(nav)
