"""Attention's C++ kernel against the reference: every attribute, what it must not read, any number of threads, what it refuses."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attending_cases import DTYPES, LAYOUTS, LOW, OP, SETTINGS, SIZES, Size, faults, made
from torch import Tensor
from torch._inductor import config
from torch.fx.experimental.proxy_tensor import make_fx

import hfgraph
from hfgraph.graph.op import NAMESPACE
from hfgraph.kernels import native
from hfgraph.lower import lower

CPP = OP.implementations["cpp"]
if (_problem := CPP.problem()) is not None:
    pytest.skip(_problem, allow_module_level=True)
KERNEL: Any = CPP.target
pytestmark = pytest.mark.usefixtures("poisoned_cpu")
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
every_setting = pytest.mark.parametrize("setting", SETTINGS)
every_size = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)


# --- numbers ------------------------------------------------------------------------------------------


@every_dtype
@every_setting
@every_size
def test_numbers(size: Size, setting: str, dtype: torch.dtype) -> None:
    for scale in (1.0, 1e-3, 30.0):
        given = made(size, dtype, setting, scale=scale)
        assert CPP.accepts(**given), "the guard refuses what the kernel takes"
        assert not (found := faults(KERNEL(**given), given)), f"scale {scale:g}: {found}"


@every_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, dtype: torch.dtype) -> None:
    for size, setting in product(("odd", "decode"), ("nothing", "mask (B,1,Q,K)", "slopes, bias")):
        given = made(SIZES[size], dtype, setting)
        for names in (("q",), ("k",), ("v",), ("q", "k", "v")):
            laid = {n: LAYOUTS[layout](a) if n in names else a for n, a in given.items()}
            assert CPP.accepts(**laid)
            assert not (found := faults(KERNEL(**laid), laid)), f"{size}, {setting}, {names}: {found}"


@every_dtype
def test_masks_in_any_memory(dtype: torch.dtype) -> None:
    size = SIZES["odd"]
    given = made(size, dtype, "mask (B,H,Q,K)") | {"bias": torch.randn(size.batch, size.heads, size.queries, size.keys).to(dtype)}
    for name in ("mask", "bias"):
        for laid in (given[name].permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0), torch.stack([given[name]] * 2, -1)[..., 0]):
            assert not faults(KERNEL(**{**given, name: laid}), {**given, name: laid}), name


def test_a_mask_may_hold_any_bytes() -> None:
    given = made(SIZES["decode"], torch.float32, "mask (B,1,1,K)")
    given["bias"] = torch.randn(2, 1, 1, 129)
    bytes_ = torch.where(given["mask"], torch.randint(1, 256, given["mask"].shape), 0).to(torch.uint8)
    assert torch.equal(KERNEL(**{**given, "mask": bytes_.view(torch.bool)}), KERNEL(**given))


@every_dtype
def test_nothing_to_do(dtype: torch.dtype) -> None:
    for change in ({"batch": 0}, {"keys": 0}, {"value_width": 0}):
        size = Size(**{**vars(SIZES["decode"]), **change})
        got = KERNEL(**made(size, dtype, "nothing"))
        assert got.shape == (size.batch, size.heads, 1, size.value_width)
        assert (got == 0).all()


def test_nan_is_passed_on() -> None:
    for name in ("q", "k", "v"):
        given = made(SIZES["decode"], torch.float32, "right")
        given[name][0, 1, 0, 3] = torch.nan
        assert not faults(KERNEL(**given), given)


# --- what must not be read ----------------------------------------------------------------------------


def _unread(setting: str, dtype: torch.dtype) -> tuple[dict[str, Any], dict[str, Any]]:
    """A setting's arguments, and the same with NaN in every key and value that no query of any head may attend to."""
    size = Size(2, 6, 2, 2, 517, 64, 48)
    given = made(size, dtype, setting)
    weights = OP.reference(**{**given, "v": torch.eye(size.keys, dtype=dtype).expand(size.batch, size.groups, -1, -1)})
    idle = (weights == 0).all(2).unflatten(1, (size.groups, -1)).all(2)
    assert idle.any()
    spoilt = {**given, **{n: torch.where(idle[..., None], torch.nan, given[n]) for n in ("k", "v")}}
    return given, spoilt


