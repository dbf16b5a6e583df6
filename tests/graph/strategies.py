"""Random small programs around a rule's pattern: what may stand between its operators, beside them, and around them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from hfgraph.graph.inputs import Choice, Dtype, Scalar, Switch
from hfgraph.graph.rule import Rule

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SIZES = {"B": 2, "T": 3, "D": 8, "H": 4}
OTHER_SIZES = {**SIZES, "B": 4, "T": 5}

# What may happen at one call of a pattern. "in place" ones write values that others read.
CHANGES = (
    "commute", "again", "returned", "used", "view", "transpose", "copy", "same cast", "round", "no_grad", "detach", "respell",
    "add in place", "slice written", "input added to", "input's slice written",
)  # fmt: skip
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": lambda t: t,
    "transposed": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "every other": lambda t: torch.stack([t, t], -1)[..., 0],
    "part of a wider row": lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]],
    "one row for all": lambda t: t[:1].expand(t.shape),
}
_SWAPPED = frozenset({"mul", "add", "__mul__", "__add__", "multiply", "__radd__", "__rmul__"})


@dataclass(frozen=True)
class Change:
    """At the `at`-th call of a pattern, `what`; `which` input, where it is one that is written."""

    at: int
    what: str
    which: int = 0


@dataclass(frozen=True)
class Copy:
    """One occurrence of the pattern: its changes, whether it reads what the one before returned, and whether its numbers are others."""

    changes: tuple[Change, ...] = ()
    chained: bool = False
    other_numbers: bool = False


@dataclass(frozen=True)
class Program:
    """A function of a rule's tensors. Two programs with equal fields are equal functions: nothing in it is random."""

    rule: Rule = field(repr=False)
    copies: tuple[Copy, ...] = (Copy(),)
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)  # of the tensors, in turn
    casts: tuple[torch.dtype | None, ...] = (None,)  # of the rule's dtypes, in turn, or those of its own examples; None leaves one out
    absent: bool = False
    layout: str = "dense"
    rank: int = 3
    computed: bool = False  # the pattern reads sums, which no caller sees written, in place of the inputs
    grad: bool = False
    symbolic: bool = False
    all_rules: bool = True

    def tensors(self, sizes: dict[str, int] | None = None) -> list[Tensor]:
        """The rule's tensors, those that are there; with zeros of both signs among the numbers."""
        inputs = self.rule.inputs
        made = inputs.make(torch.float64, sizes=sizes or SIZES)
        found = []
        for i, name in enumerate(self.names):
            t = made[name].to(self.dtypes[i % len(self.dtypes)])
            t.view(-1)[0], t.view(-1)[1] = 0.0, -0.0
            if inputs.tensors[name].any_rank:
                while t.ndim > self.rank:
                    t = t[0]
                while t.ndim < self.rank:
                    t = torch.stack([t, t.flip(0)])
                t = LAYOUTS[self.layout](t)
            found.append(t.detach().requires_grad_(self.grad))
        return found

    @property
    def names(self) -> list[str]:
        return [n for n, d in self.rule.inputs.tensors.items() if not (d.optional and self.absent)]

    def attributes(self, copy: Copy) -> dict[str, Any]:
        """Everything but tensors: numbers, dtypes, and None for what is left out."""
        found: dict[str, Any] = dict.fromkeys(self.rule.inputs)
        dtypes = 0
        for name, a in self.rule.inputs.items():
            if isinstance(a, Dtype):
                chosen = self.casts[dtypes % len(self.casts)] if self.casts else a.example
                found[name] = chosen if chosen is not None or a.optional else torch.float32
                dtypes += 1
            elif isinstance(a, Switch):
                found[name] = 1 - a.example if copy.other_numbers else a.example
            elif isinstance(a, Choice):
                found[name] = a.options[-1] if copy.other_numbers else a.example
            elif isinstance(a, Scalar):
                found[name] = 0.0625 if copy.other_numbers else a.example
        return found

    def __call__(self, *given: Tensor) -> Any:
        values = [t + 0.25 for t in given] if self.computed else list(given)
        outputs: list[Any] = []
        for copy in self.copies:
            bound = {**self.attributes(copy), **dict(zip(self.names, values, strict=True))}
            if copy.chained and outputs:
                bound[self.names[0]] = tree_leaves(outputs[-1])[0]
            with _Disturbing(copy.changes, values) as disturbing:
                result = self.rule.pattern(**bound)
            outputs += [disturbing.extra, result]
        return outputs, [v.sin() for v in values]

    def graph(self) -> GraphModule:
        """As the backend captures it."""
        gm = make_fx(self, pre_dispatch=True, tracing_mode="symbolic" if self.symbolic else "fake")(*self.tensors())
        gm.recompile()
        return gm


