"""`hfgraph doctor`: each check shown to fail where something is wrong, and none ever raises."""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.config
import torch._inductor.config
import torch._inductor.cpp_builder
import torch._inductor.cpu_vec_isa
import torch.utils._triton
from rich.console import Console
from torch._inductor.exc import InvalidCxxCompiler
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from hfgraph import cli, doctoring, versions
from hfgraph.commands import doctor
from hfgraph.doctoring import compiler, devices, environment, packages
from hfgraph.doctoring.check import MISSING, NOTE, OK, Check, in_words, size
from hfgraph.graph.op import OPS
from hfgraph.rewrites import STAGES, rules

Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: Patch) -> None:
    """The environment of whoever runs the tests says nothing."""
    for name in [n for n, _ in environment._changing(os.environ)] + list(environment._SWITCHES):
        monkeypatch.delenv(name, raising=False)


def lines(check: Callable[[], Iterator[Check]]) -> list[Check]:
    """What one check finds, run as the command runs it."""
    return [*doctoring.examine(sections={"": (check,)}).sections[""]]


@pytest.fixture(scope="module")
def checkup() -> doctoring.Checkup:
    return doctoring.examine()


# --- as it should be ---------------------------------------------------------------------------------


def test_all_is_well_here(checkup: doctoring.Checkup) -> None:
    assert checkup.ok, checkup.missing
    assert list(checkup.sections) == list(doctoring.SECTIONS)
    found = {c.name: c.found for checks in checkup.sections.values() for c in checks}
    assert found["torch"].startswith(torch.__version__)
    assert "loaded: Python.h, OpenMP, C++20" in found["test program"]
    ops = [c.found for c in checkup.sections["used"] if c.name == "ops on cpu"]
    assert "attention, moe: cpp where it applies, else the reference, compiled by Inductor" in ops
    assert found["rules"] == ", ".join(f"{len(rules(stage))} to {stage}" for stage in STAGES)


def test_it_fits_one_screen(checkup: doctoring.Checkup) -> None:
    text = doctor.plain(checkup).splitlines()
    assert len(text) <= 24
    assert max(map(len, text)) <= 120
    for width, lines in ((120, 24), (80, 40)):
        console = Console(width=width, force_terminal=True, record=True, file=io.StringIO())
        console.print(*doctor.panel(checkup), sep="\n")
        drawn = console.export_text().splitlines()
        assert len(drawn) <= lines
        assert max(map(len, drawn)) <= width
        assert drawn[-1].startswith("╰─ All that is needed is here.")
        assert any("cpu " in line and "core" in line for line in drawn)


def test_the_screen_says_what_is_missing() -> None:
    bad = doctoring.Checkup({"compiler": (Check("compiler", MISSING, "no C++ compiler", "Install one."), Check("vectors", NOTE, "none"))})
    assert not bad.ok
    assert doctor.plain(bad).splitlines()[1:] == [
        "compiler  missing  compiler  no C++ compiler",
        "                             -> Install one.",
        "          note     vectors   none",
        "Missing: compiler.",
    ]
    console = Console(width=80, force_terminal=False)
    with console.capture() as captured:
        console.print(*doctor.panel(bad), sep="\n")
    assert "Install one." in captured.get()
    assert "─ Missing: compiler. ─" in captured.get()


# --- the command -------------------------------------------------------------------------------------


def test_help_ends_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["doctor", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.strip().splitlines()[-1].startswith("example: hfgraph doctor ")
    assert "exit status: 0" in text


@pytest.mark.parametrize(("status", "expected"), [(OK, 0), (NOTE, 0), (MISSING, 1)])
def test_exit_status_and_json(status: str, expected: int, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]) -> None:
    made = doctoring.Checkup({"compiler": (Check("compiler", status, "here", "Do it."),)})
    monkeypatch.setattr(doctoring, "examine", lambda say: made)
    assert cli.main(["doctor", "--json"]) == expected
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] == (expected == 0)
    assert found["checks"] == [{"section": "compiler", "name": "compiler", "status": status, "found": "here", "advice": "Do it."}]
    assert cli.main(["doctor"]) == expected
    assert f"compiler  {status}  compiler  here" in capsys.readouterr().out


def test_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["doctor", "me"])
    assert ended.value.code == 2
    assert "unrecognized arguments: me" in capsys.readouterr().err


