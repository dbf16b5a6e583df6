"""`hfgraph.verify`: eager, the rewritten graph and the compiled one, judged in float64, with sabotage to judge the judge."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_map

from hfgraph.backend import built, check_inputs
from hfgraph.entries import limit_reached
from hfgraph.errors import NotAModel, NotAvailable, NothingCompiled
from hfgraph.explaining import fresh_compilation
from hfgraph.graph.alias import Aliases
from hfgraph.graph.capture import Uncapturable, capture, copied
from hfgraph.graph.draws import State, draws, equal_draws, random_state, restore
from hfgraph.graph.judge import Error, Float64, Recorder, float_tensors, fresh_inputs, judge
from hfgraph.graph.origin import module_path, site_name
from hfgraph.graph.replacing import REPLACES, RULES
from hfgraph.options import Options
from hfgraph.pipeline import PIPELINE, Context, run
from hfgraph.stacking import own_weights, stacked
from hfgraph.verdict import OutputCheck, SiteCheck, Verdict

_NOISE = 0.1


def verify(
    model: Callable[..., Any], *args: Any, tp: int | None = None, sabotage: bool = False, options: Mapping[str, Any] | Options | None = None, **kwargs: Any
) -> Verdict:
    """Prove that hfgraph computes what the model does, on these inputs.

    The model runs in eval mode, without gradients. Each of its graphs runs as traced, rewritten, and compiled by
    Inductor, on the same inputs; float64 is the judge. First on weights whose vectors (biases, norm weights) are
    perturbed, since their initial values hide bugs, then on the true ones; the weights are restored exactly, and stay
    where they are in memory. Random numbers are the same for all; where a way of running draws others, that is told.

    Args:
        sabotage: falsify each applied rule in turn; each must be noticed.
        options: as of the backend; what holds with them is proved.

    Raises:
        UnknownOption, InvalidOption, UnknownRule, UnknownKernel, ContradictoryOptions: what is wrong with `options`.
        NotAModel, NothingCompiled, NotAvailable, and what the backend raises.
    """
    if not callable(model):
        raise NotAModel("verify", model)
    if tp is not None:
        raise NotAvailable("verify(tp=...)", "hfgraph does not shard models yet", "leave tp out to verify one process")
    verdict = Verdict()
    observer = _Observer(verdict, sabotage, Options.of(options))
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

    def __init__(self, verdict: Verdict, sabotage: bool, options: Options) -> None:
        self.verdict = verdict
        self.sabotage = sabotage
        self.options = options
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
        run(canonical, Context(self.options), PIPELINE[:1])
        rewritten = self.rewritten(canonical)
        weights, written = stacked(rewritten), _written_inputs(canonical)
        compiled = built(copied(rewritten), example_inputs, _as_eager_draws(self.options, canonical), None)

        def moved(*inputs: Any) -> Any:
            return compiled(*own_weights(inputs, weights))

        def observed(*inputs: Any) -> Any:
            calls = _Calls(inputs, written, random_state())
            self.compare(number, calls, gm, canonical, rewritten, moved)
            restore(calls.start)
            return gm(*inputs)

        return observed

    def rewritten(self, canonical: GraphModule, sabotage: str | None = None) -> GraphModule:
        gm = copied(canonical)
        run(gm, Context(self.options, sabotage=sabotage))
        return gm

    def compare(self, number: int, calls: _Calls, gm: GraphModule, canonical: GraphModule, rewritten: GraphModule, compiled: Callable[..., Any]) -> None:
        sites = _sites(rewritten)
        names = {n: n for n in sites.values()}
        reference, judged, mine = Recorder(canonical, names), Float64(canonical, names), Recorder(rewritten, sites)
        eager, exact, got = calls.outcome(gm), calls.outcome(judged.run), calls.outcome(mine.run)
        if not self.comparable(number, eager, {"as traced": calls.outcome(reference.run), "in float64": exact, "rewritten": got}):
            return
        self.note(number, "rewritten", got, eager, exact)
        got = calls.outcome(compiled)
        if self.comparable(number, eager, {"compiled": got}):
            self.note(number, "compiled", got, eager, exact)
        for node in rewritten.graph.nodes:
            if node.name in sites:
                key = sites[node.name]
                self.keep_worst(number, key, site_name(node), module_path(node), judge(mine.recorded[key], reference.recorded[key], judged.recorded[key]))
        if self.sabotage:
            self.falsify(canonical, calls, eager, exact, reference.recorded, judged.recorded)

    def note(self, number: int, side: str, got: _Outcome, eager: _Outcome, exact: _Outcome) -> None:
        for i, values in enumerate(zip(got.values, eager.values, exact.values, strict=True)):
            self.verdict.outputs.append(_output(self.weights, side, f"graph {number}, output {i}", judge(*values)))

    def comparable(self, number: int, eager: _Outcome, ways: Mapping[str, _Outcome]) -> bool:
        """Whether all have drawn the random numbers that eager has; if not, takes that down."""
        others = [way for way, outcome in ways.items() if not equal_draws(outcome.state, eager.state)]
        self.verdict.unproven += [line for way in others if (line := _OTHER_DRAWS.format(number=number, way=way)) not in self.verdict.unproven]
        return not others

    def keep_worst(self, number: int, key: str, rule: str, module: str, found: Error) -> None:
        check = SiteCheck(rule, module, found.error, found.allowed, found.ok)
        known = self.worst.get((number, key))
        if known is None or (known.ok, -known.error) > (check.ok, -check.error):
            self.worst[number, key] = check

    def falsify(self, canonical: GraphModule, calls: _Calls, eager: _Outcome, exact: _Outcome, reference: dict[str, Any], judged: dict[str, Any]) -> None:
        """Falsify each rule that this graph uses; a wrong output or a wrong site is a catch."""
        for rule in sorted({r for n in self.rewritten(canonical).graph.nodes for r in n.meta.get(RULES, ())}):
            if self.verdict.sabotage.get(rule):
                continue
            wrong = self.rewritten(canonical, sabotage=rule)
            sites = _sites(wrong)
            mine = Recorder(wrong, sites)
            got = calls.outcome(mine.run)
            caught = not all(judge(*values).ok for values in zip(got.values, eager.values, exact.values, strict=True))
            known = [k for k in sites.values() if k in reference]
            caught = caught or not all(judge(mine.recorded[k], reference[k], judged[k]).ok for k in known)
            self.verdict.sabotage[rule] = caught


_OTHER_DRAWS = "graph {number} draws random numbers, and {way} it draws others than eager does: numbers cannot tell whether it is right"


def _as_eager_draws(options: Options, canonical: GraphModule) -> Options:
    """Inductor has random numbers of its own, unless it is told to draw as eager does; a user who says otherwise is heard."""
    if not (options.inductor and draws(canonical.graph)):
        return options
    return replace(options, inductor_config={"fallback_random": True, **options.inductor_config})


def _sites(rewritten: GraphModule) -> dict[str, str]:
    """Node of the rewritten graph -> node of the canonical graph whose value it computes."""
    return {n.name: n.meta[REPLACES] for n in rewritten.graph.nodes if REPLACES in n.meta}


def _written_inputs(canonical: GraphModule) -> set[int]:
    aliases = Aliases(canonical.graph)
    return {i for i, n in enumerate(n for n in canonical.graph.nodes if n.op == "placeholder") if aliases.is_written(n)}


@dataclass(frozen=True)
class _Outcome:
    """What a call returns and leaves in the inputs that it writes, and the state in which it leaves the random generators."""

    values: list[Tensor]
    state: State


@dataclass(frozen=True)
class _Calls:
    """What every way of running a graph begins with."""

    inputs: Sequence[Any]
    written: set[int]
    start: State

    def outcome(self, function: Callable[..., Any]) -> _Outcome:
        restore(self.start)
        given = fresh_inputs(self.inputs, self.written)
        outputs = float_tensors(function(*given))
        return _Outcome([o.detach().clone() for o in outputs] + [given[i] for i in sorted(self.written)], random_state())


def _output(weights: str, side: str, name: str, found: Error) -> OutputCheck:
    return OutputCheck(weights, side, name, found.error, found.allowed, found.largest, found.ok)
