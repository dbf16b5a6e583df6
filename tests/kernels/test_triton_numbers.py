"""Triton kernels against the reference, for every op that has one.

They run on a GPU where there is one, else in Triton's interpreter. The interpreter must be chosen before triton is imported, and
interpreted kernels cannot be compiled, so it gets a process of its own: `test_in_interpreter.py` runs this file there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")
DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"
if DEVICE == "cuda" and not torch.cuda.is_available():
    pytest.skip("no GPU; test_in_interpreter.py runs this file in the interpreter", allow_module_level=True)

from kernel_cases import APART, DTYPES, LAYOUTS, arguments, layouts, settings, widths  # noqa: E402
from kernel_judge import check, outputs  # noqa: E402

from hfgraph.graph.op import NAMESPACE, Op  # noqa: E402
from hfgraph.kernels import all_ops  # noqa: E402

# The interpreter's NumPy says so where exp(-x) overflows, which gives the right sigmoid: 0, and where a cube does in float16.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:overflow encountered in (exp|cast):RuntimeWarning")]
OPS = {n: op for n, op in all_ops().items() if "triton" in op.implementations and n not in APART}
CASES = [pytest.param(OPS[o], d, s, id=f"{o}-{d}-{s}") for o in OPS for d, t in DTYPES.items() for s in settings(OPS[o], t)]
OF_ANY_WIDTH = [c for c in CASES if len(widths(c.values[0])) > 1]
LAID_OUT = ("rounds_then_weight", "offset_in_single", "default", "neighbours")
SIZES = {"B": 2, "T": 3}
FEW = {"B": 2, "T": 1, "D": 63}  # for PyTorch's own checks, which call an operator a dozen times


def laid_out_widths(case: Any) -> tuple[int, ...]:
    """A row of several blocks costs the interpreter ten times as much as one of a single block: one setting of each dtype has it."""
    return ((63, 128, 1000) if case.values[2] == "default" else (63, 128)) if case in OF_ANY_WIDTH else (63,)


def kernel_of(op: Op) -> Callable[..., Any]:
    return op.implementations["triton"].load()


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Fresh memory is NaN: an element that a kernel does not write shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(8, device=DEVICE).isnan().all(), "torch.empty is not poisoned"
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("op", "dtype", "setting", "width"), [pytest.param(*c.values, w, id=f"{c.id}-{w}") for c in CASES for w in widths(c.values[0])])
def test_equals_reference(op: Op, dtype: str, setting: str, width: int) -> None:
    changes = settings(op, DTYPES[dtype])[setting]
    for scale in op.inputs.scales:
        made = arguments(op, changes, DTYPES[dtype], DEVICE, scale=scale, sizes={**SIZES, "D": width}, seed=width)
        assert op.implementations["triton"].accepts(**made)
        check(op, kernel_of(op)(**made), made)


@pytest.mark.parametrize(
    ("op", "dtype", "setting", "width"),
    [pytest.param(*c.values, w, id=f"{c.id}-{w}") for c in CASES if c.values[2] in LAID_OUT for w in laid_out_widths(c)],
)
def test_any_layout(op: Op, dtype: str, setting: str, width: int) -> None:
    batch = 8 if any(d.any_rank for d in op.inputs.tensors.values()) else 2  # 8 is unfolded to three dims
    made = arguments(op, settings(op, DTYPES[dtype])[setting], DTYPES[dtype], DEVICE, sizes={"B": batch, "T": 3, "D": width})
    seen = set()
    for layout, laid in layouts(op, made):
        before = {n: t.clone() for n, t in laid.items() if isinstance(t, torch.Tensor)}
        try:
            # Rows of one repeated value normalise to 1 or next to it, and whole rows lie on the same side of a tie.
            check(op, kernel_of(op)(**laid), laid, *([0.05] if layout.startswith("expanded_values") else []))
        except AssertionError as e:
            raise AssertionError(f"{layout}: {e}") from e
        assert all(torch.equal(laid[n], t) for n, t in before.items()), f"{layout}: an input was written to"
        seen.add(layout.split("(")[0])
    assert seen >= set(LAYOUTS)


@pytest.mark.parametrize("op", [op for op in OPS.values() if len(widths(op)) > 1], ids=lambda op: op.name)
@pytest.mark.parametrize("width", [8192, 12289, 16385, 32768])
@pytest.mark.parametrize("step", [1, 2])
def test_wide_rows(op: Op, width: int, step: int) -> None:
    for dtype in DTYPES.values():
        setting = next(iter(settings(op, dtype).values()))
        made = arguments(op, setting, dtype, DEVICE, sizes={"B": 1, "T": 3, "D": width * step})
        made = {n: v[..., ::step] if isinstance(v, torch.Tensor) else v for n, v in made.items()}
        check(op, kernel_of(op)(**made), made)


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
@pytest.mark.parametrize("leading", [{"B": 0, "T": 3}, {"B": 2, "T": 0}])
def test_no_rows(op: Op, leading: dict[str, int]) -> None:
    setting = next(iter(settings(op, torch.bfloat16).values()))
    made = arguments(op, setting, torch.bfloat16, DEVICE, sizes={**leading, "D": 64})
    check_shapes = [(o.shape, o.dtype) for o in outputs(op.reference(**made))]
    assert [(o.shape, o.dtype) for o in outputs(kernel_of(op)(**made))] == check_shapes


@contextlib.contextmanager
def callable_here(op: Op) -> Iterator[Any]:
    """The registered opaque operator; in the interpreter its kernel is lent to the CPU for a while."""
    target = op.implementations["triton"].target
    if DEVICE == "cuda":
        yield target
        return
    with torch.library._scoped_library(NAMESPACE, "IMPL") as library:
        library.impl(f"{op.name}__triton", kernel_of(op), "CPU")
        yield target


@pytest.mark.parametrize(("op", "dtype", "setting"), CASES)
def test_operator_contract(op: Op, dtype: str, setting: str) -> None:
    """Schema, fake implementation and autograd registration of the opaque operator, by PyTorch's own checks."""
    made = arguments(op, settings(op, DTYPES[dtype])[setting], DTYPES[dtype], DEVICE, sizes=FEW)
    needed = tuple(v.requires_grad_() if isinstance(v, torch.Tensor) else v for v in made.values())
    with callable_here(op) as target:
        torch.library.opcheck(target, needed)


@pytest.mark.parametrize(("op", "dtype", "setting"), CASES)
def test_gradient_is_the_references(op: Op, dtype: str, setting: str) -> None:
    made = arguments(op, settings(op, DTYPES[dtype])[setting], DTYPES[dtype], DEVICE, sizes={**SIZES, "D": 63})
    wanted = [v.requires_grad_() for v in made.values() if isinstance(v, torch.Tensor)]
    expected = outputs(op.reference(**made))
    seeds = [torch.randn_like(o) for o in expected]
    with callable_here(op) as target:
        got = outputs(target(**made))
        for used in [range(len(got)), *[[i] for i in range(len(got))]]:  # all outputs, then each alone
            grads = [torch.autograd.grad([o[i] for i in used], wanted, [seeds[i] for i in used], retain_graph=True, allow_unused=True) for o in (expected, got)]
            for tensor, ours, theirs in zip(wanted, grads[1], grads[0], strict=True):
                zero = torch.zeros_like(tensor)  # not to depend on a tensor, or with a slope of zero: both are right
                assert torch.equal(zero if ours is None else ours, zero if theirs is None else theirs)
