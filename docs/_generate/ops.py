"""A page for each op in the registry, and their list."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

from _generate import formula
from _generate.registry import Registry
from _generate.rules import about, in_words, spelling
from _generate.text import body, code, docstring, module_of, page, sentence, source, source_link, source_page, table
from hfgraph.graph.op import Implementation, Op
from hfgraph.graph.recogniser import Recogniser
from hfgraph.graph.rule import Rule


def pages(registry: Registry) -> dict[str, str]:
    """Every page, by path."""
    found = {"ops/index.md": overview(registry)}
    for op in registry.ops:
        found[path(op)] = op_page(op, registry)
        module = module_of(op.reference)
        found[source_page(module)] = source(module)
        for implementation in op.implementations.values():
            if (kernel := _module(implementation)) is not None:
                found[source_page(kernel)] = source(kernel)
    return found


def path(op: Op) -> str:
    return f"ops/{op.name}.md"


def overview(registry: Registry) -> str:
    """The ops, each with its formula."""
    parts = [
        "# Ops",
        "An op is what a piece of a model means. It is one plain PyTorch function: its code is the definition of what is right, and what runs where no "
        "kernel is used. Rules put it in the place of the many ways in which models spell it.",
        "An op keeps every rounding point of the code that it stands for. So its arguments name dtypes where one would expect none.",
    ]
    for op in registry.ops:
        leading = len(registry.found_by(op)) + len(registry.grown_by(op))
        rules = f"{leading} {'rule that leads' if leading == 1 else 'rules that lead'} to it"
        more = f"[Arguments, {rules}, implementations, cost]({op.name}.md)"
        parts += [f"## [`{op.name}`]({op.name}.md)", _summary(op), _formula(op), _caption(op), more]
    return page(*parts)


def op_page(op: Op, registry: Registry) -> str:
    """All that is known of an op."""
    said = docstring(op.reference)
    return page(
        f"# `{op.name}`",
        "One of the [ops](index.md)\n{ .kind }",
        _summary(op),
        _formula(op),
        _caption(op),
        *said.paragraphs[1:],
        "## Arguments",
        _arguments(op, registry),
        f"Result: {said.returns[0].lower()}{said.returns[1:]}" if said.returns else "",
        "## Definition",
        "This function is what is right. Every kernel and every rewrite is held to it.",
        code(body(op.reference)),
        "## Spellings",
        *_spellings(op, registry),
        "## Implementations",
        *_implementations(op),
        "## Cost",
        "Floating-point operations and bytes moved, in one call. Sizes may be symbols.",
        *(sentence(p) for p in docstring(op.cost).paragraphs),
        code(body(op.cost)),
        "## Shardings",
        *_shardings(op),
        f"Source: {source_link(module_of(op.reference))}",
    )


# --- what it is --------------------------------------------------------------------------------------


def _summary(op: Op) -> str:
    return " ".join(docstring(module_of(op.reference)).paragraphs)


def _first(op: Op) -> str:
    return next(iter(docstring(op.reference).paragraphs), "")


def _formula(op: Op) -> str:
    """The formula in the docstring, drawn; as code where it cannot be."""
    written = formula.in_text(_first(op))
    return (formula.mathml(written) or code(written)) if written else ""


def _caption(op: Op) -> str:
    """The sentence around the formula, with links to the papers that it names."""
    first = _first(op)
    written = formula.in_text(first)
    words = first.replace(f"`{written}`", "", 1).strip() if written else first
    cited = re.search(r"\s*\(([^()]*arXiv:[\d.]+[^()]*)\)", words)
    if cited:
        words = words.replace(cited[0], "", 1)
    words = words if words.strip(".") else ""
    paper = re.sub(r"arXiv:([\d.]*\d)", _paper, cited[1]) if cited else ""
    source = f" Source: {paper}." if cited else ""
    return (f"… {words}" if words and written else words) + source


def _paper(found: re.Match[str]) -> str:
    return f"[{found[0]}](https://arxiv.org/abs/{found[1]})"


def _arguments(op: Op, registry: Registry) -> str:
    rows = []
    for name, parameter in op.signature.parameters.items():
        kind = in_words(op.inputs[name]) if name in op.inputs else ""
        if parameter.default is None:
            kind = kind.removesuffix("; may be absent") + "; absent by default"
        elif parameter.default is not inspect.Parameter.empty:
            kind = f"{kind.partition(', such as')[0]}; default `{parameter.default}`"
        rows.append((f"`{name}`", sentence(_said(op, name, registry)), kind))
    return table(("argument", "what it does", "kind"), rows)


def _said(op: Op, name: str, registry: Registry) -> str:
    """What the docstring says of an argument; where it sends the reader to another op, what that one says."""
    words = docstring(op.reference).args.get(name, "")
    if re.fullmatch(r"\([^()]*\)\.?", words):  # a shape alone, which stands under "kind"
        return ""
    elsewhere = re.fullmatch(r"see `(\w+)`\.?", words)
    other = registry.op(elsewhere[1]) if elsewhere else None
    return _said(other, name, registry) if other is not None and other is not op else words


# --- where it comes from, and what runs --------------------------------------------------------------


def _spellings(op: Op, registry: Registry) -> list[str]:
    """The rules that end in this op: those that find it, and those that take one more step into it; and those that go on from it."""
    found, grown, used = registry.found_by(op), registry.grown_by(op), registry.used_by(op)
    parts = [] if found or grown else ["No rule leads to this op yet."]
    if found:
        parts += ["### Found", "Each of these becomes the op.", *(p for r in found for p in _spelling(r))]
    if grown:
        parts += [
            "### Grown",
            "The op then takes in what stands beside it. Each of these is one such step; they apply in any order.",
            *(p for r in grown for p in _spelling(r)),
        ]
    if used:
        parts += ["### Taken further", "Each of these makes something larger of the op.", *(p for r in used for p in _spelling(r))]
    return parts


def _spelling(rule: Rule | Recogniser) -> tuple[str, ...]:
    shown = [p for e in rule.examples for p in spelling(e)] if isinstance(rule, Recogniser) else [code(body(rule.pattern))]
    return f"#### [`{rule.name}`](../rules/{rule.name}.md)", about(rule), *shown


def _implementations(op: Op) -> list[str]:
    rows = [("`reference`", "any", "The definition above, compiled by Inductor together with what stands around it.", "always there")]
    rows += [(f"`{i.name}`", f"`{i.device}`", _when(i), "chosen where it applies" if i.auto else "on request") for i in op.implementations.values()]
    parts = [table(("name", "device", "when it applies", "use"), rows)]
    for i in op.implementations.values():
        if not i.auto:
            parts += [f"To ask for `{i.name}`:", code(f'model.compile(backend="hfgraph", options={{"kernels": {{"{op.name}": "{i.name}"}}}})')]
        kernel = _module(i)
        source = f" The kernel: {source_link(kernel)}." if kernel is not None else ""
        parts += [f"`{i.name}` takes a call where this holds:", code(body(i.when)), source]
    return parts


def _when(implementation: Implementation) -> str:
    said = docstring(implementation.when).paragraphs
    return sentence(said[0]) if said else "Where the condition below holds."


def _module(implementation: Implementation) -> Any:
    """The kernel's module; None where it cannot be imported, as without triton."""
    try:
        return importlib.import_module(implementation.module)
    except ImportError:
        return None


def _shardings(op: Op) -> list[str]:
    if not op.shardings:
        return ["None are described."]
    tensors = list(op.inputs.tensors)
    outputs = max(len(outs) for _, outs in op.shardings.values())
    head = ("", *(f"`{t}`" for t in tensors), *(["result"] if outputs == 1 else [f"result {i + 1}" for i in range(outputs)]))
    rows = [(name, *map(_placed, ins), *map(_placed, outs)) for name, (ins, outs) in op.shardings.items()]
    words = "Ways in which ranks could compute their part without talking to each other. hfgraph does not shard models yet; they are described and tested."
    return [words, table(head, rows)]


def _placed(placement: Any) -> str:
    if placement.is_replicate():
        return "whole"
    return f"split along dim {placement.dim}" if placement.is_shard() else str(placement)
