"""What every op must hold, derived from the op alone: adding an op adds its tests. Each check is shown to fail on a wrong op."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import pytest
import sympy
import torch
from captured import cloned, gradients, same
from rule_cases import DTYPES, TOLERANCE, Case, cases, coarsest, error, judge, parameters
from torch import SymInt, Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor.placement_types import Partial, Replicate, Shard
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.utils._pytree import tree_leaves, tree_map

from hfgraph.errors import InvalidOp
from hfgraph.graph.inputs import SIZES, Dtype, Inputs, Scalar
from hfgraph.graph.op import OPS, Cost, Implementation, Op, op
from hfgraph.kernels import all_ops

ALL = dict(all_ops())
every_op = pytest.mark.parametrize("an_op", ALL.values(), ids=ALL)
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
Check = Callable[[Op, torch.dtype], Iterator[str]]
SMALL = {"B": 2, "T": 2, "H": 2, "D": 3}
WHOLE = (1.0,)


@cache
def own_cases(an_op: Op, dtype: torch.dtype, scales: tuple[float, ...] | None = None, small: bool = False) -> tuple[Case, ...]:
    """All settings of the op's dtypes together (see `rule_cases.settings`), and each of them alone, at every scale."""
    inputs, sizes = an_op.inputs, SMALL if small else SIZES
    found = list(cases(inputs, dtype, scales=scales, shape=sizes))
    other = torch.bfloat16 if dtype is torch.float32 else torch.float32
    dtypes = [n for n, a in inputs.items() if isinstance(a, Dtype)]
    for name in dtypes:
        setting = {n: other if n == name else None for n in dtypes}
        found.append(Case(f"{name} alone {other}", {**inputs.make(dtype, sizes=sizes), **setting}))
    return tuple(found)


def tensors(value: Any) -> list[Tensor]:
    return [t for t in tree_leaves(value) if isinstance(t, Tensor)]


def trainable(tensor: Tensor) -> Tensor:
    """The tensor, with a gradient where it can have one."""
    return tensor.requires_grad_(tensor.is_floating_point())


# --- values -------------------------------------------------------------------------------------------


def equals_its_reference(an_op: Op, dtype: torch.dtype) -> Iterator[str]:
    """Bit for bit, and in strides, at every scale, with optional tensors there and not there."""
    for case in own_cases(an_op, dtype):
        if not same(an_op.target(**case.arguments), an_op.reference(**case.arguments)):
            yield case.name


def is_near_float64(an_op: Op, dtype: torch.dtype) -> Iterator[str]:
    """Within the tolerance of the coarsest dtype on the way."""
    for case in own_cases(an_op, dtype):
        got = an_op.target(**case.arguments)
        off = error(got, judge(an_op.reference, case))
        if in_range(case, dtype) and not off <= TOLERANCE[coarsest(case, got)]:
            yield f"{case.name}: {off:.1e} from float64"


def in_range(case: Case, dtype: torch.dtype) -> bool:
    """float16 squares neither 1e3 nor 1e-3: there only the cases that compute in float32 throughout have a meaning."""
    return dtype is not torch.float16 or "scale" not in case.name or "scale 1," in case.name or "setting 2" in case.name


def leaves_its_inputs_alone(an_op: Op, dtype: torch.dtype) -> Iterator[str]:
    """It writes nothing, returns nothing that shares storage, and its schema says so."""
    for case in own_cases(an_op, dtype, WHOLE):
        given = cloned(dict(case.arguments))
        results = tensors(an_op.target(**given))
        if not same(list(given.values()), list(case.arguments.values())):
            yield f"{case.name}: an input is written"
        storages = [t.untyped_storage()._cdata for t in (*tensors(given), *results)]
        if len(set(storages)) != len(storages):
            yield f"{case.name}: a result shares storage with an input or another result"
    schema = getattr(an_op.target, "_schema", None)
    if schema is not None and any(a.alias_info is not None for a in (*schema.arguments, *schema.returns)):
        yield f"the schema is not functional: {schema}"


# --- fake values --------------------------------------------------------------------------------------

LAYOUTS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "dense": lambda t: t,
    "transposed": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "last dim first": lambda t: t.movedim(-1, 0).contiguous().movedim(0, -1),
    "every other": lambda t: torch.stack([t, t], -1)[..., 0],
    "one row for all": lambda t: t[:1].expand(t.shape),
}


