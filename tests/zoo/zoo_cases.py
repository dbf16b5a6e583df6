"""What the tests of the zoo share: seed, samples, and the warnings that some models give."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence

import pytest

from hfgraph import zoo

SEED = int(os.environ.get("HFGRAPH_SEED", "1"))
CAUSAL = sorted(zoo.names("causal"))
_HALF_BY_HALF = "its router multiplies float32 values by bfloat16 weights"
# Models that eager cannot run in bfloat16, and one that shows nothing there.
NOT_IN_BFLOAT16 = {
    "fnet": "there is no Fourier transform of bfloat16",
    **dict.fromkeys(("inkling2", "inkling2_loop", "inkling2_loop_text", "inkling2_text"), _HALF_BY_HALF),
    "mra": "its sparse product is float32",
    "paligemma": "Dynamo alone changes its logits",
    "xlstm": "its recurrence multiplies float32 states by bfloat16 weights",
}
PATIENT = pytest.mark.filterwarnings(
    # Dynamo itself, where a model calls a custom autograd function.
    "ignore:.*torch.autograd.function.Function.*should not be instantiated:DeprecationWarning",
    # transformers caches its look-up of optional kernels (mamba, falcon_mamba, jamba); tracing through the cache is right.
    "ignore:Dynamo detected a call to a `functools.lru_cache`-wrapped function:UserWarning",
)


def sample(count: int, why: str, among: Sequence[str] = CAUSAL) -> list[str]:
    """`count` models, the same for one seed, others for other reasons."""
    return sorted(random.Random(f"{SEED} {why}").sample(sorted(set(among) - set(NOT_IN_BFLOAT16)), count))
