"""Merged linears leave weights where they lie, if others see that memory and torch does not know of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from test_merged import Block, check, compiled, merged, reasons, together
from torch import Tensor, nn
from torch.multiprocessing import SimpleQueue, get_context
from transformers import AutoModelForCausalLM

from hfgraph import merge
from hfgraph.errors import NotStacked
from hfgraph.graph.mapped import is_of_a_file

TINYLM = Path(__file__).parents[2] / "examples" / "tinylm"
FOREIGN = "its memory is an array's, not torch's own (weight.data = weight.data.clone() gives it some)"
HELD = "other tensors share its memory and would not follow"
SHARED = "other processes share its memory and would not follow"


def _from_numpy(weight: Tensor, _: Path) -> Tensor:
    return torch.from_numpy(weight.numpy().copy())


def _from_dlpack(weight: Tensor, _: Path) -> Tensor:
    return torch.from_dlpack(np.array(weight.numpy()))


def _from_a_buffer(weight: Tensor, _: Path) -> Tensor:
    return torch.frombuffer(bytearray(weight.numpy().tobytes()), dtype=weight.dtype).view(weight.shape)


def _mapped(weight: Tensor, folder: Path) -> Tensor:
    torch.save(weight, folder / "weight.pt")
    return torch.load(folder / "weight.pt", mmap=True)


def _shared(weight: Tensor, _: Path) -> Tensor:
    return weight.clone().share_memory_()


def _shared_file(weight: Tensor, folder: Path) -> Tensor:
    return torch.from_file(str(folder / "shared"), shared=True, size=weight.numel()).view(weight.shape).copy_(weight)


@torch.no_grad()
@pytest.mark.parametrize(
    ("make", "reason"),
    [(_from_numpy, FOREIGN), (_from_dlpack, FOREIGN), (_from_a_buffer, FOREIGN), (_mapped, HELD), (_shared, SHARED), (_shared_file, SHARED)],
)
def test_weights_stay_in_memory_that_others_see(make: Callable[[Tensor, Path], Tensor], reason: str, tmp_path: Path) -> None:
    block, x = Block(), torch.randn(2, 5, 48)
    memory = make(block.k.weight, tmp_path)
    block.k.weight = nn.Parameter(memory, requires_grad=False)
    f = compiled(block)
    check(f, block, x)
    assert merged() == 1 and [r.split("but ")[1] for r in reasons()] == [reason]  # gate and up are torch's own
    memory.mul_(3)
    assert block.k.weight.data_ptr() == memory.data_ptr()
    check(f, block, x)


@torch.no_grad()
def test_pinned_weights_stay_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no GPU nothing can be pinned."""
    block = Block()
    monkeypatch.setattr(nn.Parameter, "is_pinned", lambda self: self is block.up.weight, raising=False)
    check(compiled(block), block, torch.randn(2, 5, 48))
    assert merged() == 1 and [r.split("but ")[1] for r in reasons()] == ["its memory is pinned, and a new block would not be"]


def _learn(block: nn.Module, begin: SimpleQueue[int], done: SimpleQueue[int]) -> None:
    begin.get()
    with torch.no_grad():
        block.k.weight.zero_()
        block.gate.weight.zero_()
    done.put(1)


@torch.no_grad()
def test_another_process_still_updates_the_weights() -> None:
    """A learner writes the weights that a compiled model reads."""
    processes = get_context("fork")
    block, x, begin, done = Block().share_memory(), torch.randn(2, 5, 48), processes.SimpleQueue(), processes.SimpleQueue()
    learner = processes.Process(target=_learn, args=(block, begin, done))
    learner.start()
    f = compiled(block)
    f(x)
    assert merged() == 0 and block.k.weight.is_shared()
    begin.put(1)
    done.get()
    learner.join()
    assert not block.k.weight.any()
    check(f, block, x)


@torch.no_grad()
def test_shared_weights_in_place_of_stacked_ones_are_copied_with_a_warning() -> None:
    block, x = Block(), torch.randn(2, 5, 48)
    f = compiled(block)
    f(x)
    block.gate.weight.data = block.gate.weight.data.clone().share_memory_()
    with pytest.warns(NotStacked, match=rf"2 weights that hfgraph had stacked .* of a new one {SHARED}"):
        check(f, block, x)
    assert block.gate.weight.is_shared()


@torch.no_grad()
def test_a_block_that_lies_in_shared_memory_already_is_used_as_it_is() -> None:
    """Nothing has to move."""
    block, x = Block(), torch.randn(2, 5, 48)
    f = compiled(block)
    f(x)
    block.gate.weight.untyped_storage().share_memory_()
    check(compiled(block, dynamic=True), block, x)
    assert merged() == 2 and together(block.gate.weight, block.up.weight) and block.up.weight.is_shared()


@torch.no_grad()
def test_weights_mapped_from_a_checkpoint_are_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the checkpoint's own dtype `from_pretrained` copies nothing on a CPU. Nobody else sees this process's view of the file."""
    monkeypatch.setitem(merge.PAYS, ("cpu", torch.bfloat16), float("inf"))
    model, ids = AutoModelForCausalLM.from_pretrained(TINYLM, dtype=torch.bfloat16).eval(), torch.tensor([[5, 6, 7]])
    before = (TINYLM / "model.safetensors").read_bytes()
    weight = model.model.layers[0].self_attn.q_proj.weight
    assert not weight.untyped_storage().resizable() and is_of_a_file(weight.data_ptr())
    f = compiled(model)
    f(input_ids=ids, use_cache=False)
    assert merged() == 8 and not reasons()
    weight.zero_()
    assert before == (TINYLM / "model.safetensors").read_bytes()


def test_memory_of_a_file() -> None:
    """Not a program's own memory, and not a file that others may write."""
    assert not is_of_a_file(torch.randn(1000).data_ptr()) and not is_of_a_file(torch.from_numpy(np.zeros(10**6)).data_ptr()) and not is_of_a_file(0)