UNREAD = (
    "mask (B,1,1,K)", "mask (B,1,Q,K)", "mask (B,H,Q,K)", "mask, a run", "mask, right, masked", "bias, low", "bias, infinite", "start", "start, int32",
    "offset", "left", "left, right", "chunk", "softcap, mask", "sinks, a run",
)  # fmt: skip


@every_dtype
@pytest.mark.parametrize("setting", UNREAD)
def test_what_does_not_count_is_not_read(setting: str, dtype: torch.dtype) -> None:
    given, spoilt = _unread(setting, dtype)
    if setting in ("bias, low", "bias, infinite"):  # the first batch has no key that counts: its values are shared out
        given, spoilt = ({n: a[1:] if n in ("q", "k", "v", "bias") else a for n, a in g.items()} for g in (given, spoilt))
    assert torch.equal(KERNEL(**given), KERNEL(**spoilt))
    assert OP.reference(**spoilt).isnan().any(), "the reference reads it: else this test says nothing"


# --- threads ------------------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("setting", ["nothing", "mask (B,1,1,K)", "left, right", "sinks"])
def test_threads_change_nothing(setting: str, dtype: torch.dtype) -> None:
    given = made(Size(2, 8, 2, 1, 1500, 64, 64), dtype, setting)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(KERNEL(**given))
    finally:
        torch.set_num_threads(before)
    assert not faults(results[0], given)
    assert all(torch.equal(results[0], r) for r in results)


# --- an operator --------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["nothing", "mask (B,1,1,K)", "start", "sinks", "slopes, bias"])
def test_operator_contract(setting: str) -> None:
    given = OP.bind((), made(SIZES["odd"], torch.float32, setting))
    torch.library.opcheck(KERNEL, tuple(a.requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a for a in given.values()))


def test_the_gradient_is_the_references() -> None:
    given = made(SIZES["odd"], torch.float32, "bias (1,H,Q,K)")
    wanted = [a.detach().requires_grad_() for a in given.values() if isinstance(a, Tensor)]
    given |= dict(zip([n for n, a in given.items() if isinstance(a, Tensor)], wanted, strict=True))
    seed = torch.randn_like(OP.reference(**given))
    ours, theirs = (torch.autograd.grad(f(**given), wanted, seed) for f in (KERNEL, OP.reference))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_call_before_loading_loads() -> None:
    """What stands in for the kernel until the library is there; afterwards it may still be called."""
    given = made(SIZES["decode"], torch.float32, "nothing")
    assert torch.equal(CPP.load()(**given), KERNEL(**given))
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::attention__cpp", "CPU")


# --- what it refuses ----------------------------------------------------------------------------------

REFUSED: dict[str, dict[str, Any]] = {
    "half precision": {"q": torch.float16, "k": torch.float16, "v": torch.float16},
    "double precision": {"q": torch.float64, "k": torch.float64, "v": torch.float64},
    "unlike dtypes": {"k": torch.bfloat16},
    "many queries": {"q": torch.zeros(2, 9, 17, 64)},
    "heads that do not divide": {"q": torch.zeros(2, 8, 1, 64)},
    "no batch": {"q": torch.zeros(9, 1, 64)},
    "one batch for all": {"q": torch.zeros(1, 9, 1, 64)},
    "stepped rows": {"k": torch.zeros(2, 3, 129, 128)[..., ::2]},
    "segments": {"segments": torch.zeros(2, 129, dtype=torch.int64)},
    "a mask of numbers": {"mask": torch.zeros(2, 1, 1, 129)},
    "a mask of other sizes": {"mask": torch.zeros(2, 1, 1, 128, dtype=torch.bool)},
    "a wider bias": {"q": torch.bfloat16, "k": torch.bfloat16, "v": torch.bfloat16, "bias": torch.zeros(129)},
    "wider sinks": {"sinks": torch.zeros(9, dtype=torch.float64)},
    "a start for each": {"start": torch.zeros(2, dtype=torch.int64)},
    "a score that others can reach": {"masked": -1e4},
    "a score that rounds to infinity": {"q": torch.bfloat16, "k": torch.bfloat16, "v": torch.bfloat16, "masked": LOW[torch.float32]},
    "too few slopes": {"slopes": [1.0]},
}


