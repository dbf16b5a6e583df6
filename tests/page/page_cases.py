"""Walking the page's data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def rows(row: dict[str, Any], above: str = "") -> Iterator[dict[str, Any]]:
    """A row of the tree and all rows in it, with the name that the page shows as `full`."""
    full = f"{above}.{row['name']}" if above else row["name"]
    yield {**row, "full": full}
    for child in row["children"]:
        yield from rows(child, full)