def in_a_shell(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("hfgraph"), "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, **variables})


def test_all_at_once_is_wrong(tmp_path: Path) -> None:
    """No compiler, compilation off and an unusable cache: each is said once, and what depends on them is still looked at."""
    (tmp_path / "file").touch()
    done = in_a_shell("--json", TORCH_COMPILE_DISABLE="1", CXX="no-such-compiler", TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "file" / "cache"))
    assert done.returncode == 1
    assert done.stderr == ""
    found = {c["name"]: c for c in json.loads(done.stdout)["checks"]}
    assert {n for n, c in found.items() if c["status"] == MISSING} == {"cache", "compiler", "test program", "torch.compile"}
    assert "file is no folder" in found["cache"]["found"]
    assert found["torch.compile"]["found"] == "switched off by TORCH_COMPILE_DISABLE=1"
    assert found["TORCHINDUCTOR_CACHE_DIR"]["status"] == found["CXX"]["status"] == NOTE
    assert found["backend"]["status"] == OK


def test_without_torch_there_is_a_screen(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libc10.so: cannot open shared object file')")
    done = in_a_shell(PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == ""
    assert f"{torch.__version__} is installed, but cannot be imported: ImportError: libc10.so" in done.stdout
    assert "not checked" in done.stdout
    assert done.stdout.rstrip().splitlines()[-1] == "Missing: torch."


# --- it never raises, and changes nothing ------------------------------------------------------------


def test_a_check_that_fails_is_a_finding() -> None:
    def broken_check() -> Iterator[Check]:
        yield Check("first", OK, "here")
        raise RuntimeError("a\nb")

    assert lines(broken_check) == [Check("first", OK, "here"), Check("broken check", MISSING, "this check itself failed: RuntimeError: a", "Please report it.")]


def test_the_environment_stays(monkeypatch: Patch) -> None:
    def careless() -> Iterator[Check]:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = "x"
        del os.environ["KEPT"]
        os.environ["CHANGED"] = "2"
        yield Check("careless", OK, "")

    monkeypatch.setenv("KEPT", "1")
    monkeypatch.setenv("CHANGED", "1")
    before = dict(os.environ)
    assert lines(careless)[0].status == OK
    assert dict(os.environ) == before


def test_no_scratch_is_left(checkup: doctoring.Checkup) -> None:
    assert checkup.ok
    assert not list(Path(default_cache_dir()).glob("hfgraph-doctor-*"))


# --- installed ---------------------------------------------------------------------------------------


def only(check: Callable[[], Iterator[Check]], status: str, *words: str) -> None:
    """The check finds one line, with this status and these words."""
    (found,) = lines(check)
    assert found.status == status, found
    for word in words:
        assert word in f"{found.name}: {found.found} -> {found.advice}"


def test_an_old_python(monkeypatch: Patch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 4, "final", 0))
    only(packages.python, MISSING, "hfgraph needs Python 3.11 or newer")


def test_the_python_that_is_needed_is_the_one_that_is_declared() -> None:
    assert importlib.metadata.metadata("hfgraph")["Requires-Python"] == f">={versions.PYTHON}"


@pytest.mark.parametrize(
    ("check", "found", "status", "words"),
    [
        (packages.torch, "2.9.1", MISSING, "hfgraph needs torch 2.11 or newer: pip install 'torch>=2.11,<2.14'"),
        (packages.torch, "2.14.0", NOTE, "It may work"),
        (packages.transformers, "4.57.0", MISSING, "hfgraph needs transformers 5.24 or newer"),
        (packages.transformers, "5.25.0", NOTE, "pip install 'transformers>=5.24,<5.25'"),
        (packages.triton, "3.5", MISSING, "hfgraph needs triton 3.6 or newer"),
    ],
)
def test_versions(check: Any, found: str, status: str, words: str, monkeypatch: Patch) -> None:
    monkeypatch.setattr(versions, "installed", lambda package: found)
    only(check, status, words, found)


@pytest.mark.parametrize(("gpu", "status"), [(True, MISSING), (False, NOTE)])
@pytest.mark.parametrize(("error", "words"), [(ModuleNotFoundError("no"), "not installed"), (OSError("bad file"), "cannot be imported: OSError: bad file")])
def test_triton_is_needed_for_gpus(gpu: bool, status: str, error: Exception, words: str, monkeypatch: Patch) -> None:
    real = importlib.import_module

    def without_triton(name: str, package: str | None = None) -> Any:
        if name == "triton":
            raise error
        return real(name, package)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(importlib, "import_module", without_triton)
    monkeypatch.setattr(versions, "installed", lambda package: None)
    only(packages.triton, status, words, "pip install")


@pytest.mark.parametrize(("cuda", "hip", "words"), [("12.8", None, "built for CUDA 12.8"), (None, "6.4", "built for ROCm 6.4"), (None, None, "built for CPUs")])
def test_what_torch_is_built_for(cuda: str | None, hip: str | None, words: str, monkeypatch: Patch) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", hip)
    only(packages.torch, OK, words)


def test_other_packages(monkeypatch: Patch) -> None:
    real = versions.installed
    monkeypatch.setattr(versions, "installed", lambda package: None if package in ("sympy", "matplotlib") else real(package))
    only(packages.others, MISSING, "not installed: sympy", "pip install sympy", "safetensors")
    only(packages.plots, NOTE, "pip install 'hfgraph[plots]'")


# --- the backend's name ------------------------------------------------------------------------------

OURS = EntryPoint("hfgraph", "hfgraph.backend:hfgraph", "torch_dynamo_backends")
OTHERS = EntryPoint("hfgraph", "json.decoder:JSONDecoder", "torch_dynamo_backends")
GONE = EntryPoint("hfgraph", "hfgraph.backend:no_such", "torch_dynamo_backends")


@pytest.mark.parametrize(
    ("points", "status", "words"),
    [
        ((), MISSING, 'torch knows no backend named "hfgraph"'),
        ((OTHERS,), MISSING, "json, this is"),
        ((GONE,), MISSING, "AttributeError"),
        ((OURS, OTHERS), NOTE, "hfgraph.backend:hfgraph, json.decoder:JSONDecoder"),
        ((OURS, OURS), OK, 'torch knows "hfgraph" as'),
    ],
)
def test_the_backends_name(points: tuple[EntryPoint, ...], status: str, words: str, monkeypatch: Patch) -> None:
    torch._dynamo.list_backends()
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: points)
    only(packages.backend, status, words)