@pytest.mark.parametrize("what", REFUSED)
def test_it_refuses(what: str) -> None:
    given = made(SIZES["decode"], torch.float32, "nothing")
    assert CPP.accepts(**given)
    for name, change in REFUSED[what].items():
        given[name] = given[name].to(change) if isinstance(change, torch.dtype) else change
    assert not CPP.accepts(**given)


def test_sizes_that_only_the_run_knows_are_checked() -> None:
    given = made(SIZES["decode"], torch.float32, "mask (B,1,1,K)")
    for name, words in (("v", "there are 129 keys and 128 values"), ("mask", "mask has 128 where 129 are attended to")):
        short = given[name].narrow(2 if name == "v" else 3, 0, 128)
        with pytest.raises(RuntimeError, match=words):
            KERNEL(**{**given, name: short})


# --- in a graph ---------------------------------------------------------------------------------------


def _attends(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True) + 1


def test_it_is_lowered_to() -> None:
    given = made(SIZES["decode"], torch.bfloat16, "mask (B,1,1,K)")
    args = [given[n] for n in ("q", "k", "v", "mask")]
    with torch.no_grad():
        got = torch.compile(_attends, backend="hfgraph", options={"kernels": {"attention": "cpp"}, "strict": True})(*args)
        del given["scale"]
        assert torch.equal(got, KERNEL(**given, scale=8**-1.0) + 1)


WINS: dict[str, tuple[bool, Size, torch.dtype]] = {
    "a query, a cache": (True, Size(2, 9, 3, 1, 128, 64, 64), torch.bfloat16),
    "float32": (True, Size(2, 9, 3, 1, 128, 64, 64), torch.float32),
    "float32, a short cache": (False, Size(2, 9, 3, 1, 127, 64, 64), torch.float32),
    "float32, no groups": (False, Size(2, 9, 9, 1, 512, 64, 64), torch.float32),
    "more queries": (False, Size(2, 9, 3, 4, 512, 64, 64), torch.bfloat16),
}


@pytest.mark.parametrize("what", WINS)
def test_it_is_picked_unasked_where_it_wins(what: str) -> None:
    wins, size, dtype = WINS[what]
    given = made(size, dtype, "nothing")
    assert CPP.accepts(**given) and CPP.wins(**given) is wins
    with torch.no_grad():
        assert _lowered(given) == (1 if wins else 0)
    assert _lowered({**given, "q": given["q"].requires_grad_()}) == 0, "in training the reference is differentiated and fused"


def _lowered(given: dict[str, Any]) -> int:
    """Calls of the kernel after lowering a graph of one call of the op."""
    args = tuple(given[n] for n in ("q", "k", "v"))
    gm = make_fx(lambda q, k, v: OP(q, k, v, scale=given["scale"]), pre_dispatch=True, tracing_mode="fake")(*args)
    for node, arg in zip(gm.graph.find_nodes(op="placeholder"), args, strict=True):
        node.meta["val"].requires_grad_(arg.requires_grad)
    assert lower(gm, {}) == len(gm.graph.find_nodes(op="call_function", target=KERNEL))
    return len(gm.graph.find_nodes(op="call_function", target=KERNEL))


def test_with_a_growing_cache_nothing_is_fixed() -> None:
    def attends(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True) + 1

    compiled = torch.compile(attends, backend="hfgraph", options={"inductor": False, "strict": True, "kernels": {"attention": "cpp"}})
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        for keys in (130, 131, 700):
            given = made(Size(2, 9, 3, 1, keys, 64, 64), torch.bfloat16, "nothing")
            for name in ("k", "v"):
                torch._dynamo.mark_dynamic(given[name], 2)
            got = compiled(given["q"], given["k"], given["v"])
            assert torch.equal(got, KERNEL(**{**given, "scale": 0.125}) + 1)