class _Disturbing(TorchFunctionMode):
    """Sees every call that a pattern makes and does what is said for it, before, in between or afterwards."""

    def __init__(self, changes: tuple[Change, ...], inputs: list[Tensor]) -> None:
        super().__init__()
        self.changes = changes
        self.inputs = inputs
        self.calls = 0
        self.extra: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in ("__get__", "__set__", "size", "dim"):
            return func(*args, **kwargs)
        changes = [c for c in self.changes if c.at == self.calls]
        self.calls += 1
        whats = {c.what for c in changes}
        if "commute" in whats and name in _SWAPPED and not kwargs and all(isinstance(a, Tensor) for a in args[:2]):
            args = (args[1], args[0], *args[2:])
        if "respell" in whats:
            func, args = respelled(func, name, args)
        if "again" in whats:
            self.extra.append(self.first(func(*args, **kwargs)).cos())
        if "no_grad" in whats:
            with torch.no_grad():
                result = func(*args, **kwargs)
        else:
            result = func(*args, **kwargs)
        for change in changes:
            if isinstance(result, Tensor):
                result = self.after(change, result)
        return result

    @staticmethod
    def first(result: Any) -> Tensor:
        return tree_leaves(result)[0]

    def after(self, change: Change, t: Tensor) -> Tensor:
        written = self.inputs[change.which % len(self.inputs)]
        match change.what:
            case "returned":
                self.extra.append(t)
            case "used":
                self.extra.append(t.exp().amax(-1))
            case "view":
                t = t.unsqueeze(0).flatten(0, 1) if t.ndim > 1 else t.view(t.shape)
            case "transpose":
                t = t.transpose(0, -1).transpose(-1, 0)
            case "copy":
                t = t * 1 if change.which else t.clone()
            case "same cast":
                t = t.to(t.dtype)
            case "round":
                t = t.to(torch.bfloat16).to(t.dtype)
            case "detach":
                t = t.detach()
            case "add in place":
                t.add_(0.5)
            case "slice written":
                t[..., :1] = 0.75
            case "input added to":
                written.add_(0.5)
            case "input's slice written":
                written[..., 1:2].mul_(2)
            case _:
                pass
        return t


def respelled(func: Any, name: str, args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """The same call, as others write it."""
    x = args[0] if args else None
    if name in ("pow", "__pow__") and len(args) == 2 and args[1] == 2:
        return (lambda t: t * t), (x,)
    if name == "to" and len(args) == 2 and isinstance(args[1], torch.dtype):
        return (lambda t, d: t.type(d)), args
    if name == "sqrt":
        return (lambda t: t.pow(0.5)), (x,)
    return func, args


# --- strategies ---------------------------------------------------------------------------------------


def changes() -> st.SearchStrategy[Change]:
    return st.builds(Change, st.integers(0, 7), st.sampled_from(CHANGES), st.integers(0, 2))


def copies() -> st.SearchStrategy[Copy]:
    return st.builds(Copy, st.lists(changes(), max_size=3).map(tuple), st.booleans(), st.booleans())


def programs(rule: Rule, *, symbolic: bool | None = None) -> st.SearchStrategy[Program]:
    """Programs around the pattern of `rule`; small ones first, so that a counterexample shrinks to what matters."""
    return st.builds(
        Program,
        st.just(rule),
        copies=st.lists(copies(), min_size=1, max_size=3).map(tuple),
        dtypes=st.lists(st.sampled_from(DTYPES), min_size=1, max_size=2).map(tuple),
        casts=st.lists(st.sampled_from((None, *DTYPES)), max_size=3).map(tuple),
        absent=st.booleans(),
        layout=st.sampled_from(tuple(LAYOUTS)),
        rank=st.sampled_from((3, 2, 1, 4)),
        computed=st.booleans(),
        grad=st.booleans(),
        symbolic=st.booleans() if symbolic is None else st.just(symbolic),
        all_rules=st.booleans(),
    )
