"""Checks of the processor and of GPUs, and of what hfgraph uses on each for each op."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from hfgraph.doctoring.check import MISSING, NOTE, OK, Check, in_words, size

if TYPE_CHECKING:
    from hfgraph.graph.op import Implementation, Op


def processor() -> Iterator[Check]:
    """Cores, threads, memory."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    found = f"{_count(cores, 'core')} for this process, {_count(threads, 'thread')}{_memory()}"
    if threads > cores:
        yield Check("cpu", NOTE, found, "More threads than cores are slower. Set OMP_NUM_THREADS, or call torch.set_num_threads.")
    else:
        yield Check("cpu", OK, found)


def gpus() -> Iterator[Check]:
    """GPUs that torch can use."""
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available:
        yield _no_gpu(torch.version.cuda or torch.version.hip, str(caught[0].message) if caught else "")
        return
    from torch.utils._triton import has_triton

    usable = has_triton()
    for i in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(i)
        found = f"{p.name}, capability {p.major}.{p.minor}, {size(p.total_memory)}, {'with' if usable else 'without'} triton"
        advice = "" if usable else "Inductor makes kernels with triton here. It needs triton itself and a GPU of capability 7.0 or newer."
        yield Check(f"cuda:{i}", OK if usable else MISSING, found, advice)


def _no_gpu(build: str | None, warned: str) -> Check:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if build and hidden is not None and hidden.strip() in ("", "-1"):
        return Check("gpu", NOTE, f"none: CUDA_VISIBLE_DEVICES={hidden!r} hides all")
    if build and warned:
        return Check("gpu", NOTE, f"none that torch can use: {warned.splitlines()[0]}", "Look at the driver if there should be one.")
    if not build and (os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/kfd")):
        return Check("gpu", NOTE, "one seems to be here, but this torch is built for CPUs", "Install a torch that is built for it.")
    return Check("gpu", OK, "none; models run on the CPU")


def rules() -> Iterator[Check]:
    """The rules, by stage."""
    from hfgraph.rewrites import STAGES
    from hfgraph.rewrites import rules as of

    yield Check("rules", OK, ", ".join(f"{len(of(stage))} to {stage}" for stage in STAGES))


def ops() -> Iterator[Check]:
    """What runs for each op on each device that is here; ops with the same answer share a line, and most of them need no names."""
    import torch

    from hfgraph.kernels import all_ops

    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        grouped: dict[tuple[str, str], list[str]] = {}
        for op in all_ops().values():
            grouped.setdefault(_used(op, device), []).append(op.name)
        *few, ((status, used), most) = sorted(grouped.items(), key=lambda group: len(group[1]))
        for (named, told), names in few:
            yield Check(f"ops on {device}", named, f"{', '.join(sorted(names))}: {told}")
        yield Check(f"ops on {device}", status, f"{f'{len(most)} others' if few else ', '.join(sorted(most))}: {used}")


def _used(op: Op, device: str) -> tuple[str, str]:
    """Status and words: a kernel that is chosen on its own, the reference, and kernels on request."""
    here = [i for i in op.implementations.values() if i.device == device]
    broken = {i.name: in_words(e) for i in here if (e := _fails_to_load(i)) is not None}
    chosen = [i.name for i in here if i.auto]
    asked_for = [i.name for i in here if not i.auto]
    words = f"{' or '.join(chosen)} where it applies, else the reference" if chosen else "the reference"
    words += ", compiled by Inductor"
    if asked_for:
        words += f"; {', '.join(asked_for)} on request"
    if broken:
        words += "; " + "; ".join(f"{name} cannot be loaded ({why})" for name, why in broken.items())
    return (MISSING if broken.keys() & set(chosen) else NOTE if broken else OK), words


def _fails_to_load(implementation: Implementation) -> Exception | None:
    try:
        implementation.load()
    except Exception as e:  # whatever a kernel's module raises is reported
        return e
    return None


def _memory() -> str:
    """Physical memory, where the system says; containers may have less."""
    if sys.platform not in ("linux", "darwin"):
        return ""
    return f", {size(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'))} of memory"


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
