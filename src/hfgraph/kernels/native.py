"""Kernels written in C++: compiled once by the compiler that Inductor uses, kept in Inductor's cache folder, loaded into PyTorch."""

from __future__ import annotations

import hashlib
import os
import tempfile
from functools import cache
from pathlib import Path

import torch

# As much as a screen holds of what a compiler says.
_SAID = 2000


@cache
def problem(source: Path) -> str | None:
    """Compile and load a source file, which registers its kernels; None, or in words why that cannot be."""
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    try:
        torch.ops.load_library(_built(source))
    except InvalidCxxCompiler:
        return "there is no C++ compiler (hfgraph doctor says more)"
    except CppCompileError as e:
        return f"{source.name} does not compile: {str(e)[-_SAID:]}"
    except OSError as e:
        return f"what {source.name} compiled to does not load: {e}"
    return None


def _built(source: Path) -> str:
    """The shared library of a source file, named after everything that it is made of."""
    from torch._inductor.codecache import get_lock_dir
    from torch._inductor.cpp_builder import CppBuilder, CppTorchOptions, get_compiler_version_info
    from torch._inductor.runtime.cache_dir_utils import cache_dir
    from torch.utils._filelock import FileLock

    # Every room's headers: they are few, and which of them a source includes only the compiler knows.
    texts = [source.read_text(), *(p.read_text() for p in sorted(Path(__file__).parent.rglob("*.h")))]
    options = CppTorchOptions(include_pytorch=True, extra_flags=("-ffp-contract=fast",))
    flags = CppBuilder("name", "source", options).get_command_line()
    parts = (*texts, flags, get_compiler_version_info(options.get_compiler()), torch.__version__, _processor())
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    folder = Path(cache_dir(), "hfgraph")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{source.stem}-{key}.so"
    with FileLock(str(Path(get_lock_dir(), f"{key}.lock"))):
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=folder) as build:
                builder = CppBuilder(source.stem, str(source), options, build)
                builder.build()
                os.replace(builder.get_target_file_path(), target)
    return str(target)


def _processor() -> str:
    """What `-march=native` stands for: a cache folder may be shared by unlike machines."""
    return repr(getattr(torch.cpu, "get_capabilities", torch.backends.cpu.get_cpu_capability)())
