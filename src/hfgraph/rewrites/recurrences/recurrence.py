"""A recurrence, said by what it does for one token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Step = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Form:
    """One choice of what goes into each token.

    Attributes:
        step: ``(state, **inputs) -> (state, output)`` for one token; every tensor has the batch as its first dim.
        inputs: the dims of each of the step's tensors behind the batch, by letters, such as "H K"; those named in `constant` are the same for all
            tokens and sequences and have no batch.
        note: what sets this form apart, in words.
    """

    step: Step
    inputs: Mapping[str, str]
    constant: frozenset[str] = frozenset()
    note: str = ""

    @property
    def logged(self) -> Form:
        """The same form, given the logarithm of its decay."""

        def step(state: Tensor, *, decay: Tensor, **rest: Tensor) -> tuple[Tensor, Tensor]:
            return self.step(state, decay=decay.exp(), **rest)

        return replace(self, step=step)


@dataclass(frozen=True, eq=False)
class Recurrence:
    """A layer that reads its sequence token by token, and keeps nothing of the past but a state.

    Attributes:
        state: dims of one sequence's state, by letters; of several tensors of the same dims, with their number in front, such as "3 D".
        forms: the ways in which its inputs are given.
        start: what each of several tensors begins with; one begins with zeros.
    """

    state: str
    forms: tuple[Form, ...]
    start: tuple[float, ...] = ()
    name: str = ""

    def named(self, name: str) -> Recurrence:
        """The recurrence as discovered: its file gives its name."""
        return replace(self, name=name)

    def state_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of one sequence's state for the sizes of its letters."""
        return tuple(int(letter) if letter.isdigit() else sizes[letter] for letter in self.state.split())

    def run(self, form: Form, inputs: Mapping[str, Tensor], sizes: Mapping[str, int], state: Tensor | None) -> Tensor:
        """The outputs of all tokens, one after the other.

        Args:
            inputs: (B, T, ...), and constants without the first two dims.
            state: (B, ...), what the first token finds; None: the start.

        Returns:
            (B, T, ...).
        """
        each = {n: t for n, t in inputs.items() if n not in form.constant}
        fixed = {n: t for n, t in inputs.items() if n in form.constant}
        first = next(iter(each.values()))
        if state is None:
            state = self._start(first, sizes)
        outputs = []
        for t in range(first.shape[1]):
            state, y = form.step(state, **{n: x[:, t] for n, x in each.items()}, **fixed)
            outputs.append(y)
        return torch.stack(outputs, 1)

    def _start(self, like: Tensor, sizes: Mapping[str, int]) -> Tensor:
        own = self.state_shape(sizes)
        if not self.start:
            return like.new_zeros(like.shape[0], *own)
        return torch.stack([like.new_full((like.shape[0], *own[1:]), value) for value in self.start], 1)


def bound(shapes: Mapping[str, Sequence[int]], letters: Mapping[str, str]) -> dict[str, int] | None:
    """The sizes of letters, where shapes fit them."""
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        wanted = letters[name].split()
        if len(wanted) != len(shape) or any(sizes.setdefault(w, n) != n for w, n in zip(wanted, shape, strict=True)):
            return None
    return sizes
