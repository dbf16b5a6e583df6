"""What Dynamo keeps with a function's code: one entry for each compilation, of which it allows eight."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import CodeType
from typing import Any

import torch
from torch import nn
from torch._C._dynamo.eval_frame import _debug_get_cache_entry_list as entries
from torch._C._dynamo.eval_frame import reset_code
from torch._dynamo.convert_frame import register_bytecode_hook
from torch._dynamo.guards import DeletedGuardManagerWrapper


@contextmanager
def dropped_afterwards() -> Iterator[None]:
    """Entries that are made within go at the end: they would use up the user's recompilations, and keep graphs alive. Those that were there stay."""
    before: dict[CodeType, list[Any]] = {}
    hook = register_bytecode_hook(partial(_note, before))
    try:
        yield
    finally:
        hook.remove()
        for code, kept in before.items():
            _drop(code, kept)


def _note(before: dict[CodeType, list[Any]], code: CodeType, new_code: CodeType) -> None:
    """Called before the new entry of `code` is there."""
    before.setdefault(code, [e.guard_manager for e in entries(code)])


def _drop(code: CodeType, kept: list[Any]) -> None:
    if not kept:
        reset_code(code)
        return
    for entry in entries(code):
        state = entry.guard_manager.extra_state
        if state is not None and all(entry.guard_manager is not k for k in kept):
            state.invalidate(entry, _Nobodys())


class _Nobodys(DeletedGuardManagerWrapper):
    """In place of the guards of a single entry among others: Dynamo can drop all entries of a function, or make one never fit. That one
    still counts against the limit, unless it is said to belong to an object that no call has."""

    def __init__(self) -> None:
        super().__init__("hfgraph only looked")
        self.id_matched_objs = {"": weakref.ref(_NOBODY)}


class _Nobody:
    pass


_NOBODY = _Nobody()


def limit_reached(model: Callable[..., Any]) -> int | None:
    """The limit of recompilations, if `model` has as many entries: Dynamo compiles it no more."""
    function = model.forward if isinstance(model, nn.Module) else model
    code = getattr(function, "__code__", None)
    limit = torch._dynamo.config.recompile_limit
    return limit if code is not None and len(entries(code)) >= limit else None
