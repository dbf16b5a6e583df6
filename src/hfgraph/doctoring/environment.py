"""Checks of what is switched off or changed by environment variables."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from hfgraph.doctoring.check import MISSING, NOTE, OK, Check

# What a variable means, for those that change what hfgraph does or how fast it is; {} is its value.
_MEANING: Mapping[str, str] = {
    "ATEN_CPU_CAPABILITY": "limits vector instructions to {}",
    "AOT_INDUCTOR_DEBUG_COMPILE": "compiles without optimisation",
    "CUDA_LAUNCH_BLOCKING": "waits for each kernel of a GPU, which is slow",
    "CUDA_VISIBLE_DEVICES": "lets torch see only these GPUs: {}",
    "CXX": "names the C++ compiler: {}",
    "HF_HUB_OFFLINE": "loads models only if they are on this machine already",
    "MKL_NUM_THREADS": "limits matrix products on CPUs to {} threads",
    "OMP_NUM_THREADS": "limits CPU kernels to {} threads",
    "TORCHDYNAMO_SUPPRESS_ERRORS": "hides errors, those of options among them: what fails runs in eager",
    "TORCHDYNAMO_VERBOSE": "prints internal stack traces",
    "TORCHINDUCTOR_CACHE_DIR": "is where compiled graphs are kept",
    "TORCHINDUCTOR_COMPILE_THREADS": "compiles with {} processes",
    "TORCHINDUCTOR_CPP_WRAPPER": "calls kernels from C++",
    "TORCHINDUCTOR_CUDAGRAPHS": "records and replays graphs of kernels on GPUs",
    "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "compiles anew in each process",
    "TORCHINDUCTOR_FREEZING": "folds weights into graphs",
    "TORCHINDUCTOR_FX_GRAPH_CACHE": "switches the cache of compiled graphs on (1) or off (0): {}",
    "TORCHINDUCTOR_MAX_AUTOTUNE": "times several kernels and takes the fastest: slow to compile",
    "TORCHINDUCTOR_USE_FAST_MATH": "lets numbers change",
    "TORCH_COMPILE_DEBUG": "writes every graph to a folder, which is slow",
    "TORCH_COMPILE_FORCE_DISABLE_CACHES": "compiles anew in each process",
    "TORCH_LOGS": "prints what is compiled: {}",
    "TRITON_INTERPRET": "runs triton kernels in an interpreter, which is very slow",
}
_OURS_OR_TORCHS = ("HFGRAPH_", "TORCHINDUCTOR_", "TORCHDYNAMO_", "TORCH_COMPILE", "AOT_INDUCTOR_", "TRITON_")
# These switch compilation off or over, and are reported as that.
_SWITCHES = ("TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE", "TORCH_COMPILE_OVERRIDE_BACKENDS")


def torch_compile() -> Iterator[Check]:
    """torch.compile does something, and it does it with the backend asked for."""
    from torch._dynamo import config

    if config.disable or os.environ.get("TORCHDYNAMO_DISABLE") == "1":
        why = next((f"by {n}=1" for n in _SWITCHES if os.environ.get(n) == "1"), "in torch._dynamo.config")
        advice = "Every model runs in eager. Unset it, or set it to 0." if why.startswith("by") else "Every model runs in eager."
        yield Check("torch.compile", MISSING, f"switched off {why}", advice)
        return
    other = getattr(config, "debug_backend_override", "") or os.environ.get("TORCH_COMPILE_OVERRIDE_BACKENDS")
    if other:
        yield Check("torch.compile", NOTE, f"TORCH_COMPILE_OVERRIDE_BACKENDS={other} puts other backends in hfgraph's place", "Unset it.")
    else:
        yield Check("torch.compile", OK, "switched on")


def variables() -> Iterator[Check]:
    """Variables that are set and change something."""
    shown = dict(_changing(os.environ))
    for name in sorted(shown.keys() & _MEANING.keys()):
        yield Check(name, NOTE, _MEANING[name].format(shown[name]))
    others = [f"{name}={shown[name]}" for name in sorted(shown.keys() - _MEANING.keys())]
    if others:
        yield Check("other variables", NOTE, ", ".join(others))
    if not shown:
        yield Check("variables", OK, "none is set that changes anything")


def _changing(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Those that are set to something; 0 is mostly what holds without them."""
    for name, value in environment.items():
        known = name in _MEANING or name.startswith(_OURS_OR_TORCHS)
        zero = value in ("", "0") and name not in ("CUDA_VISIBLE_DEVICES", "TORCHINDUCTOR_FX_GRAPH_CACHE")
        if known and not zero and name not in _SWITCHES:
            yield name, value
