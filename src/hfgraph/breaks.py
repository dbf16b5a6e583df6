"""Graph breaks in words: where Dynamo ended a graph, why, and what can be done."""

from __future__ import annotations

import linecache
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch.fx import GraphModule


@dataclass(frozen=True)
class Break:
    """One place where Dynamo ends a graph, runs Python, and begins another.

    Attributes:
        reason: in one line.
        explanation: Dynamo's own, where it gives one.
        hints: what Dynamo proposes.
        source, code: file and line of the model's code, and the line's text; empty where unknown.
        count: how often in one call.
    """

    reason: str
    explanation: str = ""
    hints: tuple[str, ...] = ()
    source: str = ""
    code: str = ""
    count: int = 1


# Reasons that Dynamo names by a bytecode where its statistics have words.
_WORDS = {"generic_jump": "Data-dependent branching", "step_unsupported": "Unsupported Python"}


def break_of(gm: GraphModule) -> Break | None:
    """The break that ended a graph from Dynamo; None where the traced code ended."""
    cause: Any = getattr(gm, "compile_subgraph_reason", None)
    if cause is None or not cause.graph_break:
        return None
    found = parsed(str(cause.reason))
    stack = [f for f in cause.user_stack or () if f.lineno]
    if not stack:
        return found
    frame = stack[-1]
    return replace(found, source=f"{os.path.basename(frame.filename)}:{frame.lineno}", code=linecache.getline(frame.filename, frame.lineno).strip())


def parsed(text: str, count: int = 1) -> Break:
    """Dynamo's message: a line, then indented `Explanation:` and `Hint:` paragraphs."""
    title = (text.strip().splitlines() or ["unknown"])[0].strip()
    title = next((words for code, words in _WORDS.items() if title.startswith(code)), title)
    parts = re.split(r"\n\s*(Explanation|Hint|Developer debug context|For more details[^:]*):?", text)
    pairs = list(zip(parts[1::2], parts[2::2], strict=False))
    first = next((t for name, t in pairs if name == "Explanation"), "").strip().split("\n\n")[0]
    hints = tuple(_line(t) for name, t in pairs if name == "Hint" and "report an issue" not in t)
    return Break(title, _line(first), hints, count=count)


def _line(text: str) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", " ".join(text.split()))


def gathered(counted: Mapping[str, int], seen: Iterable[Break]) -> list[Break]:
    """Dynamo's statistics (message -> how often) and the breaks seen at the graphs' ends, as one list.

    The statistics have every break and no place; the graphs have the place of most.
    """
    known = [parsed(text, count) for text, count in counted.items()]
    placed = list(dict.fromkeys(seen))
    out = []
    for b in known:
        mine = [p for p in placed if p.reason == b.reason]
        placed = [p for p in placed if p not in mine]
        out += [replace(p, explanation=b.explanation, hints=b.hints, count=max(b.count // len(mine), 1)) for p in mine] or [b]
    return out + placed