def test_without_a_compiler_it_is_refused_only_where_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hfgraph.kernels.attention.cpp.problem", lambda: "there is no C++ compiler")
    given = made(SIZES["decode"], torch.bfloat16, "mask (B,1,1,K)")
    args = [given[n] for n in ("q", "k", "v", "mask")]
    options: dict[str, Any] = {"inductor": False, "strict": True}
    with torch.no_grad():
        assert torch.compile(_attends, backend="hfgraph", options=options)(*args).shape == (2, 9, 1, 64)
        torch._dynamo.reset()
        with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match=r"KernelRefused: .* cannot run here: there is no C"):
            torch.compile(_attends, backend="hfgraph", options={**options, "kernels": {"attention": "cpp"}})(*args)
    with pytest.raises(RuntimeError, match="there is no C"):
        CPP.load()(**given)


# --- building -----------------------------------------------------------------------------------------


def _source(folder: Path, text: str) -> Path:
    path = folder / "made_up.cpp"
    path.write_text(text)
    return path


def test_what_keeps_a_source_from_loading_is_said(tmp_path: Path) -> None:
    assert "does not compile" in (native.problem(_source(tmp_path, "int f() { return nonsense; }")) or "")
    native.problem.cache_clear()
    assert "nonsense" in (native.problem(_source(tmp_path, "int f() { return nonsense; }")) or "")
    native.problem.cache_clear()
    assert "does not load" in (native.problem(_source(tmp_path, "int gone(); int f() { return gone(); }")) or "")
    native.problem.cache_clear()
    with config.patch({"cpp.cxx": ("no_such_compiler",)}):
        assert native.problem(_source(tmp_path, "int f() { return 1; }")) == "there is no C++ compiler (hfgraph doctor says more)"
    native.problem.cache_clear()


def test_a_library_is_built_once(tmp_path: Path) -> None:
    source = _source(tmp_path, "int f() { return 1; }")
    first = Path(native._built(source))
    built = first.stat().st_mtime_ns
    assert Path(native._built(source)) == first and first.stat().st_mtime_ns == built
    assert Path(native._built(_source(tmp_path, "int f() { return 2; }"))) != first
    with config.patch({"cpp.march": "x86-64"}):
        assert Path(native._built(source)) != first


# --- sabotage -----------------------------------------------------------------------------------------

# Attribute -> the arguments as a kernel that misreads it would take them; some setting must notice each.
WRONG: dict[str, Any] = {
    "mask": lambda g: {**g, "mask": g["mask"].roll(1, -1) if g["mask"].shape[-1] > 1 else ~g["mask"]},
    "bias": lambda g: {**g, "bias": g["bias"] * 1.03},
    "start": lambda g: {**g, "start": g["start"] + 1},
    "offset": lambda g: {**g, "offset": g["offset"] + 1},
    "left": lambda g: {**g, "left": g["left"] - 1},
    "right": lambda g: {**g, "right": g["right"] + 1},
    "chunk": lambda g: {**g, "chunk": g["chunk"] - 1},
    "softcap": lambda g: {**g, "softcap": g["softcap"] * 1.03},
    "sinks": lambda g: {**g, "sinks": g["sinks"].flip(0)},
    "slopes": lambda g: {**g, "slopes": g["slopes"][::-1]},
    "masked": lambda g: {**g, "masked": None},
    "scale": lambda g: {**g, "scale": g["scale"] * 1.03},
}


@every_dtype
@pytest.mark.parametrize("attribute", WRONG)
def test_a_kernel_that_misreads_an_attribute_is_caught(attribute: str, dtype: torch.dtype) -> None:
    caught = []
    for setting in SETTINGS:
        given = made(SIZES["odd"], dtype, setting)
        if attribute in given:
            caught.append(bool(faults(KERNEL(**WRONG[attribute](given)), given)))
    assert caught and any(caught), f"no setting notices a wrong {attribute}"


def test_the_judge_notices_a_little() -> None:
    given = made(SIZES["decode"], torch.float32, "nothing")
    got = KERNEL(**given)
    assert not faults(got, given)
    assert faults(got * (1 + 1e-4), given) and faults(got.transpose(0, 1).contiguous().transpose(0, 1), given)


def test_hfgraph_is_what_is_tested() -> None:
    assert CPP.module == "hfgraph.kernels.attention.cpp" and Path(hfgraph.__file__).parent in Path(native.__file__).parents