def test_torch_does_not_list_it(monkeypatch: Patch) -> None:
    monkeypatch.setattr(torch._dynamo, "list_backends", lambda: ["inductor"])
    only(packages.backend, MISSING, "pip install .")


# --- the compiler ------------------------------------------------------------------------------------


def compiler_is(name: object) -> Any:
    return torch._inductor.config.patch({"cpp.cxx": (None, str(name))})


def a_compiler(tmp_path: Path, says: str) -> Path:
    """A compiler that knows its version, and fails with a message at everything else."""
    script = tmp_path / "c++"
    script.write_text(f"#!/bin/sh\ncase $* in -v|--version) g++ $*;; *) echo {says!r}; exit 1;; esac\n")
    script.chmod(0o755)
    return script


def test_no_compiler() -> None:
    with compiler_is("no-such-compiler"):
        only(compiler.compiler, MISSING, "tried no-such-compiler", "CXX", '{"inductor": False}')
        only(compiler.test_program, MISSING, "there is no compiler")


def test_no_compiler_no_vectors(monkeypatch: Patch) -> None:
    def raises() -> Any:
        raise InvalidCxxCompiler

    monkeypatch.setattr(torch._inductor.cpu_vec_isa, "pick_vec_isa", raises)
    only(compiler.vectors, NOTE, "no compiler")


def test_a_missing_header(monkeypatch: Patch) -> None:
    """For real: the folder of Python.h is not given to the compiler."""
    monkeypatch.setattr(torch._inductor.cpp_builder, "_get_python_related_args", lambda: ([], []))
    only(compiler.test_program, MISSING, "without the header files of Python (Python.h): fatal error: Python.h", "python3-dev")


def test_a_compiler_that_fails(tmp_path: Path) -> None:
    with compiler_is(a_compiler(tmp_path, "g++: fatal error: no input files")):
        only(compiler.compiler, OK, str(tmp_path))
        only(compiler.test_program, MISSING, "does not compile: fatal error: no input files", "CXX")


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("/a/b.cpp:1:10: fatal error: Python.h: No such file or directory\n 1 | #include <Python.h>", "the header files of Python"),
        ("b.cpp:2:10: fatal error: 'omp.h' file not found", "without OpenMP: "),
        ("/bin/ld: cannot find -lgomp: No such file or directory\ncollect2: error: ld returned 1 exit status", "without OpenMP: "),
        ("clang: error: unsupported option '-fopenmp'", "without OpenMP: "),
        ("g++: error: unrecognized command-line option '-std=c++20'", "a compiler that knows C++20"),
        ("g++: error: unrecognized command-line option '-mavx512vnni'; did you mean '-mavx512vbmi'?", "a compiler that knows this processor"),
        ("cc1plus: error: bad value 'znver9' for '-march=' switch", "a compiler that knows this processor"),
        ("x.cpp:3:10: fatal error: cmath: No such file or directory", "the C++ standard library's headers"),
        ("usr.h:33:10: fatal error: features.h: No such file or directory", "the C library's development files"),
        ("/bin/ld: cannot find crt1.o: No such file", "the C library's development files"),
        ("/bin/ld: cannot find -lc10: No such file or directory", "files of torch"),
        ("collect2: fatal error: cannot find 'ld'", "a linker"),
        ("x.cpp:1:1: error: something new", "does not compile: error: something new"),
        ("", "does not compile: no message"),
    ],
)
def test_what_compilers_say_in_words(output: str, words: str) -> None:
    found = compiler._explained(output)
    assert found.status == MISSING
    assert words in found.found
    assert found.advice


