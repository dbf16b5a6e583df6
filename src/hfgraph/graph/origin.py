"""Where a node comes from: the module and the source line that made it, and what a rewritten one is called."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from torch.fx import Node

from hfgraph.graph.unify import label

INPUT = "hfgraph_input"  # meta key of a placeholder: its readable name
SITE = "hfgraph_site"  # meta key of a node that stands for more than the operator that it calls: what that is


def site_name(node: Node) -> str:
    """What a rewritten node is called in reports: the op it calls, or takes a result of."""
    if SITE in node.meta:
        return node.meta[SITE]
    source = node.args[0] if node.target is operator.getitem else node
    return label(source) if isinstance(source, Node) else label(node)


def module_path(node: Node) -> str:
    """The path of the innermost module that made a node, e.g. `model.layers.0.input_layernorm`; empty where unknown."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [v[0] for v in stack.values() if isinstance(v, tuple)]
    return _plain(paths[-1]) if paths else ""


@lru_cache(maxsize=4096)
def _plain(path: str) -> str:
    """Dynamo's `L['self'].model.layers._modules['0']`, or `L['args'][0].model...`, -> `model.layers.0`."""
    path = re.sub(r"^L\['\w+'\](\[\d+\])?", "", path).replace("._modules", "").replace("_orig_mod", "")
    return re.sub(r"\.+", ".", re.sub(r"\['?(\w+)'?\]", r".\1", path)).strip(".")


class Origin(NamedTuple):
    """Where a node comes from.

    Attributes:
        module: path of the innermost module, e.g. `model.layers.0.input_layernorm`; empty where unknown.
        source: file and line of the model's code, as `modeling_x.py:64`.
        code: the text of that line.
    """

    module: str = ""
    source: str = ""
    code: str = ""


def origin(node: Node) -> Origin:
    """Module path, source line and its text."""
    return Origin(module_path(node), *_innermost(node.meta.get("stack_trace") or ""))


def source_line(node: Node) -> str:
    """File and line of the model's code that made a node, as `modeling_x.py:64`."""
    return origin(node).source


@lru_cache(maxsize=4096)
def _innermost(stack_trace: str) -> tuple[str, str]:
    """The last frame of a stack trace: `File "path", line 64, in forward`, and the line below it."""
    lines = [line.strip() for line in stack_trace.splitlines()]
    at = next((i for i in range(len(lines) - 1, -1, -1) if lines[i].startswith('File "')), None)
    if at is None:
        return "", ""
    path, _, rest = lines[at][5:].partition(", line ")
    file = path.strip(chr(34)).replace("\\", "/").rsplit("/", 1)[-1]
    return f"{file}:{rest.partition(',')[0]}", next((line for line in lines[at + 1 :] if line.strip("^~ ")), "")


def modules(node: Node) -> Iterator[tuple[str, str]]:
    """Path and class name of every module around a node, outermost first."""
    for entry in (node.meta.get("nn_module_stack") or {}).values():
        if isinstance(entry, tuple):
            yield _plain(entry[0]), entry[1] if isinstance(entry[1], str) else entry[1].__name__


def readable(placeholder: str) -> str:
    """Dynamo's `l_self_modules_lm_head_parameters_weight_` -> `lm_head.weight`; `L_input_ids_` -> `input_ids`."""
    found = re.match(r"[lL]_(?:self|args_0)_((?:modules|parameters|buffers)_.*)", placeholder)
    if found is None:
        return re.sub("^[lL]_", "", placeholder).strip("_")
    return re.sub(r"(^|_)(modules|parameters|buffers)_", ".", found[1]).strip("._")
