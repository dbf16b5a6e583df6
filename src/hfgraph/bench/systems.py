"""What is compared: a backend of `torch.compile`, and settings of Inductor that a process needs from its start."""

from __future__ import annotations

from dataclasses import dataclass

BASELINE = "eager"
OURS = "hfgraph"  # a backend; systems on it must be right


@dataclass(frozen=True)
class System:
    """One way to run a model.

    Attributes:
        backend: of `torch.compile`; None does not compile.
        freezing: weights are constants of the compiled code, packed once. Dynamo itself reads this, so it is set for a process.
        devices: where it exists.
    """

    name: str
    backend: str | None
    freezing: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")

    @property
    def ours(self) -> bool:
        """What the gate is for: where it is wrong, nothing is timed."""
        return self.backend == OURS

    def copies(self, graphs: int) -> int:
        """How often the weights are in memory; freezing keeps a packed copy for each graph besides the model's own."""
        return 1 + (graphs if self.freezing else 0)


SYSTEMS: dict[str, System] = {
    s.name: s
    for s in (
        System(BASELINE, None),
        System("inductor", "inductor"),
        System("inductor-freezing", "inductor", freezing=True, devices=("cpu",)),
        System("hfgraph", OURS),
    )
}
