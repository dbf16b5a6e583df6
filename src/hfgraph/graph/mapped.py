"""Memory that shows a file: a checkpoint is loaded like that, and whoever moves a weight out of it changes nothing for others."""

from __future__ import annotations

from pathlib import Path

_MAPS = Path("/proc/self/maps")


def is_of_a_file(address: int) -> bool:
    """Whether memory is this process's private view of a file. False where the system does not tell."""
    if not _MAPS.exists():
        return False
    for line in _MAPS.read_text().splitlines():
        region, modes, _, _, inode, *_ = line.split(maxsplit=5)
        start, end = (int(n, 16) for n in region.split("-"))
        if start <= address < end:
            return modes.endswith("p") and inode != "0"
    return False