def agrees_on_fakes(an_op: Op, dtype: torch.dtype) -> Iterator[str]:
    """Shape, dtype and strides, for dense and strided inputs."""
    for case, (name, lay) in product(own_cases(an_op, dtype, WHOLE), LAYOUTS.items()):
        given = {n: lay(a) if isinstance(a, Tensor) and a.ndim > 1 else a for n, a in case.arguments.items()}
        mode = FakeTensorMode()
        with mode:
            faked = tensors(an_op.target(**tree_map(lambda a, m=mode: m.from_tensor(a) if isinstance(a, Tensor) else a, given)))
        real = tensors(an_op.reference(**given))
        if [(f.shape, f.dtype, f.stride()) for f in faked] != [(r.shape, r.dtype, r.stride()) for r in real]:
            yield f"{case.name}, {name}"


def symbolic(case: Case, inputs: Inputs) -> tuple[dict[str, Any], ShapeEnv, dict[sympy.Symbol, int]]:
    """The case with a symbol for every size that may vary, and what each symbol stands for."""
    env = ShapeEnv(duck_shape=True, specialize_zero_one=True)
    mode = FakeTensorMode(shape_env=env)
    given = {}
    for name, a in case.arguments.items():
        if isinstance(a, Tensor):
            fixed = inputs.tensors[name].fixed
            context = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.STATIC if f else DimDynamic.DUCK for f in fixed])
            a = mode.from_tensor(a, symbolic_context=context, source=torch._dynamo.source.ConstantSource(name))
        given[name] = a
    sizes = [(s, r) for n, a in case.tensors.items() for s, r in zip(given[n].shape, a.shape, strict=True)]
    values = {s.node.expr: r for s, r in sizes if isinstance(s, SymInt)}
    return given, env, values


def takes_symbolic_sizes(an_op: Op, dtype: torch.dtype) -> Iterator[str]:
    """Traced with every size a symbol it fixes none of them, and gives the reference's sizes."""
    for case in own_cases(an_op, dtype, WHOLE):
        given, env, values = symbolic(case, an_op.inputs)
        with tensors(list(given.values()))[0].fake_mode:
            results = tensors(an_op.target(**given))
        if env.guards or env.replacements:
            yield f"{case.name}: a guard on a size: {[str(g.expr) for g in env.guards]}"
        for got, wanted in zip(results, tensors(an_op.reference(**case.arguments)), strict=True):
            if [int(number(s).subs(values)) for s in got.shape] != list(wanted.shape):
                yield f"{case.name}: {got.shape} for {wanted.shape}"


def number(value: Any) -> sympy.Expr:
    """A size, a count or an expression of them, for sympy."""
    return value.node.expr if isinstance(value, SymInt) else sympy.sympify(value)


# --- gradients ----------------------------------------------------------------------------------------


def has_its_references_gradients(an_op: Op, dtype: torch.dtype) -> Iterator[str]:
    for case in own_cases(an_op, dtype):
        given = [trainable(t) for t in cloned(list(case.tensors.values()))]
        wanted, got = (gradients(case.function(f), given) for f in (an_op.reference, an_op.target))
        if any(g is None for g in got) or not all(torch.equal(torch.nan_to_num(w), torch.nan_to_num(g)) for w, g in zip(wanted, got, strict=True)):
            yield case.name


def passes_gradcheck(an_op: Op, dtype: torch.dtype) -> Iterator[str]:
    """Against finite differences, in float64, with every dtype of the op float64 or left out."""
    for case in own_cases(an_op, torch.float64, WHOLE, True) if dtype is torch.float64 else ():
        if "alone" not in case.name:
            given = [trainable(t) for t in cloned(list(case.tensors.values()))]
            if not torch.autograd.gradcheck(case.function(an_op.target), given, raise_exception=False, fast_mode=True):
                yield case.name


# --- in graphs ----------------------------------------------------------------------------------------


def targets(gm: GraphModule) -> list[Any]:
    return [n.target for n in gm.graph.nodes if n.op == "call_function"]


def is_plain(target: Any) -> bool:
    """ATen's, or one of the products for which ATen has no operator that can be traced: of hfgraph's, but no op that rules see."""
    return getattr(target, "namespace", "aten") == "aten" or target is torch.ops.hfgraph.grouped_mm.default


