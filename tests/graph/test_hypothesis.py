"""A search for programs that the engine gets wrong: around every rule's pattern, whatever the rule."""

from __future__ import annotations

import dataclasses
import zlib
from typing import Any

import hypothesis
import pytest
import torch
from captured import cloned, differences, gradients
from hypothesis import HealthCheck, Phase, given, settings
from strategies import CHANGES, OTHER_SIZES, Change, Copy, Program, programs
from torch import Tensor
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from hfgraph.graph.alias import Aliases
from hfgraph.graph.canonical import tidy
from hfgraph.graph.capture import copied
from hfgraph.graph.cse import ValueNumbers
from hfgraph.graph.functional import _Sweep
from hfgraph.graph.rewrite import apply_rules
from hfgraph.graph.rule import Rule
from hfgraph.kernels import all_ops
from hfgraph.kernels.rms_norm import rms_norm
from hfgraph.options import Options
from hfgraph.pipeline import Context, run
from hfgraph.rewrites import all_rules

all_ops()
RULES = {r.name: dataclasses.replace(r, where=None) for r in all_rules() if isinstance(r, Rule)}  # what `where` asks for lies outside the pattern
CONTEXT = Context(Options())
EXAMPLES = 36  # for each rule
SEARCH = settings(
    max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow]
)


def rewritten(program: Program) -> tuple[GraphModule, GraphModule, list[str]]:
    """The captured graph, the canonical one with every rule applied, or only the program's own, and the names of those that fired."""
    fired: list[str] = []
    gm = program.graph()
    before = copied(gm)
    if program.all_rules:
        run(gm, CONTEXT, after=lambda _, done: fired.extend(e.rule for e in done.applied))
    else:
        tidy(gm)
        fired += [e.rule for e in apply_rules(gm, [program.rule]).applied]
        gm.graph.lint()
    gm.recompile()
    return before, gm, fired


def runs(function: Any, args: list[Tensor]) -> bool:
    """Whether PyTorch itself can run it: it refuses, for one, to write into a leaf that wants a gradient."""
    try:
        function(*cloned(args))
    except RuntimeError:
        return False
    return True


def wrong(program: Program, fired: list[str] | None = None) -> str:
    """What the rewritten graph of a program does differently from the program: nothing, where all is well."""
    args: Any = program.tensors()
    if not runs(program, args):
        hypothesis.reject()
    before, after, names = rewritten(program)
    if fired is not None:
        fired += names
    found = differences(program, after, args, strides=False) + wrong_gradients(program, after, args)
    if program.symbolic:
        other = program.tensors(OTHER_SIZES)
        if runs(before, other):
            found += [f"{f}, at other sizes" for f in differences(before, after, other, strides=False)]
    return "; ".join(found)


def wrong_gradients(program: Program, after: GraphModule, args: list[Tensor]) -> list[str]:
    """Which results have a history, and what it gives. The order in which equal terms are added is autograd's, hence the tolerance."""
    if not program.grad:
        return []
    one, two = ([t.requires_grad for t in tree_leaves(f(*cloned(args)))] for f in (program, after))
    if one != two:
        return [f"results with a history: {one} and {two}"]
    try:
        wanted = gradients(program, args)
    except RuntimeError:  # a value that the backward needs was written: eager refuses
        return []
    found = []
    for i, (w, g) in enumerate(zip(wanted, gradients(after, args), strict=True)):
        if (w is None) != (g is None):
            found.append(f"gradient {i}: {'none' if w is None else 'one'} and {'none' if g is None else 'one'}")
        elif w is not None and g is not None and not close(program, w, g):
            found.append(f"gradient {i} is off by {(w - g).abs().max().item():.2g} of {w.abs().max().item():.2g}")
    return found


def close(program: Program, a: Tensor, b: Tensor) -> bool:
    """Equal, or within a few roundings of the coarsest dtype that the program computes in."""
    finite = a.isfinite() & b.isfinite()
    if not torch.equal(a.isfinite(), b.isfinite()):
        return False
    rounds = any(c.what == "round" for copy in program.copies for c in copy.changes)
    dtypes = {*program.dtypes, *(d for d in program.attributes(Copy()).values() if isinstance(d, torch.dtype)), *([torch.bfloat16] if rounds else [])}
    difference, largest = (a.double() - b.double())[finite].abs(), a.double()[finite].abs()
    return bool(not finite.any() or difference.max() <= 8 * max(torch.finfo(d).eps for d in dtypes) * largest.max().clamp_min(1e-30))


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")  # F.rms_norm, slower but right
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_programs_around_a_rule_keep_their_function(rule: Rule) -> None:
    fired: list[str] = []

    @hypothesis.seed(zlib.crc32(rule.name.encode()))  # without it every rule would meet the same programs
    @SEARCH
    @given(programs(rule))
    def search(program: Program) -> None:
        found = wrong(program, fired)
        assert not found, f"around rule {rule.name}: {found}"

    search()
    assert rule.name in fired, "the search never came upon a program that the rule rewrites"


