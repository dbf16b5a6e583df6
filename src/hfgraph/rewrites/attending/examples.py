"""Spellings of attention, for the tests."""

from __future__ import annotations

from hfgraph.graph.recogniser import Example

EXAMPLES: tuple[Example, ...] = ()