def is_whole_before_dispatch_and_inlined_after(an_op: Op, dtype: torch.dtype) -> Iterator[str]:
    """hfgraph's passes see one node; AOTAutograd and Inductor see plain ATen."""
    for case in own_cases(an_op, dtype, WHOLE):
        given = list(case.tensors.values())
        whole, inlined = (make_fx(case.function(an_op.target), pre_dispatch=p)(*given) for p in (True, False))
        if [t for t in targets(whole) if getattr(t, "namespace", "") == "hfgraph"] != [ALL[an_op.name].target]:
            yield f"{case.name}: not one node in a pre-dispatch graph"
        if not targets(inlined) or not all(is_plain(t) for t in targets(inlined)):
            yield f"{case.name}: not plain ATen after dispatch"
        if not same(inlined(*given), an_op.reference(**case.arguments)):
            yield f"{case.name}: the inlined graph gives something else"


# --- cost ---------------------------------------------------------------------------------------------


def costs_what_it_should(an_op: Op, dtype: torch.dtype) -> Iterator[str]:
    """Positive, an expression of the sizes where these are symbols, growing with each of them, never below what it writes."""
    for case in own_cases(an_op, dtype, WHOLE):
        plain = an_op.cost(*case.arguments.values())
        written = sum(t.numel() * t.element_size() for t in tensors(an_op.reference(**case.arguments)))
        if not (plain.flops > 0 and plain.bytes >= written):
            yield f"{case.name}: {plain}, but the results alone take {written} bytes"
        given, env, values = symbolic(case, an_op.inputs)
        formula = an_op.cost(*given.values())
        if env.guards or env.replacements:
            yield f"{case.name}: the formula fixes a size"
        for what in ("flops", "bytes"):
            expression = number(getattr(formula, what))
            if expression.subs(values) != getattr(plain, what):
                yield f"{case.name}: {what} is {expression} for symbols, {getattr(plain, what)} for numbers"
            for symbol in values:
                if not expression.subs({**values, symbol: values[symbol] + 1}) > expression.subs(values):
                    yield f"{case.name}: {what} = {expression} does not grow with {symbol}"


# --- sharding -----------------------------------------------------------------------------------------


def shards(value: Tensor, placement: Any, count: int) -> list[Tensor]:
    """What each of `count` ranks holds of a tensor."""
    if isinstance(placement, Shard):
        parts = value.tensor_split(count, placement.dim)
        return list(parts)
    if isinstance(placement, Partial):
        rest = [torch.randn_like(value) for _ in range(count - 1)]
        return [value - sum(rest, torch.zeros_like(value)), *rest]
    return [value] * count


def recombined(parts: list[Tensor], placement: Any) -> Tensor | None:
    """The whole that ranks hold parts of; None where replicas differ."""
    if isinstance(placement, Shard):
        return torch.cat(parts, placement.dim)
    if isinstance(placement, Partial):
        return torch.stack(parts).sum(0)
    return parts[0] if all(same(parts[0], p, strides=False) for p in parts) else None


def holds_on_shards(function: Callable[..., Any], case: Case, placements: tuple[Any, Any], count: int) -> bool:
    """op(shards), put together, is op(whole); in float64."""
    ins, outs = placements
    names = list(case.arguments)
    placed = dict(zip([n for n in names if case.arguments[n] is None or isinstance(case.arguments[n], Tensor)], ins, strict=False))
    held = {n: shards(a, placed[n], count) if isinstance(a, Tensor) else [a] * count for n, a in case.arguments.items()}
    try:
        results = [tensors(function(**{n: held[n][rank] for n in names})) for rank in range(count)]
    except RuntimeError:  # shards that do not fit together
        return False
    whole = [recombined(list(parts), o) for parts, o in zip(zip(*results, strict=True), outs, strict=True)]
    wanted = tensors(function(**case.arguments))
    return all(w is not None and w.shape == v.shape and torch.allclose(w, v, rtol=1e-10, atol=1e-12) for w, v in zip(whole, wanted, strict=True))


def sharding_cases(an_op: Op) -> list[Case]:
    """With and without optional tensors; optional dtypes left out. Sizes are odd, so that 2 and 3 shards are uneven."""
    return [c for c in own_cases(an_op, torch.float64, WHOLE) if "setting 0" in c.name]