# --- the search finds what is wrong -------------------------------------------------------------------


def found_by_search(rule: Rule, **fixed: Any) -> Program:
    """The first program that comes out wrong; an error of the engine's is one, too. What is `fixed` shortens the search."""

    def is_wrong(program: Program) -> bool:
        try:
            return bool(wrong(program))
        except (RuntimeError, AssertionError):
            return True

    search = settings(SEARCH, max_examples=400, phases=[Phase.generate])
    return hypothesis.find(programs(rule, symbolic=False).map(lambda p: dataclasses.replace(p, **fixed)), is_wrong, settings=search)


def _half_in_float32(x: Tensor, eps: float) -> Tensor:
    """Wrong in float16 alone."""
    half = x.dtype == torch.float16
    return rms_norm(x, None, eps, compute_dtype=torch.float32 if half else None, out_dtype=torch.float16 if half else None)


def _cast_forgotten(x: Tensor, eps: float, compute: Any, scale: Any, dtype: Any, divide: int) -> Tensor:
    """Wrong where the values are divided by the root."""
    return rms_norm(x, None, eps, compute_dtype=compute, scale_dtype=scale, round_dtype=dtype, divide=0)


def _wrong_sum(**given: Any) -> Any:
    """Wrong in the sign of a zero alone."""
    normed, total = RULES["add_rms_norm"].replacement(**given)
    return normed, total + 0.0


BROKEN = {
    "wrong in one dtype": ("rms_norm", _half_in_float32),
    "wrong for one switch": ("rms_norm_round", _cast_forgotten),
    "wrong in the sign of zero": ("add_rms_norm", _wrong_sum),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_is_found(name: str) -> None:
    of, replacement = BROKEN[name]
    broken = dataclasses.replace(RULES[of], replacement=replacement)
    program = found_by_search(broken)
    assert wrong_on(RULES[of], program) == "", "the sound rule is right on the same program"


def wrong_on(rule: Rule, program: Program) -> str:
    return wrong(dataclasses.replace(program, rule=rule))


SABOTAGE: dict[str, tuple[str, Any, str, Any]] = {
    "writes in between are not seen by the matcher": ("rms_norm", Aliases, "writes", lambda self, nodes: []),
    "in-place operators lose their other readers": (
        "rms_norm",
        _Sweep,
        "read_after",
        lambda self, node, x, read_after=_Sweep.read_after: read_after(self, node, x) & {x},
    ),
    "grad regions are one": ("rms_norm", ValueNumbers, "region", lambda self, node: None),
    "views are storage of their own": ("rms_norm", Aliases, "roots", lambda self, node: frozenset([node])),
}


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")
@pytest.mark.parametrize("name", SABOTAGE)
def test_a_broken_engine_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    of, owner, method, broken = SABOTAGE[name]
    monkeypatch.setattr(owner, method, broken)
    program = found_by_search(RULES[of], computed="in-place" in name, grad="grad" in name)
    monkeypatch.undo()
    assert wrong(program) == "", "the sound engine is right on the same program"


def test_a_sound_rule_is_not_found() -> None:
    with pytest.raises(hypothesis.errors.NoSuchExample):
        hypothesis.find(programs(RULES["rms_norm"]), lambda p: bool(wrong(p)), settings=settings(SEARCH, max_examples=20))


def test_every_change_can_be_seen() -> None:
    """No change is a name only: each makes another graph somewhere along a pattern."""
    plain = Program(RULES["rms_norm_cast_input"], computed=True)
    longer = Program(RULES["rms_norm_upcast_inside"], casts=(torch.float64,), computed=True)
    for what in CHANGES:
        changed = [dataclasses.replace(p, copies=(Copy((Change(at, what),)),)) for p in (plain, longer) for at in range(6)]
        assert any(str(c.graph().graph) not in (str(plain.graph().graph), str(longer.graph().graph)) for c in changed), what
