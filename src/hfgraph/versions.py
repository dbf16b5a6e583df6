"""The range of dependencies that hfgraph works with: too old is an error, newer than tested is a warning."""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Callable
from functools import cache

from hfgraph.errors import VersionTooOld, VersionUntested

PYTHON = "3.11"  # the oldest that works
# package: (oldest that works, first release after the newest that was tested)
RANGES = {"torch": ("2.11", "2.14"), "transformers": ("5.24", "5.25"), "triton": ("3.6", "3.10")}


def release(version: str) -> tuple[int, ...]:
    """`2.13.0+cpu` -> (2, 13, 0); pre-release and local parts do not count."""
    numbers = []
    for part in version.split("+")[0].split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def check(installed: Callable[[str], str | None]) -> None:
    """Compare installed versions with the ranges.

    Args:
        installed: package -> version, or None where it is not installed.

    Raises:
        VersionTooOld: a package is older than the oldest that works.
    """
    for package, (oldest, newest) in RANGES.items():
        found = installed(package)
        if found is None:
            continue
        if release(found) < release(oldest):
            raise VersionTooOld(package, found, oldest)
        if release(found) >= release(newest):
            warnings.warn(
                f"{package} {found} is newer than what hfgraph was tested with (before {newest}). "
                f"It may work; if results look odd, run hfgraph.verify, or install '{package}<{newest}'.",
                VersionUntested,
                stacklevel=3,
            )


@cache
def check_installed() -> None:
    """Check this environment, once per process."""
    check(installed)


def installed(package: str) -> str | None:
    """The version of a package by its metadata; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
