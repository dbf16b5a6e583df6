"""The installed package: found by name, light to import, true to its version ranges."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import warnings
from collections.abc import Callable

import pytest

import hfgraph
from hfgraph import versions
from hfgraph.errors import VersionTooOld, VersionUntested

BY_NAME = """
import sys, torch
assert "hfgraph" not in sys.modules
compiled = torch.compile(torch.nn.RMSNorm(8), backend="hfgraph", options={"inductor": False})
x = torch.randn(2, 8)
assert torch.equal(compiled(x), torch.nn.RMSNorm(8)(x))
print(sys.modules["hfgraph"].last_report().counts)
"""


def run_python(code: str) -> str:
    """The standard output of a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def loaded_by(statement: str) -> set[str]:
    """Top-level packages that a statement loads."""
    return set(run_python(f"{statement}\nimport sys\nprint(*{{m.partition('.')[0] for m in sys.modules}})").split())


# --- by name -----------------------------------------------------------------------------------------


def test_the_backend_works_by_name_without_an_import() -> None:
    assert run_python(BY_NAME) == "{'rms_norm': 1}"


def test_torch_lists_the_backend() -> None:
    assert run_python("import torch; print('hfgraph' in torch._dynamo.list_backends())") == "True"


def test_entry_points() -> None:
    found = {(e.group, e.name): e.value for e in importlib.metadata.distribution("hfgraph").entry_points}
    assert found == {("torch_dynamo_backends", "hfgraph"): "hfgraph.backend:hfgraph", ("console_scripts", "hfgraph"): "hfgraph.cli:main"}


def test_the_version_is_said_once() -> None:
    assert importlib.metadata.version("hfgraph") == hfgraph.__version__


# --- light -------------------------------------------------------------------------------------------

HEAVY = {"torch", "transformers", "triton", "rich", "sympy"}


@pytest.mark.parametrize("statement", ["import hfgraph", "import hfgraph.cli; hfgraph.cli.parser().format_help()", "import hfgraph.errors"])
def test_light(statement: str) -> None:
    assert not loaded_by(statement) & HEAVY


def test_the_backend_loads_neither_transformers_nor_triton_kernels() -> None:
    found = run_python("import hfgraph.backend, sys; print(*[m for m in sys.modules if m.startswith(('transformers', 'hfgraph.kernels'))])").split()
    assert not [m for m in found if m.startswith("transformers") or m.endswith(".triton")]
    assert "hfgraph.kernels.rms_norm" in found


def test_the_tests_of_lightness_can_fail() -> None:
    assert loaded_by("import hfgraph; hfgraph.Options; import rich") & HEAVY == {"rich"}


def test_what_is_public_exists() -> None:
    assert set(hfgraph.__all__) == set(hfgraph._PUBLIC)
    for name in hfgraph.__all__:
        assert getattr(hfgraph, name).__name__ == name
        assert getattr(hfgraph, name) is getattr(hfgraph, name), "a module of the same name must not take its place"


def test_what_is_not_public_is_named() -> None:
    with pytest.raises(AttributeError, match="module 'hfgraph' has no attribute 'explian'; it has Options, Report, Site"):
        _ = hfgraph.explian


# --- versions ----------------------------------------------------------------------------------------


def installed(**found: str) -> Callable[[str], str | None]:
    return found.get


def test_versions_in_range_say_nothing() -> None:
    versions.check(installed(torch="2.13.0+cpu", transformers="5.24.0", triton="3.9.0"))
    versions.check(installed(torch="2.11.0", transformers="5.24.3"))  # triton is not there on every system
    versions.check(installed())


@pytest.mark.parametrize(("package", "found", "needed"), [("torch", "2.9.1", "2.11"), ("transformers", "4.57.0", "5.24"), ("triton", "3.5.1", "3.6")])
def test_too_old(package: str, found: str, needed: str) -> None:
    with pytest.raises(VersionTooOld) as raised:
        versions.check(installed(**{package: found}))
    assert str(raised.value) == f"hfgraph needs {package} >= {needed}, found {package} {found}. Upgrade it: pip install '{package}>={needed}'."


@pytest.mark.parametrize(("package", "found", "tested"), [("torch", "2.14.0", "2.14"), ("transformers", "5.25.0.dev0", "5.25"), ("triton", "4.0", "3.10")])
def test_newer_than_tested(package: str, found: str, tested: str) -> None:
    with pytest.warns(VersionUntested) as caught:
        versions.check(installed(**{package: found}))
    message = str(caught[0].message)
    assert message.startswith(f"{package} {found} is newer than what hfgraph was tested with (before {tested}).")
    assert message.endswith(f"or install '{package}<{tested}'.")


@pytest.mark.parametrize(
    ("text", "release"),
    [("2.13.0+cpu", (2, 13, 0)), ("5.25.0.dev0", (5, 25, 0)), ("2.14.0a0+git1234", (2, 14, 0)), ("3.10", (3, 10)), ("2.12.0rc1", (2, 12, 0)), ("unknown", ())],
)
def test_release(text: str, release: tuple[int, ...]) -> None:
    assert versions.release(text) == release


def test_the_range_that_is_checked_is_the_one_that_is_required() -> None:
    required = {r.split(">=")[0]: r.split(">=")[1].split(";")[0].strip() for r in importlib.metadata.requires("hfgraph") or () if ">=" in r}
    for package, (oldest, _) in versions.RANGES.items():
        assert required[package] == oldest


def test_this_environment_is_checked_where_the_backend_is_loaded() -> None:
    versions.check_installed.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VersionUntested)
        versions.check_installed()
    assert versions.check_installed.cache_info().currsize == 1
