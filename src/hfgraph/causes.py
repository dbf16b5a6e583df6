"""Dynamo's names for graph breaks, in words: what the model's code does there, and what to write instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """One kind of break.

    Attributes:
        words: what the code does that a graph cannot hold.
        advice: what to change, in one or two sentences.
    """

    words: str
    advice: str


_EXPERTS = (
    "If this runs the experts that were hit, one after the other: `model.set_experts_implementation('grouped_mm')`, where the model has it; "
    "otherwise keep the experts' weights in parameters of three dims, under transformers' `use_experts_implementation`, and they become one `moe` op."
)
# By how Dynamo's name for it begins.
CAUSES: Mapping[str, Cause] = {
    "Dynamic shape operator": Cause(
        "the size of a result depends on values (`nonzero`, `unique`, an index by a boolean mask)",
        f"Compute all elements and choose with `torch.where`, so that sizes stay what they are. {_EXPERTS}",
    ),
    "Data dependent operator": Cause(
        "values of a tensor become numbers of Python's (`tolist`, a loop over a tensor, a tensor as an index of a list)",
        f"Keep them in the tensor. {_EXPERTS}",
    ),
    "Attempted to use `torch.nn.functional.one_hot` with data-dependent output shape": Cause(
        "the size of a result depends on the largest value of a tensor",
        "Give `one_hot` its `num_classes`.",
    ),
    "Dynamic slicing with Tensor arguments": Cause(
        "a slice begins or ends at a value of a tensor",
        "Choose with a mask and `torch.where`, so that sizes stay what they are.",
    ),
    "Unsupported Tensor.item() call": Cause(
        "a value of a tensor becomes a number of Python's (`item`, `int`, a slice that ends at it, an assertion on it)",
        "Keep it a tensor, or compute it before the model is called.",
    ),
    "Data-dependent branching": Cause(
        "Python branches on a value of a tensor (`if`, `while`, `assert`)",
        "Choose with `torch.where`, or with `torch.cond`; check inputs before the model is called.",
    ),
    "Missing tp_iternext": Cause(
        "Python runs through an iterator that Dynamo does not know",
        "Where transformers collects outputs, it comes along with another break inside of the model: see to that one first.",
    ),
    "Observed exception": Cause(
        "tracing meets an exception that nothing in the traced code handles",
        "If the model raises nothing there when it is not compiled, Dynamo takes a value in this line for what it is not: write the line otherwise.",
    ),
    "logging.Logger method not supported": Cause(
        "the model writes to a log",
        "Do so before the call, or let Dynamo leave it out: `torch._dynamo.config.ignore_logging_functions.add(logger.warning_once)`.",
    ),
    "Unsupported python_type() call": Cause(
        "Python asks for the type of an object that Dynamo has no picture of, such as a buffer that `forward` assigns anew",
        "Assign buffers in `__init__`; in `forward` keep what is made of them in a variable.",
    ),
    "Attempted to call function marked as skipped": Cause(
        "a function is called that Dynamo does not look into, such as `torch.manual_seed`",
        "Call it before the model, or write what it does in PyTorch.",
    ),
    "Unsupported context manager": Cause(
        "the code enters a context manager that Dynamo does not know, such as a lock",
        "Enter it before the model is called.",
    ),
    "Call to `torch._dynamo.graph_break()`": Cause("the code asks for it", "Take the call out."),
    "Skip calling `torch.compiler.disable()`d function": Cause(
        "a function is called that is not to be compiled", "Take `torch.compiler.disable` off it, if it can be traced."
    ),
    "Failed to trace builtin operator": Cause(
        "a function of Python's own is called that Dynamo does not know, such as `print`", "Call it before or after the model."
    ),
}


def cause_of(reason: str) -> Cause | None:
    """What is known of a break that Dynamo calls by this name."""
    return next((cause for name, cause in CAUSES.items() if reason.startswith(name)), None)


def in_words(reason: str) -> str:
    """A sentence with Dynamo's name for it, which is what to search for; that alone, where there are no words."""
    cause = cause_of(reason)
    return f"{cause.words} (Dynamo: {reason})" if cause else reason