def by_letter(an_op: Op) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """For each dim of the first tensor: every tensor that has the letter is sharded there, the results where it stands in the first."""
    described = an_op.inputs.tensors
    first = next(iter(described.values()))
    outs = tensors(an_op.reference(**own_cases(an_op, torch.float32, WHOLE)[0].arguments))
    for at, letter in enumerate(first.names):
        ins = tuple(Shard(d.names.index(letter)) if letter in d.names else Replicate() for d in described.values())
        if all(o.ndim > at for o in outs):
            yield letter, (ins, tuple(Shard(at) for _ in outs))


def shards_as_its_table_says(an_op: Op, dtype: torch.dtype) -> Iterator[str]:
    """Every entry holds for 2 and 3 shards; every dim that could be sharded without communication has an entry."""
    if dtype is not torch.float64:
        return
    every = sharding_cases(an_op)
    for (name, placements), count, case in product(an_op.shardings.items(), (2, 3), every):
        if not holds_on_shards(an_op.target, case, placements, count):
            yield f"sharding {name!r} does not hold on {count} shards ({case.name})"
        replicated = (placements[0], tuple(Replicate() for _ in placements[1]))
        if any(isinstance(p, Shard) for p in placements[0]) and holds_on_shards(an_op.target, case, replicated, count):
            yield f"sharding {name!r}: replicated results hold, too"
    for letter, placements in by_letter(an_op):
        holds = all(holds_on_shards(an_op.target, c, placements, n) for c in every for n in (2, 3))
        if holds and placements not in [(tuple(i), tuple(o)) for i, o in an_op.shardings.values()]:
            yield f"the table lacks {letter!r}, which holds: add shardings={{{letter.lower()!r}: {placements}}}"


# --- implementations ----------------------------------------------------------------------------------


def guards_stay_bool(an_op: Op, dtype: torch.dtype) -> Iterator[str]:
    """`when` answers True or False from sizes, symbolic ones included, without fixing any."""
    for case, implementation in product(own_cases(an_op, dtype, WHOLE), an_op.implementations.values()):
        given, env, _ = symbolic(case, an_op.inputs)
        for what, arguments in (("numbers", case.arguments), ("symbols", given)):
            try:
                answers = [implementation.when(**arguments), implementation.when(*arguments.values())]
            except Exception as e:
                yield f"{implementation.name}, {case.name}: {type(e).__name__} for {what}: {e}"
                continue
            if any(type(a) is not bool for a in answers) or answers[0] is not answers[1]:
                yield f"{implementation.name}, {case.name}: {answers} for {what}; by name and by position it must give one bool"
        if env.guards or env.replacements:
            yield f"{implementation.name}, {case.name}: a guard on a size: {[str(g.expr) for g in env.guards]}"


# --- the tests ----------------------------------------------------------------------------------------

CHECKS: tuple[Check, ...] = (
    equals_its_reference,
    is_near_float64,
    leaves_its_inputs_alone,
    agrees_on_fakes,
    takes_symbolic_sizes,
    has_its_references_gradients,
    passes_gradcheck,
    is_whole_before_dispatch_and_inlined_after,
    costs_what_it_should,
    shards_as_its_table_says,
    guards_stay_bool,
)
FLOAT64_ALONE = (passes_gradcheck, shards_as_its_table_says)


@every_dtype
@every_op
@pytest.mark.parametrize("check", CHECKS, ids=[c.__name__ for c in CHECKS])
def test_it(check: Check, an_op: Op, dtype: torch.dtype) -> None:
    found = list(check(an_op, dtype))
    assert not found, f"op {an_op.name!r} in {dtype}: {len(found)} times not: {check.__name__.replace('_', ' ')}: {'; '.join(found[:3])}"


@every_op
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # opcheck looks at it inside of autograd functions
def test_opcheck(an_op: Op) -> None:
    """PyTorch's own check of a registration: schema, fakes, autograd, AOT dispatch with static and dynamic sizes."""
    for case in own_cases(an_op, torch.float32, WHOLE, True)[:4]:
        given = [trainable(a.clone()) if isinstance(a, Tensor) else a for a in case.arguments.values()]
        torch.library.opcheck(an_op.target, tuple(given))


