"""Records of many architectures, and the file that they are kept in."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hfgraph.errors import NotACoverageTable
from hfgraph.zoo.record import TOLERANCE, Record


@dataclass(frozen=True)
class Share:
    """Sites found among those expected."""

    found: int
    expected: int

    def __str__(self) -> str:
        return f"{self.found} of {self.expected}" if self.expected else ""


@dataclass
class Coverage:
    """Records by name."""

    records: dict[str, Record] = field(default_factory=dict)

    def share(self, kind: str, family: str = "", *, one_graph: bool = True) -> Share:
        """Sites of a kind that were found, never more of a model than were expected; of models that trace in one graph."""
        chosen = [r for r in self.records.values() if family in ("", r.family) and (_counts(r) or (not one_graph and not r.failed))]
        expected = sum(r.expected.get(kind, 0) for r in chosen)
        return Share(expected - sum(m.count for r in chosen for m in r.missed if m.kind == kind), expected)

    @property
    def wrong(self) -> list[Record]:
        """Architectures whose logits are not eager's, or that failed."""
        return [r for r in self.records.values() if r.failed or not r.error <= TOLERANCE]

    @property
    def families(self) -> Counter[str]:
        return Counter(r.family for r in self.records.values())

    @property
    def in_one_graph(self) -> Counter[str]:
        """Of how many models `share` speaks, by family."""
        return Counter(r.family for r in self.records.values() if _counts(r))

    @property
    def versions(self) -> Counter[str]:
        """What records were made with, and how many."""
        return Counter(", ".join(f"{p} {v}" for p, v in r.versions.items()) for r in self.records.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"models": {n: r.to_dict() for n, r in sorted(self.records.items())}}

    def save(self, file: Path) -> None:
        """Write the file: a line for each architecture. An interrupted writing leaves the old one."""
        lines = [f"{json.dumps(n)}: {json.dumps(r.to_dict())}" for n, r in sorted(self.records.items())]
        text = '{"models": {\n' + ",\n".join(lines) + "\n}}\n"
        new = file.with_name(file.name + ".new")
        new.write_text(text, encoding="utf-8")
        new.replace(file)

    @classmethod
    def load(cls, file: Path) -> Coverage:
        """Read such a file. Older ones name the versions once, for all records.

        Raises:
            NotACoverageTable: it is something else.
        """
        try:
            given = json.loads(file.read_text(encoding="utf-8"))
            of_all = {"versions": given.get("versions", {})}
            return cls({n: Record.from_dict({**of_all, **r}) for n, r in given["models"].items()})
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as e:
            raise NotACoverageTable(str(file), f"{type(e).__name__}: {e}") from e

    def stale(self, names: Iterable[str], sources: str, versions: Mapping[str, str]) -> list[str]:
        """Of `names`, those of which nothing is known by this hfgraph and with these versions."""
        known = [(r := self.records.get(n)) is not None and (r.sources, r.versions) == (sources, versions) for n in names]
        return [n for n, is_known in zip(names, known, strict=True) if not is_known]


def _counts(record: Record) -> bool:
    return not record.failed and record.graphs <= 1
