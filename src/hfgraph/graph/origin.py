"""Where a node comes from: the module and the source line that made it, and what a rewritten one is called."""

from __future__ import annotations

import operator
import re

from torch.fx import Node

from hfgraph.graph.unify import label


def site_name(node: Node) -> str:
    """What a rewritten node is called in reports: the op it calls, or takes a result of."""
    source = node.args[0] if node.target is operator.getitem else node
    return label(source) if isinstance(source, Node) else label(node)


def module_path(node: Node) -> str:
    """The path of the innermost module that made a node, e.g. `model.layers.0.input_layernorm`; empty where unknown."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [v[0] for v in stack.values() if isinstance(v, tuple)]
    return _plain(paths[-1]) if paths else ""


def _plain(path: str) -> str:
    """Dynamo's `L['self'].model.layers._modules['0']`, or `L['args'][0].model...`, -> `model.layers.0`."""
    path = re.sub(r"^L\['\w+'\](\[\d+\])?", "", path).replace("._modules", "").replace("_orig_mod", "")
    return re.sub(r"\.+", ".", re.sub(r"\['?(\w+)'?\]", r".\1", path)).strip(".")


def source_line(node: Node) -> str:
    """File and line of the model's code that made a node, as `modeling_x.py:64`."""
    trace_text = node.meta.get("stack_trace") or ""
    for line in reversed(trace_text.splitlines()):
        line = line.strip()
        if line.startswith("File "):
            path, _, rest = line[5:].partition(", line ")
            return f"{path.strip(chr(34)).rsplit('/', 1)[-1]}:{rest.partition(',')[0]}"
    return ""

