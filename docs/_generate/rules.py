"""A page for each rule in the registry, and their list."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

from _generate.registry import Registry, defined, made, taken
from _generate.text import body, breakable, code, docstring, module_of, page, sentence, source, source_link, source_page, table
from hfgraph.graph.inputs import Choice, Dims, Dtype, Inputs, Numbers, Scalar, Switch
from hfgraph.graph.op import Op
from hfgraph.graph.recogniser import Example, Recogniser
from hfgraph.graph.rule import Rule


def pages(registry: Registry) -> dict[str, str]:
    """Every page, by path."""
    found = {"rules/index.md": overview(registry)}
    for rule in registry.rules:
        found[path(rule)] = recogniser_page(rule) if isinstance(rule, Recogniser) else rule_page(rule)
        module = module_of(defined(rule))
        found[source_page(module)] = source(module)
    return found


def path(rule: Rule | Recogniser) -> str:
    return f"rules/{rule.name}.md"


def overview(registry: Registry) -> str:
    """The rules by stage, in the order in which stages run."""
    parts = [
        "# Rules",
        "A rule looks for one way of writing something and puts an op, or a larger op, in its place. Nothing else changes: the replacement has the "
        "same shapes, dtypes and strides, and rounds where the code it replaces did. A rule sees what is computed from what. It does not see names of "
        "classes, modules or parameters, so it applies in any model.",
        "Where no pattern could say what to look for, a recogniser evaluates what it finds on numbers of its own choosing, and reads off what it computes.",
        "These are all there are. `hfgraph explain` says where they apply in a model of yours.",
    ]
    for stage, rules in registry.stages.items():
        rows = [(f"[{breakable(r.name)}]({r.name}.md)", about(r), ", ".join(op_link(o) for o in made(r))) for r in rules]
        parts += [f"## {stage.capitalize()}", _stage_words(rules[0]), table(("rule", "what it takes", "becomes"), rows)]
    return page(*parts)


def rule_page(rule: Rule) -> str:
    """All that is known of a rule."""
    return page(
        f"# `{rule.name}`",
        f"Rule of the stage [{rule.stage}](index.md#{rule.stage})\n{{ .kind }}",
        about(rule),
        "## What it looks for",
        code(body(rule.pattern)),
        *_notes(rule.pattern),
        "## What it puts in its place",
        code(body(rule.replacement)),
        *_notes(rule.replacement),
        "Ops: " + ", ".join(op_link(o) for o in made(rule)) + "." if made(rule) else "",
        "## Where it applies",
        *_guard(rule.when),
        *([" ".join(docstring(type(rule.where)).paragraphs)] if rule.where is not None else []),
        "## Parameters",
        "Pattern and replacement have the same parameters. A number, a dtype or a word is bound by value: it is read off the site.",
        inputs_table(rule.inputs),
        *_end(rule),
    )


def recogniser_page(rule: Recogniser) -> str:
    """All that is known of a recogniser: what it finds, where it begins to look, and spellings that it is tested on."""
    anchors = sorted({f"[`{op.name}`](../ops/{op.name}.md)" for op in taken(rule)} or {f"`{a.name() if hasattr(a, 'name') else a}`" for a in rule.anchors})
    return page(
        f"# `{rule.name}`",
        f"Recogniser of the stage [{rule.stage}](index.md#{rule.stage})\n{{ .kind }}",
        about(rule),
        "## What it puts in its place",
        f"The op {op_link(rule.op)}, where it gives what the code gives. What only looks alike is left alone and reported as a near miss.",
        "## Where it looks",
        f"Around {', '.join(anchors)}.",
        "## Spellings",
        "There is no list of spellings: what counts is what the code computes. These are among those that it is tested on.",
        *(p for e in rule.examples for p in spelling(e)),
        *_end(rule),
    )


def spelling(example: Example) -> list[str]:
    """One example: what it shows, and its code."""
    said = " ".join(docstring(example.function).paragraphs)
    return [f"**{example.name.capitalize()}.** {sentence(said)}", code(body(example.function))] if inspect.isfunction(example.function) else []


def _end(rule: Rule | Recogniser) -> list[str]:
    off = f'model.compile(backend="hfgraph", options={{"disable": ["{rule.name}"]}})'
    return ["## Switch it off", code(off), f"Source: {source_link(module_of(defined(rule)))}"]


def about(rule: Rule | Recogniser) -> str:
    """What the rule's file says it does."""
    return " ".join(docstring(module_of(defined(rule))).paragraphs)


def _stage_words(rule: Rule | Recogniser) -> str:
    """What the stage's folder, which the rule is in, says it does."""
    folder = sys.modules.get(module_of(defined(rule)).__package__ or "")
    return " ".join(docstring(folder).paragraphs) if folder else ""


def op_link(op: Op) -> str:
    return f"[`{op.name}`](../ops/{op.name}.md)"


def inputs_table(inputs: Inputs) -> str:
    """The parameters in words."""
    return table(("parameter", "what it is"), [(f"`{name}`", in_words(a)) for name, a in inputs.items()])


_KINDS = {"float": "a tensor", "bool": "a tensor of truth values", "int": "a tensor of whole numbers"}


def in_words(argument: Dims | Scalar | Numbers | Dtype | Choice) -> str:
    """What an argument may be."""
    match argument:
        case Dims():
            names = ("...", *argument.names[2:]) if argument.any_rank else argument.names
            shape = f"`({', '.join(names)}{',' if len(names) == 1 else ''})`"
            words = f"{_KINDS[argument.kind]} {shape}" + (", of any rank" if argument.any_rank else "")
        case Numbers():
            words = "a list of numbers"
        case Switch():
            words = "0 or 1"
        case Scalar():
            words = "a number" if argument.example is None else f"a number, such as {argument.example:g}"
        case Choice():
            words = f"one of {', '.join(f'`{w}`' for w in argument.options)}"
        case Dtype():
            words = f"a dtype, such as `{str(argument.example).removeprefix('torch.')}`" if argument.example else "a dtype"
    return f"{words}; may be absent" if argument.optional else words


def _notes(function: Callable[..., Any]) -> list[str]:
    """What a pattern or replacement says beyond its code."""
    return [sentence(p) for p in docstring(function).paragraphs]


def _guard(when: Callable[..., bool] | None) -> list[str]:
    if when is None:
        return ["Wherever the pattern is found, at any size, in any dtype."]
    return [*_notes(when), code(body(when)), "It is asked with shapes, dtypes and numbers only, never with values of tensors."]
