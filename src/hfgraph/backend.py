"""The backend on one page: capture -> PIPELINE -> Inductor.

`torch.compile(model, backend="hfgraph")` finds it through the entry-point group `torch_dynamo_backends`.
"""

from __future__ import annotations

import gc
import hashlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch._dynamo.source import ConstantSource
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from hfgraph import bypass, report, versions
from hfgraph.breaks import break_of
from hfgraph.errors import Fault, HfgraphError, MetaModel, NotRewritten
from hfgraph.graph.capture import Uncapturable, capture
from hfgraph.graph.cost import total
from hfgraph.graph.origin import readable
from hfgraph.graph.snapshot import snapshot
from hfgraph.kernels import all_ops
from hfgraph.options import Options
from hfgraph.pipeline import Context, run
from hfgraph.stacking import fed, lifted

versions.check_installed()
bypass.watch()
all_ops()


def hfgraph(
    gm: GraphModule, example_inputs: Sequence[Any], *, mode: str | None = None, options: Mapping[str, Any] | Options | None = None
) -> Callable[..., Any]:
    """Compile a graph from Dynamo. Called by `torch.compile`, with its `mode` and `options`.

    Args:
        options: fields of `hfgraph.Options`.
        mode: one of Inductor's modes ("reduce-overhead", "max-autotune", ...).

    Raises:
        UnknownOption, InvalidOption, ContradictoryOptions, UnknownRule, UnknownKernel: what is wrong with `options`.
        MetaModel: the graph computes with weights that hold no values.
        KernelRefused: a kernel asked for by name cannot run.
    """
    chosen = Options.of(options, mode)
    check_inputs(gm, example_inputs)
    rewritten, found = rewrite(gm, example_inputs, Context(chosen))
    start = time.perf_counter()
    compiled = built(rewritten, example_inputs, chosen, mode)
    found.compile_seconds = time.perf_counter() - start
    report.record(found)
    return compiled


def built(rewritten: GraphModule, example_inputs: Sequence[Any], options: Options, mode: str | None) -> Callable[..., Any]:
    """What runs in place of a rewritten graph: its weights stacked, and, if the options say so, compiled by Inductor."""
    whole, examples, stacks = lifted(rewritten, example_inputs)
    return fed(inductor(whole, examples, options, mode) if options.inductor else whole, stacks)


def rewrite(gm: GraphModule, example_inputs: Sequence[Any], context: Context) -> tuple[GraphModule, report.GraphReport]:
    """Capture a graph and run the pipeline on it. A graph that hfgraph cannot work on comes back as it was, with the reason.

    Raises:
        KernelRefused: see `hfgraph`. What is wrong with hfgraph itself, or with a rule, is raised if options are strict.
    """
    found = report.GraphReport(nodes=len(gm.graph.nodes), ended=break_of(gm))
    try:
        with _collector_paused():
            start = time.perf_counter()
            canonical = capture(gm, example_inputs)
            found.capture_seconds = time.perf_counter() - start
            found.captured = total(canonical.graph, {})
            found.rows = run(canonical, context, after=lambda step, done: found.note(canonical, step, done))
            found.after = snapshot(canonical.graph)
        return canonical, found
    except Uncapturable as e:
        found.unrewritten = str(e)
    except Exception as e:  # the graph itself is sound: the user's model must run, and the report must say why it was not rewritten
        asked_for = isinstance(e, HfgraphError) and not isinstance(e, Fault)
        if asked_for or context.options.strict:
            raise
        found.unrewritten = f"{type(e).__name__}: {e}"
        warnings.warn(
            f"hfgraph could not rewrite a graph of {len(gm.graph.nodes)} nodes and hands it to Inductor as it is ({found.unrewritten}). "
            "Results are not affected. Please report it, with options={'strict': True} for the traceback.",
            NotRewritten,
            stacklevel=2,
        )
    return gm, found


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Graphs are many small objects that all stay: collecting in between costs more than the rewriting itself."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def inductor(gm: GraphModule, example_inputs: Sequence[Any], options: Options, mode: str | None) -> Callable[..., Any]:
    """Hand a graph to Inductor."""
    from torch._inductor import list_mode_options
    from torch._inductor.compile_fx import compile_fx
    from torch.compiler import config

    patches = {**(list_mode_options(mode) if mode and mode != "default" else {}), **options.inductor_config}
    tag = config.cache_key_tag + cache_tag(options)
    _note_sources(gm)
    with config.patch(cache_key_tag=tag):  # pyright: ignore[reportAttributeAccessIssue]  (installed at import)
        compiled: Any = compile_fx(gm, list(example_inputs), config_patches=patches)
        return compiled


def _note_sources(gm: GraphModule) -> None:
    """Dynamo notes on its graph where the tensors that it holds come from. Without that note AOTAutograd takes no input for
    static: cudagraphs would copy every weight at every call."""
    known = getattr(gm, "_param_name_to_source", {})
    names = [name for name, _ in (*gm.named_parameters(remove_duplicate=False), *gm.named_buffers(remove_duplicate=False))]
    gm._param_name_to_source = {name: known.get(name) or ConstantSource(name) for name in names}  # type: ignore[assignment]


def cache_tag(options: Options) -> str:
    """What changes a compiled graph besides its text: hfgraph's sources (rules and ops among them) and its options.

    Inductor adds versions, devices and its own settings to its cache keys itself.
    """
    return f"hfgraph-{source_digest()}-{hashlib.sha256(options.digest().encode()).hexdigest()[:16]}"


@cache
def source_digest() -> str:
    """A digest of hfgraph, and of ops and rules that others have registered."""
    from hfgraph.graph.op import OPS
    from hfgraph.rewrites import all_rules

    root = Path(__file__).parent
    digest = hashlib.sha256()
    for file in sorted(p for p in root.rglob("*") if p.suffix in (".py", ".cpp", ".h")):
        digest.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
    for extra in (*(op.digest for op in OPS.values()), *(r.digest for r in all_rules())):
        digest.update(extra.encode())
    return digest.hexdigest()[:16]


def check_inputs(gm: GraphModule, example_inputs: Sequence[Any]) -> None:
    """Refuse weights without values that the graph computes with: a model that was never loaded. Only the shape of one may be asked for,
    and tensors that are no weights may be where the caller wants them. That devices do not fit together Dynamo says before.

    Raises:
        MetaModel.
    """
    placeholders = gm.graph.find_nodes(op="placeholder")
    weights = [n for n, x in zip(placeholders, example_inputs, strict=True) if isinstance(x, nn.Parameter) and x.device.type == "meta"]
    used = [readable(n.name) for n in weights if any(_is_meta(user.meta.get("example_value")) for user in n.users)]
    if used:
        raise MetaModel(used)


def _is_meta(value: Any) -> bool:
    return any(isinstance(v, Tensor) and v.device.type == "meta" for v in tree_leaves(value))
