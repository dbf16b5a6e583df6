"""Graph breaks in words: where Dynamo ended a graph, why, and what can be done."""

from __future__ import annotations

import linecache
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch.fx import GraphModule

from hfgraph.causes import Cause, cause_of


@dataclass(frozen=True)
class Break:
    """One place where Dynamo ends a graph, runs Python, and begins another.

    Attributes:
        reason: Dynamo's name for it, which is what to search for.
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

    @property
    def cause(self) -> Cause | None:
        """What the code does there, in words of ours, where we have any."""
        return cause_of(self.reason)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: what Dynamo says, then `words` and `advice`, empty where there are none."""
        return {**asdict(self), **asdict(self.cause or Cause("", ""))}


# What Dynamo writes before the reason itself.
_PREAMBLE = ("Encountered graph break", "Failed to handle graph break gracefully", "Graph break encountered")
# Reasons that Dynamo names by a bytecode where its statistics have words.
_WORDS = {"generic_jump": "Data-dependent branching", "step_unsupported": "Unsupported Python"}


def break_of(gm: GraphModule) -> Break | None:
    """The break that ended a graph from Dynamo; None where the traced code ended."""
    cause: Any = getattr(gm, "compile_subgraph_reason", None)
    if cause is None or not cause.graph_break:
        return None
    found = parsed(str(cause.reason))
    stack = [f for f in cause.user_stack or () if f.lineno]
    return placed(found, stack[-1].filename, stack[-1].lineno or 0) if stack else found


def placed(found: Break, file: str, line: int) -> Break:
    """A break with its place, and the text of the line."""
    return replace(found, source=f"{os.path.basename(file)}:{line}", code=linecache.getline(file, line).strip())


def parsed(text: str, count: int = 1) -> Break:
    """Dynamo's message: a line, then indented `Explanation:` and `Hint:` paragraphs."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith(_PREAMBLE)]
    title = (lines or ["unknown"])[0]
    title = next((words for code, words in _WORDS.items() if title.startswith(code)), title)
    parts = re.split(r"\n\s*(Explanation|Hint|Developer debug context|For more details[^:]*):?", text)
    pairs = list(zip(parts[1::2], parts[2::2], strict=False))
    first = next((t for name, t in pairs if name == "Explanation"), "").strip().split("\n\n")[0]
    hints = tuple(_line(t) for name, t in pairs if name == "Hint" and "report an issue" not in t)
    return Break(title, _line(first), hints, count=count)


def _line(text: str) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", " ".join(text.split()))


@contextmanager
def watched() -> Iterator[list[Break]]:
    """Collect graph breaks as Dynamo logs them: only there is the place of each."""
    found: list[Break] = []
    logger = logging.getLogger(_LOGGER)
    handler = _Listener(found)
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield found
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


_LOGGER = "torch._dynamo.symbolic_convert.__graph_breaks"
_LOGGED = re.compile(r"in user code at (.+):(\d+)\nGraph Break Reason: (.*?)(?:\n\nUser code traceback:|$)", re.DOTALL)


class _Listener(logging.Handler):
    def __init__(self, found: list[Break]) -> None:
        super().__init__(logging.DEBUG)
        self.found = found

    def emit(self, record: logging.LogRecord) -> None:
        hit = _LOGGED.search(record.getMessage())
        if hit:
            self.found.append(placed(parsed(hit[3]), hit[1], int(hit[2])))


def gathered(seen: Iterable[Break], counted: Mapping[str, int]) -> list[Break]:
    """Breaks as `watched`, each place once, as often as Dynamo's statistics (message -> how often) have their reason.

    A break inside of a call is logged again by each caller's frame, and counted once.
    """
    places = list(dict.fromkeys(seen))
    shared = Counter(b.reason for b in places)
    known = {b.reason: b for b in (parsed(text, n) for text, n in counted.items())}
    out = [replace(b, count=max(known[b.reason].count // shared[b.reason], 1) if b.reason in known else 1) for b in places]
    return out + [b for reason, b in known.items() if reason not in shared]