# --- wrong ops ----------------------------------------------------------------------------------------


def _with(an_op: Op, **changes: Any) -> Op:
    return replace(an_op, implementations=dict(an_op.implementations), **changes)


def _result(change: Callable[[Tensor], Tensor]) -> Callable[[Op], Op]:
    """An op whose first result is changed."""

    def wrong(an_op: Op) -> Op:
        def target(*args: Any, **kwargs: Any) -> Any:
            result = an_op.target(*args, **kwargs)
            return (change(result[0]), *result[1:]) if isinstance(result, tuple | list) else change(result)

        return _with(an_op, target=target)

    return wrong


def _first(an_op: Op, change: Callable[[Tensor], Any]) -> Op:
    """An op that does something to its first tensor before it computes."""

    def target(**given: Any) -> Any:
        change(given[next(iter(an_op.inputs.tensors))])
        return an_op.target(**given)

    return _with(an_op, target=target)


def _returns_an_input(an_op: Op) -> Op:
    x = next(iter(an_op.inputs.tensors))
    return _with(an_op, target=lambda **given: (an_op.target(**given), given[x].view(-1)))


def _guard(when: Callable[..., Any]) -> Callable[[Op], Op]:
    def wrong(an_op: Op) -> Op:
        made = Implementation(an_op.name, "wrong", "cpu", "", when, False, an_op.target)
        return replace(an_op, implementations={"wrong": made})

    return wrong


def _sharded(an_op: Op) -> Op:
    """Every dim claimed, the normalised one included."""
    return _with(an_op, shardings=dict(by_letter(an_op)))


def _cost(change: Callable[[Cost], Cost]) -> Callable[[Op], Op]:
    return lambda an_op: _with(an_op, cost=lambda *args: change(an_op.cost(*args)))


def _fixes_a_size(x: Tensor) -> Tensor:
    return x * 1 if x.shape[0] == 3 else x * 2