def test_it_compiles_and_cannot_be_loaded(monkeypatch: Patch) -> None:
    def refuses(path: str) -> Any:
        raise OSError(f"{path}: failed to map segment from shared object: Operation not permitted")

    monkeypatch.setattr(ctypes, "CDLL", refuses)
    only(compiler.test_program, MISSING, "compiled, but cannot be loaded", "noexec")


def test_it_computes_something_else(monkeypatch: Patch) -> None:
    monkeypatch.setattr(compiler, "_PROGRAM", compiler._PROGRAM.replace("i * i", "i"))
    only(compiler.test_program, MISSING, "a wrong sum")


def test_no_vectors(monkeypatch: Patch) -> None:
    monkeypatch.setattr(torch._inductor.cpu_vec_isa, "pick_vec_isa", lambda: torch._inductor.cpu_vec_isa.invalid_vec_isa)
    only(compiler.vectors, NOTE, "slower")


# --- the cache ---------------------------------------------------------------------------------------


def test_the_cache_is_where_torch_has_it(monkeypatch: Patch, tmp_path: Path) -> None:
    assert str(compiler._cache_folder()) == default_cache_dir()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    (tmp_path / "a").write_bytes(b"x" * 3 * 1024)
    only(compiler.cache, OK, f"{tmp_path} (TORCHINDUCTOR_CACHE_DIR), 3 KiB")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "b"))
    only(compiler.cache, OK, "not there yet")


def test_a_cache_that_cannot_be_written(monkeypatch: Patch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file" / "cache"))
    only(compiler.cache, MISSING, "cannot be written: ", "is no folder", "Set TORCHINDUCTOR_CACHE_DIR")

    def refuses(**_: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiler.tempfile, "NamedTemporaryFile", refuses)
    only(compiler.cache, MISSING, "cannot be written: Permission denied")


def test_a_cache_that_is_not_used() -> None:
    with torch._inductor.config.patch(fx_graph_cache=False):
        only(compiler.cache, NOTE, "switched off")


def test_a_large_cache_is_not_counted_to_the_end(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / str(i)).write_bytes(b"x")
    assert compiler._measured(tmp_path) == "3 bytes"
    assert compiler._measured(tmp_path, seconds=-1) == "more than 1 bytes"


# --- devices -----------------------------------------------------------------------------------------


def test_more_threads_than_cores(monkeypatch: Patch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4096)
    only(devices.processor, NOTE, "4096 threads", "OMP_NUM_THREADS")


class Properties:
    name, major, minor, total_memory = "Some GPU", 9, 0, 80 * 2**30


def with_gpus(monkeypatch: Patch, count: int = 1, usable: bool = True) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: Properties)
    monkeypatch.setattr(torch.utils._triton, "has_triton", lambda: usable)


def test_gpus(monkeypatch: Patch) -> None:
    with_gpus(monkeypatch, 2)
    found = lines(devices.gpus)
    assert [(c.name, c.status) for c in found] == [("cuda:0", OK), ("cuda:1", OK)]
    assert found[0].found == "Some GPU, capability 9.0, 80.0 GiB, with triton"


def test_a_gpu_without_triton(monkeypatch: Patch) -> None:
    with_gpus(monkeypatch, usable=False)
    only(devices.gpus, MISSING, "without triton", "capability 7.0")


@pytest.mark.parametrize(
    ("build", "hidden", "warned", "words"),
    [("12.8", "", "", "hides all"), ("12.8", None, "The NVIDIA driver is too old", "The NVIDIA driver is too old"), (None, None, "", "built for CPUs")],
)
def test_a_gpu_that_is_not_used(build: str | None, hidden: str | None, warned: str, words: str, monkeypatch: Patch) -> None:
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    monkeypatch.setattr(devices.os.path, "exists", lambda path: True)
    found = devices._no_gpu(build, warned)
    assert found.status == NOTE
    assert words in found.found


