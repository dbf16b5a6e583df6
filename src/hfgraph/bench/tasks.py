"""What is timed: prompts, new tokens, and which part of the run counts."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Task:
    """One workload. Prompts of unequal length are padded on the left.

    Attributes:
        prompts: the length of each prompt of the batch, in tokens.
        new: tokens to write; 0 is one forward pass that gives the logits of the last token.
        timed: "prompt" (the forward pass), "step" (one step of decoding, the prompt's excluded) or "all".
    """

    name: str
    text: str
    prompts: tuple[int, ...]
    new: int
    timed: str

    @property
    def batch(self) -> int:
        """Sequences."""
        return len(self.prompts)

    @property
    def length(self) -> int:
        """Tokens of the longest prompt."""
        return max(self.prompts)

    @property
    def tokens(self) -> int:
        """Tokens read or written in what is timed."""
        return {"prompt": sum(self.prompts), "step": self.batch, "all": self.batch * self.new}[self.timed]

    def within(self, positions: int | None) -> Task:
        """The same for a model that reads at most `positions` tokens: shorter where it must be."""
        if positions is None or self.length + self.new <= positions:
            return self
        new = min(self.new, positions // 2)
        room = positions - new
        return replace(self, new=new, prompts=tuple(max(1, n * room // self.length) for n in self.prompts))


TASKS: dict[str, Task] = {
    t.name: t
    for t in (
        Task("prefill", "one prompt of 512 tokens", (512,), 0, "prompt"),
        Task("decode-1", "one sequence, after a prompt of 128 tokens", (128,), 33, "step"),
        Task("decode-8", "eight sequences, after prompts of 128 tokens", (128,) * 8, 33, "step"),
        Task("ragged", "16 prompts of 16 to 256 tokens, 32 new tokens each", tuple(range(16, 257, 16)), 32, "all"),
    )
}