WRONG: dict[str, tuple[Check, Callable[[Op], Op]]] = {
    "a thousandth off": (equals_its_reference, _result(lambda t: t * 1.001)),
    "zeros": (is_near_float64, _result(lambda t: t * 0)),
    "three per cent off": (is_near_float64, _result(lambda t: t * 1.04)),
    "other strides": (equals_its_reference, _result(lambda t: t.movedim(-1, 0).contiguous().movedim(0, -1))),
    "writes an input": (leaves_its_inputs_alone, lambda o: _first(o, lambda x: x.mul_(2))),
    "returns a view of an input": (leaves_its_inputs_alone, _returns_an_input),
    "returns one tensor twice": (leaves_its_inputs_alone, lambda o: _with(o, target=lambda **g: (lambda r: [r, r])(tensors(o.target(**g))[0]))),
    "fakes always contiguous": (agrees_on_fakes, _result(lambda t: t.contiguous())),
    "fakes always float64": (agrees_on_fakes, _result(lambda t: t.to(torch.complex64))),
    "asks for a size": (takes_symbolic_sizes, lambda o: _first(o, _fixes_a_size)),
    "cuts the gradient": (has_its_references_gradients, _result(lambda t: t.detach() * 1)),
    "doubles the gradient": (has_its_references_gradients, _result(lambda t: 2 * t - t.detach())),
    "triples the gradient": (passes_gradcheck, _result(lambda t: 3 * t - 2 * t.detach())),
    "inlined too early": (is_whole_before_dispatch_and_inlined_after, lambda o: _with(o, target=o.reference)),
    "inlined to something else": (is_whole_before_dispatch_and_inlined_after, _result(lambda t: t + 1)),
    "free": (costs_what_it_should, _cost(lambda c: Cost(0, c.bytes))),
    "writes for nothing": (costs_what_it_should, _cost(lambda c: Cost(c.flops, c.bytes // 100))),
    "cost of one size": (costs_what_it_should, _cost(lambda c: Cost(10**9, 10**9))),
    "cost falls": (costs_what_it_should, _cost(lambda c: Cost(10**9 - c.flops, c.bytes))),
    "false sharding": (shards_as_its_table_says, _sharded),
    "no sharding": (shards_as_its_table_says, lambda o: _with(o, shardings={})),
    "guard returns an int": (guards_stay_bool, _guard(lambda *_, **__: 1)),
    "guard fixes a size": (guards_stay_bool, _guard(lambda *a, **k: bool(next(iter((*a, *k.values()))).shape[0] == 3))),
    "guard by position only": (guards_stay_bool, _guard(lambda x, *_: True)),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_op_is_caught(name: str) -> None:
    check, wrong = WRONG[name]
    dtype = torch.float64 if check in FLOAT64_ALONE else torch.float32
    assert list(check(wrong(ALL["rms_norm"]), dtype)), f"{check.__name__} does not notice: {name}"


@pytest.mark.parametrize("check", CHECKS, ids=[c.__name__ for c in CHECKS])
def test_every_check_has_a_wrong_op(check: Check) -> None:
    assert check in [c for c, _ in WRONG.values()], f"add an op to WRONG that {check.__name__} catches"


def test_uneven_shards() -> None:
    parts = shards(torch.arange(SIZES["T"] * 2.0).reshape(SIZES["T"], 2), Shard(0), 3)
    assert [p.shape[0] for p in parts] == [2, 2, 1]
    whole = torch.randn(4, 3)
    for placement in (Shard(0), Shard(1), Partial(), Replicate()):
        assert torch.allclose(recombined(shards(whole, placement, 3), placement), whole)
    assert recombined([whole, whole + 1], Replicate()) is None


# --- what an op must bring ----------------------------------------------------------------------------


def missing(an_op: Op) -> Iterator[str]:
    """What an op lacks to be tested, benchmarked, sharded and documented, and what to write."""
    names = parameters(an_op.reference)
    described = list(an_op.inputs)
    if not an_op.inputs.tensors:
        yield f"op {an_op.name!r} describes no tensor: write @op(inputs=Inputs({names[0]}='B T D', ...))"
    if described != names:
        gone = ", ".join(n for n in names if n not in described) or "an order"
        yield f"op {an_op.name!r} lacks a description of {gone}: write @op(inputs=Inputs({', '.join(f'{n}=...' for n in names)}))"
    if not an_op.shardings:
        yield f"op {an_op.name!r} has no sharding: write @op(shardings={{'batch': ((Shard(0), ...), (Shard(0),))}})"
    for name, (ins, outs) in an_op.shardings.items():
        if len(ins) != len(an_op.inputs.tensors) or not isinstance(outs, tuple):
            takes = f"{len(an_op.inputs.tensors)} placements for {', '.join(an_op.inputs.tensors)}"
            yield f"op {an_op.name!r}: sharding {name!r} needs a tuple of {takes}, and one of the results'"
    if described == names and an_op.inputs.tensors:
        try:
            cost = an_op.cost(*an_op.inputs.make().values())
        except TypeError as e:
            cost = None
            yield f"op {an_op.name!r}: its cost cannot be called ({e}): write @op(cost=lambda {', '.join(names)}: Cost(flops=..., bytes=...))"
        if cost is not None and not isinstance(cost, Cost):
            yield f"op {an_op.name!r}: its cost is {cost!r}: return Cost(flops=..., bytes=...)"
    if "Args:" not in (an_op.reference.__doc__ or ""):
        yield f"op {an_op.name!r} does not say what it computes: write a docstring with the formula and Args"
    if len(an_op.digest) != 64:
        yield f"op {an_op.name!r} has no digest of its source, which cache keys need"


@every_op
def test_nothing_is_missing(an_op: Op) -> None:
    assert not list(missing(an_op)), "\n".join(missing(an_op))


def _bare(x: Tensor, eps: float) -> Tensor:
    return x + eps


BARE = Op(
    "bare",
    _bare,
    lambda x, eps: Cost(x.numel(), x.numel()),
    Inputs(x="B D", eps=Scalar(1.0)),
    {"batch": ((Shard(0),), (Shard(0),))},
    ALL["rms_norm"].target,
    "0" * 64,
)
LACKING: dict[str, tuple[Op, str]] = {
    "a docstring": (BARE, "op 'bare' does not say what it computes: write a docstring with the formula and Args"),
    "inputs": (replace(BARE, inputs=Inputs()), "op 'bare' describes no tensor: write @op(inputs=Inputs(x='B T D', ...))"),
    "one input": (replace(BARE, inputs=Inputs(x="B D")), "op 'bare' lacks a description of eps: write @op(inputs=Inputs(x=..., eps=...))"),
    "an order": (replace(BARE, inputs=Inputs(eps=Scalar(1.0), x="B D")), "op 'bare' lacks a description of an order: write @op(inputs=Inputs(x=..., eps=...))"),
    "a sharding": (replace(BARE, shardings={}), "op 'bare' has no sharding: write @op(shardings={'batch': ((Shard(0), ...), (Shard(0),))})"),
    "placements": (
        replace(BARE, shardings={"batch": ((Shard(0), Shard(0)), Shard(0))}),
        "op 'bare': sharding 'batch' needs a tuple of 1 placements for x, and one of the results'",
    ),
    "a cost": (replace(BARE, cost=lambda x: Cost()), "write @op(cost=lambda x, eps: Cost(flops=..., bytes=...))"),
    "a Cost": (replace(BARE, cost=lambda x, eps: 3), "op 'bare': its cost is 3: return Cost(flops=..., bytes=...)"),
    "a digest": (replace(BARE, digest=""), "op 'bare' has no digest of its source, which cache keys need"),
}


@pytest.mark.parametrize("what", LACKING)
def test_what_is_missing_is_named_with_the_call_that_adds_it(what: str) -> None:
    lacking, sentence = LACKING[what]
    assert any(sentence in s for s in missing(lacking)), list(missing(lacking))


# --- definitions that are refused ---------------------------------------------------------------------


def _define(function: Callable[..., Any]) -> Op:
    return op(cost=lambda *_: Cost(), inputs=Inputs(x="B D"))(function)


def test_a_device_without_kernels_is_refused_before_anything_is_registered() -> None:
    for _ in range(2):
        with pytest.raises(InvalidOp) as raised:
            ALL["rms_norm"].impl("metal", device="mps", load=".metal", when=lambda *_, **__: True)
        assert str(raised.value) == "implementation 'metal' of op 'rms_norm' is for device 'mps'; expected one of cuda, cpu."
    assert "metal" not in ALL["rms_norm"].implementations


def test_cost_counts_what_is_written_in_its_own_dtype() -> None:
    x = torch.zeros(2, 8, dtype=torch.bfloat16)
    narrow, wide = (ALL["rms_norm"].cost(x, None, 1e-6, compute_dtype=torch.float32, out_dtype=d).bytes for d in (torch.bfloat16, torch.float32))
    assert (narrow, wide) == (2 * 32, 32 + 64)


def test_a_name_that_is_taken_is_refused() -> None:
    def rms_norm(x: Tensor) -> Tensor:
        return x * 2

    before = dict(OPS)
    with pytest.raises(InvalidOp) as raised:
        _define(rms_norm)
    assert str(raised.value) == "an op named 'rms_norm' exists already, in hfgraph.kernels.rms_norm."
    assert before == OPS


def test_a_function_without_a_schema_is_refused() -> None:
    def no_annotation(x):  # type: ignore[no-untyped-def]
        return x * 2

    def odd_type(x: Tensor, y: dict[str, int]) -> Tensor:
        return x * 2

    for function, words in ((no_annotation, "Parameter x must have a type annotation"), (odd_type, "Parameter y has unsupported type")):
        with pytest.raises(InvalidOp) as raised:
            _define(function)
        assert str(raised.value).startswith(f"op {function.__name__!r} cannot be given a schema: ") and words in str(raised.value)
        assert function.__name__ not in OPS


def test_an_implementation_name_that_is_taken_is_refused() -> None:
    for name in (*ALL["rms_norm"].implementations, "reference"):
        with pytest.raises(InvalidOp) as raised:
            ALL["rms_norm"].impl(name, device="cpu", load=".nowhere", when=lambda *_: True)
        assert str(raised.value) == f"op 'rms_norm' already has an implementation {name!r}; give the new one another name."


def test_arguments_by_name_with_defaults() -> None:
    for an_op in ALL.values():
        made = an_op.inputs.make()
        bound = an_op.bind(tuple(made.values())[: len(an_op.inputs.tensors) + 1], {})
        assert list(bound) == parameters(an_op.reference)
        assert same(an_op(**bound), an_op.reference(**bound))
    assert math.isclose(ALL["rms_norm"].bind((torch.ones(2, 3), None, 0.5), {})["offset"], 0.0)