def test_no_gpu_is_no_fault() -> None:
    assert devices._no_gpu("12.8", "").status == OK


# --- ops and rules -----------------------------------------------------------------------------------


def test_kernels_on_request() -> None:
    assert devices._used(OPS["rms_norm"], "cuda") == (OK, "the reference, compiled by Inductor; triton on request")


@pytest.mark.parametrize(("auto", "loads", "status", "words"), [
    (True, True, OK, "triton where it applies, else the reference, compiled by Inductor"),
    (True, False, MISSING, "triton cannot be loaded (ImportError: no triton)"),
    (False, False, NOTE, "triton on request; triton cannot be loaded"),
])  # fmt: skip
def test_a_kernel_that_is_chosen_must_load(auto: bool, loads: bool, status: str, words: str) -> None:
    class Kernel:
        name, device = "triton", "cuda"

        def __init__(self) -> None:
            self.auto = auto

        def load(self) -> None:
            if not loads:
                raise ImportError("no triton")

    class Operator:
        implementations = {"triton": Kernel()}  # noqa: RUF012

    operator: Any = Operator()
    found = devices._used(operator, "cuda")
    assert found[0] == status
    assert words in found[1]
    assert devices._used(operator, "cpu") == (OK, "the reference, compiled by Inductor")


def test_every_op_is_named_or_counted() -> None:
    *few, most = [c.found.split(": ")[0] for c in lines(devices.ops) if c.name == "ops on cpu"]
    named = [name for names in few for name in names.split(", ")]
    assert "attention" in named
    assert set(named) < OPS.keys()
    assert most == f"{len(OPS) - len(named)} others"


def test_a_rule_that_cannot_be_imported(monkeypatch: Patch) -> None:
    def broken(stage: str) -> Any:
        raise SyntaxError("invalid syntax")

    monkeypatch.setattr("hfgraph.rewrites.rules", broken)
    only(devices.rules, MISSING, "SyntaxError: invalid syntax")


# --- the environment ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE"])
def test_compilation_switched_off(name: str, monkeypatch: Patch) -> None:
    only(environment.torch_compile, OK, "switched on")
    monkeypatch.setenv(name, "1")
    with torch._dynamo.config.patch(disable=True):
        only(environment.torch_compile, MISSING, f"switched off by {name}=1", "eager")


def test_switched_off_in_python() -> None:
    with torch._dynamo.config.patch(disable=True):
        only(environment.torch_compile, MISSING, "in torch._dynamo.config")


def test_another_backend_in_its_place(monkeypatch: Patch) -> None:
    monkeypatch.setenv("TORCH_COMPILE_OVERRIDE_BACKENDS", "0:eager")
    only(environment.torch_compile, NOTE, "0:eager")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("OMP_NUM_THREADS", "1", "limits CPU kernels to 1 threads"),
        ("TORCHINDUCTOR_FX_GRAPH_CACHE", "0", "on (1) or off (0): 0"),
        ("TORCHDYNAMO_SUPPRESS_ERRORS", "1", "hides errors"),
        ("CUDA_VISIBLE_DEVICES", "", "see only these GPUs"),
        ("TORCHINDUCTOR_SOMETHING", "yes", "other variables: TORCHINDUCTOR_SOMETHING=yes"),
        ("HFGRAPH_SEED", "3", "HFGRAPH_SEED=3"),
    ],
)
def test_variables_in_words(name: str, value: str, words: str, monkeypatch: Patch) -> None:
    only(environment.variables, OK, "none is set")
    monkeypatch.setenv(name, value)
    only(environment.variables, NOTE, words)


@pytest.mark.parametrize(("name", "value"), [("TORCH_COMPILE_DEBUG", "0"), ("HF_TOKEN", "secret"), ("PATH_TO_TORCH", "1")])
def test_other_variables_are_not_shown(name: str, value: str, monkeypatch: Patch) -> None:
    monkeypatch.setenv(name, value)
    only(environment.variables, OK, "none is set")


# --- words -------------------------------------------------------------------------------------------


def test_sizes_and_errors() -> None:
    assert [size(n) for n in (5, 2048, 3.5 * 2**20, 2**40 * 2)] == ["5 bytes", "2 KiB", "3.5 MiB", "2.0 TiB"]
    assert in_words(ValueError("\n a\nb")) == "ValueError: a"
    assert in_words(KeyError()) == "KeyError"
