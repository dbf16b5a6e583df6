"""`hfgraph.explain`: what hfgraph would do to a model, found by running it once."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch._dynamo.exc import BackendCompilerFailed
from torch._dynamo.utils import counters
from torch.fx import GraphModule

from hfgraph.backend import check_inputs, rewrite
from hfgraph.breaks import gathered, watched
from hfgraph.entries import dropped_afterwards, limit_reached
from hfgraph.errors import HfgraphError, NotAModel, NothingCompiled
from hfgraph.options import Options
from hfgraph.pipeline import Context
from hfgraph.report import Report

# An observed run compiles anew, whatever else was compiled.
_UNLIMITED: dict[str, Any] = {"recompile_limit": 10_000, "accumulated_recompile_limit": 10_000}


def explain(model: Callable[..., Any], *args: Any, **kwargs: Any) -> Report:
    """Trace `model(*args, **kwargs)`, rewrite its graphs, run them once without Inductor, and report.

    Args:
        model: a module or a function.

    Returns:
        The report: `.sites`, `.counts`, `.graphs`, `.to_dict()`, and a table as `str()`.

    Raises:
        NotAModel, NothingCompiled, and what the backend raises.
    """
    if not callable(model):
        raise NotAModel("explain", model)
    _, report = observed(model, args, kwargs, Options(inductor=False))
    if not report.graphs:
        raise NothingCompiled("explain", limit_reached(model))
    return report


def observed(model: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], options: Options) -> tuple[Any, Report]:
    """What the rewritten model gives for one call, without Inductor, and the report of its graphs with how often the call ran each."""
    f, report = observing(model, options)
    before = Counter(counters["graph_break"])
    with fresh_compilation(), watched() as breaks:
        out = f(*args, **kwargs)
    report.counted = gathered(breaks, Counter(counters["graph_break"]) - before)
    return out, report


def observing(model: Callable[..., Any], options: Options) -> tuple[Callable[..., Any], Report]:
    """The rewritten model without Inductor, and a report that counts, while it is called, how often each graph runs."""
    report = Report(model="" if inspect.isroutine(model) else type(model).__name__)

    def backend(gm: GraphModule, example_inputs: Sequence[Any], **_: Any) -> Callable[..., Any]:
        check_inputs(gm, example_inputs)
        rewritten, found = rewrite(gm, example_inputs, Context(options))
        found.calls = 0
        report.graphs.append(found)

        def counted(*inputs: Any) -> Any:
            found.calls += 1
            return rewritten(*inputs)

        return counted

    return torch.compile(model, backend=backend), report


@contextmanager
def fresh_compilation() -> Iterator[None]:
    """Compile within, without running into the limit of recompilations, and without leaving anything that counts against it; with
    hfgraph's errors as they are: Dynamo wraps what a backend raises."""
    try:
        with torch._dynamo.config.patch(_UNLIMITED), dropped_afterwards():
            yield
    except BackendCompilerFailed as e:
        if isinstance(e.inner_exception, HfgraphError):
            raise e.inner_exception from None
        raise
