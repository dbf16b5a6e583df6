"""Files that users ask for."""

from __future__ import annotations

import os
from pathlib import Path

from hfgraph.errors import CannotWrite


def check_writable(path: str | os.PathLike[str]) -> None:
    """Refuse a path that cannot be written, before any work.

    Raises:
        CannotWrite: it is a folder, its folder does not exist, or it may not be written to.
    """
    file = Path(path)
    folder = file.absolute().parent
    if file.is_dir():
        raise CannotWrite(str(path), "it is a folder")
    if not folder.is_dir():
        raise CannotWrite(str(path), f"the folder {str(folder)!r} does not exist")
    if not os.access(file if file.exists() else folder, os.W_OK):
        raise CannotWrite(str(path), "it may not be written to")
