"""What the tests of the zoo share: seed, samples, and the warnings that some models give."""

from __future__ import annotations

import os
import random

import pytest

from hfgraph import zoo

SEED = int(os.environ.get("HFGRAPH_SEED", "1"))
CAUSAL = sorted(zoo.names("causal"))
# Models that eager cannot run in bfloat16.
NOT_IN_BFLOAT16 = {
    "inkling2_loop_text": "its router multiplies float32 values by bfloat16 weights",
    "inkling2_text": "its router multiplies float32 values by bfloat16 weights",
    "xlstm": "its recurrence multiplies float32 states by bfloat16 weights",
}
PATIENT = pytest.mark.filterwarnings(
    # Dynamo itself, where a model calls a custom autograd function.
    "ignore:.*torch.autograd.function.Function.*should not be instantiated:DeprecationWarning",
    # transformers caches its look-up of optional kernels (mamba, falcon_mamba, jamba); tracing through the cache is right.
    "ignore:Dynamo detected a call to a `functools.lru_cache`-wrapped function:UserWarning",
)


def sample(count: int, why: str) -> list[str]:
    """`count` causal models, the same for one seed, others for other reasons."""
    return sorted(random.Random(f"{SEED} {why}").sample(sorted(set(CAUSAL) - set(NOT_IN_BFLOAT16)), count))
