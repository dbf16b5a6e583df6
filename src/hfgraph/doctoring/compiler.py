"""Checks of the C++ compiler that Inductor calls, by having it compile what Inductor would, and of the folder it compiles into."""

from __future__ import annotations

import ctypes
import getpass
import itertools
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hfgraph.doctoring.check import MISSING, NOTE, OK, Check, in_words, size

_WITHOUT = 'Until then, options={"inductor": False} runs rewritten graphs without a compiler.'

# Python.h, OpenMP and the standard library are what generated kernels include and link.
_PROGRAM = """\
#include <Python.h>
#include <omp.h>
#include <cmath>

extern "C" double hfgraph_doctor(long n) {
    double total = 0;
    #pragma omp parallel for reduction(+ : total)
    for (long i = 0; i < n; i++) total += std::sqrt(double(i * i));
    return total + (omp_get_max_threads() < 1);
}
"""
_N = 1000

# What a compiler or linker says -> what is missing, and how to get it. The first that fits is taken.
_CAUSES = (
    (r"Python\.h", "the header files of Python (Python.h)", "Install Python's development package, often called python3-dev or python3-devel."),
    (r"omp\.h|gomp|lomp|iomp|fopenmp|omp_get", "OpenMP", "Install your compiler's OpenMP library, often called libgomp or libomp-dev."),
    (r"c\+\+20|c\+\+2a", "a compiler that knows C++20", "Install a newer one (g++ 11, clang++ 14), or name it in CXX."),
    (r"-m(arch|avx|cpu|fma|amx)|for .-m", "a compiler that knows this processor", "Install a newer one, or name it in CXX."),
    (r"(torch|ATen|c10)/\S+|lc10|ltorch", "files of torch", "Reinstall torch."),
    (r"crt\w*\.o|lc\b|lm\b|stdio\.h|features\.h", "the C library's development files", "Install them, often called libc6-dev or glibc-devel."),
    (r"cmath|cstddef|lstdc\+\+|\.h\b|No such file.*include", "the C++ standard library's headers", "Install them, often called g++, gcc-c++ or libstdc++-dev."),
    (r"ld\b|collect2|as\b", "a linker", "Install it, often called binutils."),
)


def compiler() -> Iterator[Check]:
    """The compiler that Inductor would call."""
    from torch._inductor import config
    from torch._inductor.cpp_builder import get_compiler_version_info, get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    tried = config.cpp.cxx if isinstance(config.cpp.cxx, list | tuple) else (config.cpp.cxx,)
    try:
        name = get_cpp_compiler()
    except (InvalidCxxCompiler, OSError):
        names = ", ".join(str(n) for n in tried if n) or "none"
        yield Check("compiler", MISSING, f"no C++ compiler (tried {names})", f"Install g++ or clang++, or name yours in the variable CXX. {_WITHOUT}")
        return
    # One line with "_" for line ends, among them "gcc version 12.2.0 (...)" or "clang version 16.0.6".
    told = re.search(r"(gcc|clang) version ([\d.]+)", get_compiler_version_info(name))
    where = shutil.which(name) or name
    yield Check("compiler", OK, f"{where}, {told[1]} {told[2]}" if told else where)


def test_program() -> Iterator[Check]:
    """A small program, built and loaded as Inductor builds and loads kernels."""
    from torch._inductor.cpp_builder import CppBuilder, CppTorchOptions
    from torch._inductor.cpu_vec_isa import pick_vec_isa
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    with tempfile.TemporaryDirectory(prefix="hfgraph-doctor-", dir=_usable_folder(), ignore_cleanup_errors=True) as folder:
        source = Path(folder, "program.cpp")
        source.write_text(_PROGRAM)
        start = time.perf_counter()
        try:
            # A name of its own: the loader knows libraries by their names.
            builder = CppBuilder(f"p{uuid.uuid4().hex}", str(source), CppTorchOptions(vec_isa=pick_vec_isa(), warning_all=False), folder)
            builder.build()
        except InvalidCxxCompiler:
            yield Check("test program", MISSING, "not compiled, as there is no compiler")
            return
        except CppCompileError as e:
            yield _explained(e.output)
            return
        seconds = time.perf_counter() - start
        try:
            function: Any = ctypes.CDLL(builder.get_target_file_path()).hfgraph_doctor
        except OSError as e:
            advice = "If that folder forbids running files (noexec), set TORCHINDUCTOR_CACHE_DIR to another one."
            yield Check("test program", MISSING, f"compiled, but cannot be loaded: {in_words(e)}", advice)
            return
        function.restype, function.argtypes = ctypes.c_double, [ctypes.c_long]
        if function(_N) != sum(range(_N)):
            yield Check("test program", MISSING, "compiled, but it computes a wrong sum", "Name another compiler in the variable CXX.")
        else:
            yield Check("test program", OK, f"built as by Inductor in {seconds:.1f} s, and loaded: Python.h, OpenMP, C++20")


