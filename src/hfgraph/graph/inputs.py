"""Descriptions of an op's or a rule's arguments: used to trace patterns, to make test inputs and to benchmark."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

# Sizes that the dims of a description take in tests: odd and not powers of two.
SIZES: Mapping[str, int] = {"B": 3, "T": 5, "H": 7, "D": 63}


def _size(name: str, sizes: Mapping[str, int]) -> int:
    """The size of a dim: a number's own; a name that `sizes` lacks has one of its own, so that two names are never taken for one."""
    times = name.rstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    if times and times.isdigit():
        return int(times) * (_size(name[len(times) :], sizes) if times != name else 1)
    return sizes[name] if name in sizes else 17 + 2 * sum(ord(c) * 31**i for i, c in enumerate(name)) % 46


@dataclass(frozen=True)
class Scalar:
    """A number that the pattern carries. ``example`` is used in tests; ``optional`` lets None stand for "not there"."""

    example: float | int | None
    optional: bool = False


@dataclass(frozen=True)
class Switch(Scalar):
    """A number that is 0 or 1."""

    example: int = 0


@dataclass(frozen=True)
class Numbers:
    """A list of numbers that an op carries, or None."""

    example: tuple[float, ...] | None = None
    optional: bool = True


@dataclass(frozen=True)
class Dtype:
    """A dtype that the pattern carries."""

    example: torch.dtype | None = None
    optional: bool = False


_KINDS = {"bool": torch.bool, "int": torch.int64}


@dataclass(frozen=True)
class Choice:
    """A word that the pattern carries, one of several; tests try each."""

    options: tuple[str, ...]
    optional = False

    @property
    def example(self) -> str:
        return self.options[0]


@dataclass(frozen=True)
class Dims:
    """A tensor's dims, e.g. "B T D"; a leading "..." lets it have any rank, a final "?" lets it be None. "2D" is twice as
    wide as "D", and a number is a size that never varies. "bool" or "int" before the dims say that it holds conditions or whole numbers."""

    names: tuple[str, ...]
    any_rank: bool = False
    optional: bool = False
    kind: str = "float"

    @staticmethod
    def parse(text: str) -> Dims:
        optional = text.endswith("?")
        words = text.removesuffix("?").split()
        kind = words.pop(0) if words and words[0] in _KINDS else "float"
        any_rank = bool(words) and words[0] == "..."
        return Dims(tuple(("B", "T", *words[1:]) if any_rank else words), any_rank, optional, kind)

    def dtype(self, of_floats: torch.dtype) -> torch.dtype:
        """The tensor's dtype where those of floats have `of_floats`."""
        return _KINDS.get(self.kind, of_floats)

    @property
    def fixed(self) -> tuple[bool, ...]:
        """Which dims are numbers."""
        return tuple(n.isdigit() for n in self.names)

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(_size(n, sizes) for n in self.names)


class Inputs(Mapping[str, "Dims | Scalar | Numbers | Dtype | Choice"]):
    """Arguments by name: a string gives a tensor's dims, `Scalar` a number, `Dtype` a dtype, `Choice` a word.

    ``Inputs(x="... D", weight="D", eps=Scalar(1e-6), scales=(1, 1e-3, 1e3))``; ``scales`` multiplies the first tensor.
    """

    def __init__(self, scales: tuple[float, ...] = (1.0, 1e-3, 1e3), **arguments: str | Scalar | Numbers | Dtype | Choice) -> None:
        self.scales = scales
        self._arguments = {n: Dims.parse(a) if isinstance(a, str) else a for n, a in arguments.items()}

    def __getitem__(self, name: str) -> Dims | Scalar | Numbers | Dtype | Choice:
        return self._arguments[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arguments)

    def __len__(self) -> int:
        return len(self._arguments)

    @property
    def tensors(self) -> dict[str, Dims]:
        return {n: a for n, a in self._arguments.items() if isinstance(a, Dims)}

    def make(
        self,
        dtype: torch.dtype = torch.float32,
        *,
        scale: float = 1.0,
        seed: int = 0,
        sizes: Mapping[str, int] = SIZES,
        device: str = "cpu",
        absent: Collection[str] = (),
    ) -> dict[str, Any]:
        """Concrete arguments: seeded normal tensors, the first multiplied by `scale`; vectors lie around one.

        Args:
            absent: optional tensors to leave out (None in their place).
        """
        generator = torch.Generator().manual_seed(seed)
        made: dict[str, Any] = {}
        for i, (name, a) in enumerate(self._arguments.items()):
            if isinstance(a, Dims):
                value = torch.randn(a.shape(sizes), generator=generator, dtype=torch.float64)
                if a.kind != "float":
                    value = value > -1 if a.kind == "bool" else value.abs().mul(2).floor()
                else:
                    value = value * scale if i == 0 else 1 + 0.3 * value if len(a.names) == 1 else value
                made[name] = None if name in absent else value.to(a.dtype(dtype)).to(device)
            else:
                made[name] = a.example
        return made
