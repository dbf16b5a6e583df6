"""What one check of `hfgraph doctor` found."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

OK, NOTE, MISSING = "ok", "note", "missing"


@dataclass(frozen=True)
class Check:
    """One line of the screen.

    Attributes:
        status: "ok", "note" (works, and good to know), or "missing" (hfgraph needs it).
        found: what is there, in words.
        advice: what to do; empty where there is nothing to do.
    """

    name: str
    status: str
    found: str
    advice: str = ""


Examination = Callable[[], Iterable[Check]]


def in_words(error: BaseException) -> str:
    """An exception in one line."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def size(bytes_: float) -> str:
    """A number of bytes, readable."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if bytes_ < 1024:
            return f"{bytes_:.0f} {unit}" if unit in ("bytes", "KiB") else f"{bytes_:.1f} {unit}"
        bytes_ /= 1024
    return f"{bytes_:.1f} TiB"