def _explained(output: str) -> Check:
    """What a compiler says, as what is missing."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    told = next((line for line in lines if re.search(r"error|cannot find|undefined|not found", line)), lines[0] if lines else "no message")
    told = re.sub(r"^\S+:\s+(?=(fatal )?error|cannot)", "", told)  # the file and line of a program that the user does not know
    for pattern, what, advice in _CAUSES:
        if re.search(pattern, told):
            return Check("test program", MISSING, f"does not compile without {what}: {told}", advice)
    return Check("test program", MISSING, f"does not compile: {told}", "Name another compiler in the variable CXX.")


def vectors() -> Iterator[Check]:
    """The vector instructions that Inductor writes code for; finding out compiles a program with each."""
    from torch._inductor.cpu_vec_isa import pick_vec_isa
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        isa = pick_vec_isa()
    except InvalidCxxCompiler:
        yield Check("vectors", NOTE, "not known, as there is no compiler")
        return
    if isa:
        yield Check("vectors", OK, f"{isa}, {isa.bit_width()} bits wide")
    else:
        advice = "Inductor writes code without vector instructions here, which is slower. Look at the compiler first."
        yield Check("vectors", NOTE, "none that the compiler, the processor and torch all know", advice)


def cache() -> Iterator[Check]:
    """The folder of compiled graphs."""
    folder = _cache_folder()
    asked = " (TORCHINDUCTOR_CACHE_DIR)" if os.environ.get("TORCHINDUCTOR_CACHE_DIR") else ""
    problem = _not_writable(folder)
    if problem:  # then much of Inductor cannot even be imported
        yield Check("cache", MISSING, f"{folder}{asked} cannot be written: {problem}", "Set TORCHINDUCTOR_CACHE_DIR to a folder of yours.")
        return
    from torch._inductor import config

    if config.force_disable_caches or not config.fx_graph_cache:
        yield Check("cache", NOTE, f"{folder}{asked} is not used, as caching is switched off: each process compiles anew")
    else:
        yield Check("cache", OK, f"{folder}{asked}, {_measured(folder)}")


@contextmanager
def usable_cache() -> Iterator[None]:
    """Another cache folder where the real one cannot be written, so that one fault is not reported as many."""
    try:
        broken = _not_writable(_cache_folder())
        spare = tempfile.mkdtemp(prefix="hfgraph-doctor-") if broken else ""
    except OSError:  # no place for temporary files at all: the check of the cache meets it too
        spare = ""
    if spare:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = spare
    try:
        yield
    finally:
        shutil.rmtree(spare, ignore_errors=True)


def _cache_folder() -> Path:
    """Where Inductor keeps what it compiles. torch's own functions cannot be asked: importing them makes the folder, and fails where it cannot."""
    try:
        user = getpass.getuser()
    except (KeyError, ModuleNotFoundError, OSError):
        user = f"uid_{os.getuid()}" if hasattr(os, "getuid") else "unknown_user"
    user = re.sub(r'[\\/:*?"<>|]', "_", user)
    return Path(os.path.abspath(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or os.path.join(tempfile.gettempdir(), f"torchinductor_{user}")))


def _not_writable(folder: Path) -> str:
    """Why a file cannot be made in a folder, or in the one it would be made in; empty if it can."""
    there = next(p for p in (folder, *folder.parents) if p.exists())
    if not there.is_dir():
        return f"{there} is no folder"
    try:
        with tempfile.NamedTemporaryFile(dir=there):
            return ""
    except OSError as e:
        return e.strerror or in_words(e)


def _usable_folder() -> Path | None:
    """The cache folder, whose mount may forbid to run files; where it cannot be written, that has its own line."""
    folder = _cache_folder()
    return folder if folder.is_dir() and not _not_writable(folder) else None


def _measured(folder: Path, seconds: float = 1.0) -> str:
    """How much a folder holds, as far as one can count in a second."""
    if not folder.exists():
        return "not there yet: nothing was compiled so far"
    end, total, whole = time.perf_counter() + seconds, 0, True
    for file in itertools.chain.from_iterable(([Path(root, f) for f in files]) for root, _, files in os.walk(folder)):
        try:
            total += file.lstat().st_size
        except OSError:  # removed meanwhile, by a process that compiles
            continue
        if time.perf_counter() > end:
            whole = False
            break
    return f"{'' if whole else 'more than '}{size(total)}"
