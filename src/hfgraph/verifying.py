"""`hfgraph.verify`: eager, the rewritten graph and the compiled one, judged in float64, with sabotage to judge the judge."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_map

from hfgraph.backend import check_inputs, inductor
from hfgraph.entries import limit_reached
from hfgraph.errors import NotAModel, NotAvailable, NothingCompiled
from hfgraph.explaining import fresh_compilation
from hfgraph.graph.alias import Aliases
from hfgraph.graph.capture import Uncapturable, capture, copied
from hfgraph.graph.judge import Error, Float64, Recorder, float_tensors, fresh_inputs, judge
from hfgraph.graph.origin import module_path, site_name
from hfgraph.graph.replacing import REPLACES, RULES
from hfgraph.options import Options
from hfgraph.pipeline import PIPELINE, Context, run

_NOISE = 0.1


@dataclass(frozen=True)
class OutputCheck:
    """One output of one graph, on one side, under one set of weights; errors as in `hfgraph.graph.judge.Error`."""

    weights: str  # "perturbed" or "true"
    side: str  # "rewritten" or "compiled"
    name: str
    error: float
    allowed: float
    largest: float
    ok: bool


@dataclass(frozen=True)
class SiteCheck:
    """The value that a rewritten site computes, against the one it replaced."""

    rule: str
    module: str
    error: float
    allowed: float
    ok: bool


@dataclass
class Verdict:
    """What `verify` found. True where everything holds.

    Attributes:
        outputs: every graph's outputs and written inputs, rewritten and compiled, on perturbed and true weights.
        sites: the worst comparison of each rewritten site.
        sabotage: rule -> whether falsifying it was noticed; empty unless asked for.
        unrewritten: reasons why graphs were left as they were.
    """

    outputs: list[OutputCheck] = field(default_factory=list)
    sites: list[SiteCheck] = field(default_factory=list)
    sabotage: dict[str, bool] = field(default_factory=dict)
    unrewritten: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return all(o.ok for o in self.outputs) and all(s.ok for s in self.sites) and all(self.sabotage.values())

    @property
    def max_error(self) -> float:
        """The largest distance of an output from float64."""
        return max((o.largest for o in self.outputs), default=0.0)

    def __bool__(self) -> bool:
        return self.ok

    def to_dict(self) -> dict[str, Any]:
        """Plain values; an error that is not finite (a wrong shape, say) is None, which JSON can hold."""
        return tree_map(_finite, {"ok": self.ok, "max_error": self.max_error, **asdict(self)})

    def __str__(self) -> str:
        from hfgraph.tables import verdict_text

        return verdict_text(self)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def verify(model: Callable[..., Any], *args: Any, tp: int | None = None, sabotage: bool = False, **kwargs: Any) -> Verdict:
    """Prove that hfgraph computes what the model does, on these inputs.

    The model runs in eval mode, without gradients. Each of its graphs runs as traced, rewritten, and compiled by
    Inductor, on the same inputs; float64 is the judge. First on weights whose vectors (biases, norm weights) are
    perturbed, since their initial values hide bugs, then on the true ones; the weights are restored exactly.

    Args:
        sabotage: falsify each applied rule in turn; each must be noticed.

    Raises:
        NotAModel, NothingCompiled, NotAvailable, and what the backend raises.
    """
    if not callable(model):
        raise NotAModel("verify", model)
    if tp is not None:
        raise NotAvailable("verify(tp=...)", "hfgraph does not shard models yet", "leave tp out to verify one process")
    verdict = Verdict()
    observer = _Observer(verdict, sabotage)
    with torch.no_grad(), _in_eval(model), fresh_compilation():
        compiled = torch.compile(model, backend=observer.backend)
        if isinstance(model, nn.Module):
            observer.weights = "perturbed"
            with _perturbed(model):
                compiled(*_own(args), **_own(kwargs))
        observer.weights, observer.sabotage = "true", sabotage and not isinstance(model, nn.Module)
        compiled(*_own(args), **_own(kwargs))
    if not observer.graphs:
        raise NothingCompiled("verify", limit_reached(model))
    verdict.sites = list(observer.worst.values())
    return verdict


def _own(value: Any) -> Any:
    """Arguments for one call: caches and tensors are copied, so that a call leaves nothing for the next."""
    return tree_map(lambda v: v.detach().clone() if isinstance(v, Tensor) else copy.deepcopy(v), value)


@contextmanager
def _in_eval(model: Any) -> Iterator[None]:
    training = [m for m in model.modules() if m.training] if isinstance(model, nn.Module) else []
    for m in training:
        m.training = False
    try:
        yield
    finally:
        for m in training:
            m.training = True


@contextmanager
def _perturbed(model: nn.Module) -> Iterator[None]:
    """Seeded noise on every vector and scalar parameter."""
    vectors = [p for p in model.parameters() if p.ndim < 2 and p.is_floating_point() and p.device.type != "meta"]
    saved = [p.detach().clone() for p in vectors]
    generator = torch.Generator().manual_seed(0)
    try:
        for p in vectors:
            p.add_(_NOISE * torch.randn(p.shape, generator=generator).to(p))
        yield
    finally:
        for p, kept in zip(vectors, saved, strict=True):
            p.copy_(kept)


class _Observer:
    """A backend that runs every graph in all ways, compares, and goes on with what the model itself computes."""

    def __init__(self, verdict: Verdict, sabotage: bool) -> None:
        self.verdict = verdict
        self.sabotage = sabotage
        self.weights = "true"
        self.graphs = 0
        self.worst: dict[tuple[int, str], SiteCheck] = {}

    def backend(self, gm: GraphModule, example_inputs: Sequence[Any], **_: Any) -> Callable[..., Any]:
        check_inputs(gm, example_inputs)
        number = self.graphs
        self.graphs += 1
        try:
            canonical = capture(gm, example_inputs)
        except Uncapturable as e:
            self.verdict.unrewritten.append(str(e))
            return gm
        run(canonical, Context(Options()), PIPELINE[:1])
        rewritten = _rewritten(canonical)
        compiled = inductor(copied(rewritten), example_inputs, Options(), None)

        def observed(*inputs: Any) -> Any:
            self.compare(number, gm, canonical, rewritten, compiled, inputs)
            return gm(*inputs)

        return observed

    def compare(
        self, number: int, gm: GraphModule, canonical: GraphModule, rewritten: GraphModule, compiled: Callable[..., Any], inputs: Sequence[Any]
    ) -> None:
        written = _written_inputs(canonical)
        sites = _sites(rewritten)
        names = {n: n for n in sites.values()}
        eager = _outcome(gm, inputs, written)
        reference, judged, mine = Recorder(canonical, names), Float64(canonical, names), Recorder(rewritten, sites)
        _outcome(reference.run, inputs, written)
        exact = _outcome(judged.run, inputs, written)
        for side, got in (("rewritten", _outcome(mine.run, inputs, written)), ("compiled", _outcome(compiled, inputs, written))):
            for i, (g, e, x) in enumerate(zip(got, eager, exact, strict=True)):
                self.verdict.outputs.append(_output(self.weights, side, f"graph {number}, output {i}", judge(g, e, x)))
        for node in rewritten.graph.nodes:
            if node.name in sites:
                key = sites[node.name]
                self.keep_worst(number, key, site_name(node), module_path(node), judge(mine.recorded[key], reference.recorded[key], judged.recorded[key]))
        if self.sabotage:
            self.falsify(canonical, inputs, written, eager, exact, reference.recorded, judged.recorded)

    def keep_worst(self, number: int, key: str, rule: str, module: str, found: Error) -> None:
        check = SiteCheck(rule, module, found.error, found.allowed, found.ok)
        known = self.worst.get((number, key))
        if known is None or (known.ok, -known.error) > (check.ok, -check.error):
            self.worst[number, key] = check

    def falsify(
        self, canonical: GraphModule, inputs: Sequence[Any], written: set[int], eager: list[Tensor], exact: list[Tensor],
        reference: dict[str, Any], judged: dict[str, Any],
    ) -> None:  # fmt: skip
        """Falsify each rule that this graph uses; a wrong output or a wrong site is a catch."""
        for rule in sorted({r for n in _rewritten(canonical).graph.nodes for r in n.meta.get(RULES, ())}):
            if self.verdict.sabotage.get(rule):
                continue
            wrong = _rewritten(canonical, sabotage=rule)
            sites = _sites(wrong)
            mine = Recorder(wrong, sites)
            got = _outcome(mine.run, inputs, written)
            caught = not all(judge(g, e, x).ok for g, e, x in zip(got, eager, exact, strict=True))
            known = [k for k in sites.values() if k in reference]
            caught = caught or not all(judge(mine.recorded[k], reference[k], judged[k]).ok for k in known)
            self.verdict.sabotage[rule] = caught


def _rewritten(canonical: GraphModule, sabotage: str | None = None) -> GraphModule:
    gm = copied(canonical)
    run(gm, Context(Options(), sabotage=sabotage))
    return gm


def _sites(rewritten: GraphModule) -> dict[str, str]:
    """Node of the rewritten graph -> node of the canonical graph whose value it computes."""
    return {n.name: n.meta[REPLACES] for n in rewritten.graph.nodes if REPLACES in n.meta}


def _written_inputs(canonical: GraphModule) -> set[int]:
    aliases = Aliases(canonical.graph)
    return {i for i, n in enumerate(n for n in canonical.graph.nodes if n.op == "placeholder") if aliases.is_written(n)}


def _outcome(function: Callable[..., Any], inputs: Sequence[Any], written: set[int]) -> list[Tensor]:
    """What a call returns, and what it leaves in the inputs that it writes."""
    given = fresh_inputs(inputs, written)
    outputs = float_tensors(function(*given))
    return [o.detach().clone() for o in outputs] + [given[i] for i in sorted(written)]


def _output(weights: str, side: str, name: str, found: Error) -> OutputCheck:
    return OutputCheck(weights, side, name, found.error, found.allowed, found.largest, found.ok)
