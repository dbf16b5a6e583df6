"""What each image-text model computes in a call with images, and what hfgraph finds of it.

`python tests/models/image_records.py [NAME ...]` writes image_records.json, the table that the tests compare with, and prints the shares.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from picture_recipes import ONE_GRAPH, RECIPES
from pictures import Given, build, given
from torch import Tensor, nn

from hfgraph import zoo
from hfgraph.backend import source_digest
from hfgraph.explaining import fresh_compilation, observing
from hfgraph.options import Options
from hfgraph.report import Report
from hfgraph.zoo.expected import KINDS, run
from hfgraph.zoo.expected.watch import Counts, Places, Watch
from hfgraph.zoo.record import Miss, Record, account, farthest, found_sites, installed, match, placed
from hfgraph.zoo.table import Coverage

TABLE = Path(__file__).with_name("image_records.json")
PATCHES = "patch embedding"
_NOTHING = "nothing in the graph comes near"
_BETWEEN = "and between graphs nothing is compiled"
_UNUSED = "nothing uses its result, so Dynamo drops it"


class _Patches(Watch):
    """Convolutions that read no value twice."""

    def see(self, name: str, args: Any, kwargs: Any, ins: list[Tensor], outs: list[Tensor]) -> None:
        if name not in ("conv1d", "conv2d", "conv3d"):
            return
        call = dict(zip(("input", "weight", "bias", "stride", "padding", "dilation", "groups"), args, strict=False)) | kwargs
        kernel = tuple(call["weight"].shape[2:])
        alone = call.get("padding", 0) == "valid" or set(_each(call.get("padding", 0))) == {0}
        plain = call.get("groups", 1) == 1 and set(_each(call.get("dilation", 1))) == {1}
        self.counts.add(PATCHES, tuple(_each(call.get("stride", 1))) == kernel and max(kernel) > 1 and alone and plain)


def _each(given: Any) -> tuple[int, ...]:
    return (given,) if isinstance(given, int) else tuple(given)


@dataclass
class Seen:
    """One call by eager and through hfgraph; `attends` counts what the masks of its attentions are."""

    record: Record
    want: Tensor
    got: Tensor
    f: Callable[..., Any]
    attends: Counter[str]


def see(name: str, model: nn.Module, inputs: Given) -> Seen:
    """What both compute, and what of it is found; the record's error is left open."""
    want, expected = _expected(model, inputs)
    f, report = rewritten(model)
    with one_graph(name):
        got = logits(f, inputs)
    record = Record(name, type(model).__name__, "vlm", source_digest(), installed())
    account(record, expected, report)
    _account_for_patches(record, expected[PATCHES], report)
    for i, m in enumerate(record.missed):
        unused = partial(_unused, m.module, expected[m.kind][m.module] - m.count, model, inputs, want)
        record.missed[i] = replace(m, reason=_reason(m, expected[m.kind], report, unused))
    attends = Counter(s.note for s in report.sites if s.rule == "attention" and s.status == "recognised")
    return Seen(record, want, got, f, attends)


def rewritten(model: nn.Module, **options: Any) -> tuple[Callable[..., Any], Report]:
    """The rewritten graph as it is, with every rewrite that there is, and its report."""
    return observing(model, Options(inductor=False, strict=True, merge_always=True, **options))


def _account_for_patches(record: Record, expected: Counter[str], report: Report) -> None:
    sites = Counter(modules for s, modules in placed(report) if s.rule == "patch_embedding" and s.status == "recognised")
    if expected or sites:
        record.expected[PATCHES], record.found[PATCHES] = expected.total(), sites.total()
    near = {s.module: s.reason for s in report.near_misses if s.rule == "patch_embedding"}
    nothing = _NOTHING if record.graphs == 1 else f"{_NOTHING}, {_BETWEEN}"
    for module, n in sorted(match(expected, sites, whole=record.graphs == 1)[0].items()):
        record.missed.append(Miss(PATCHES, module, n, next((near[end] for end in near if module.endswith(end)), nothing)))


def _reason(miss: Miss, expected: Counter[str], report: Report, unused: Callable[[], bool]) -> str:
    """Better than that nothing comes near, where it is known."""
    if miss.reason.startswith(_NOTHING) and unused():
        return _UNUSED
    sites = match(expected, found_sites(miss.kind, report), whole=False)[1] if miss.kind in KINDS else ()
    bare = [site for site in sites if "." not in site]
    if miss.reason.endswith(_BETWEEN) and bare:
        return f"found after a graph break, where Dynamo knows its module as {bare[0]} alone"
    return miss.reason


@contextmanager
def one_graph(name: str) -> Iterator[None]:
    """Compile without a limit; where that keeps a model whole, numbers may be taken from tensors."""
    with fresh_compilation(), torch._dynamo.config.patch(capture_scalar_outputs=name in ONE_GRAPH):
        yield


def _unused(path: str, calls: int, model: nn.Module, inputs: Given, want: Tensor) -> bool:
    """Whether what a norm returns after so many calls changes nothing."""
    module, called = model.get_submodule(path), count()
    hook = module.register_forward_hook(lambda _, __, out: out if next(called) < calls else out * 0)
    try:
        return isinstance(module, nn.LayerNorm) and torch.equal(logits(model, inputs), want)
    finally:
        hook.remove()


def _expected(model: nn.Module, inputs: Given) -> tuple[Tensor, dict[str, Counter[str]]]:
    torch.manual_seed(0)
    with Places.of(model) as places, _Patches(Counts(places)) as watch:
        want, expected = run(model, inputs)
    return want, {**expected, PATCHES: +watch.counts.found[PATCHES]}


def logits(f: Callable[..., Any], inputs: Given) -> Tensor:
    torch.manual_seed(0)  # a few models draw random numbers
    return zoo.logits(f(**inputs))


def shares(table: Coverage) -> str:
    """Found and expected by kind: of calls that trace in one graph, and of all."""
    return "\n".join(f"{kind:>16}: {table.share(kind)}; in all calls {table.share(kind, one_graph=False)}" for kind in (*KINDS, PATCHES))


@torch.no_grad()
def main(names: list[str]) -> None:
    table = Coverage.load(TABLE) if TABLE.exists() else Coverage()
    for name in names or RECIPES:
        torch._dynamo.reset()
        model = build(name, RECIPES[name])
        seen = see(name, model, given(model, RECIPES[name]))
        seen.record.error = farthest(seen.got, seen.want)
        table.records[name] = seen.record
        table.save(TABLE)
        print(name, seen.record.error, flush=True)
    print(shares(table))


if __name__ == "__main__":
    main(sys.argv[1:])
