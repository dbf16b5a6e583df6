"""Which keys a query may attend to, as a boolean tensor: built only where no kernel takes the structure itself."""

from __future__ import annotations

import torch
from torch import Tensor

from hfgraph.graph.values import same_size


def is_causal(q: Tensor, k: Tensor, left: int, right: int, chunk: int, offset: int | None) -> bool:
    """All keys up to the query's own position, for as many queries as keys."""
    aligned = same_size(q.shape[-2], k.shape[-2])
    return right == 0 and left < 0 and not chunk and aligned and (offset is None or same_size(offset, 0))


def is_full(q: Tensor, left: int, right: int, chunk: int, offset: int | None) -> bool:
    """The position alone forbids nothing: no bounds at all, or the one query is the last position."""
    last = right == 0 and offset is None and same_size(q.shape[-2], 1)
    return left < 0 and not chunk and (right < 0 or last)


def allowed_keys(
    q: Tensor,
    k: Tensor,
    mask: Tensor | None,
    segments: Tensor | None,
    start: Tensor | None,
    left: int,
    right: int,
    chunk: int,
    offset: int | None,
) -> Tensor | None:
    """All restrictions in one tensor, True where a query may attend; None where there are none.

    Args: see `attention`.

    Returns:
        Boolean, broadcastable to (..., H, Q, K).
    """
    found = mask
    if segments is not None:
        own = segments[:, torch.arange(q.shape[-2], device=q.device) + (k.shape[-2] - q.shape[-2])]
        found = _both(found, own[:, None, :, None] == segments[:, None, None, :])
    if start is None and is_full(q, left, right, chunk, offset):
        return found
    keys = torch.arange(k.shape[-2], device=q.device)
    queries = torch.arange(q.shape[-2], device=q.device)[:, None]
    if start is not None:
        queries = queries + start
    elif offset is not None:
        queries = queries + offset
    else:
        queries = queries + (k.shape[-2] - q.shape[-2])
    if right >= 0:
        found = _both(found, keys <= queries + right)
    if left >= 0:
        found = _both(found, keys >= queries - left)
    if chunk:
        found = _both(found, keys // chunk == queries // chunk)
    return found


def _both(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a & b
