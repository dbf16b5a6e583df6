"""What a model computes in eager mode, counted from its calls of functions and modules, without hfgraph.

Names of functions, classes and modules may be used here: this is the other side of the comparison.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from hfgraph.zoo.expected.attentions import Attentions
from hfgraph.zoo.expected.gated import GatedMLPs
from hfgraph.zoo.expected.modules import mixtures, norms, rotations
from hfgraph.zoo.expected.siblings import Siblings
from hfgraph.zoo.expected.watch import Counts, Places
from hfgraph.zoo.models import logits

KINDS = ("norm", "rope", "attention", "glu", "moe", "merged")


def run(model: nn.Module, inputs: Mapping[str, Any]) -> tuple[Tensor, dict[str, Counter[str]]]:
    """Run the model once.

    Returns:
        Its logits; and by kind how often each module, by its path, computes it. Rotations count tensors.
    """
    with ExitStack() as stack:
        counts = Counts(stack.enter_context(Places.of(model)))
        for watch in (rotations(counts), mixtures(model, counts), norms(model, counts), Attentions(counts), GatedMLPs(counts), Siblings(counts)):
            stack.enter_context(watch)
        out = logits(model(**inputs))
    return out, {kind: +counts.found[kind] for kind in KINDS}
