"""A task on a model: its inputs, its logits for the gate, and its times."""

from __future__ import annotations

import inspect
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import LogitsProcessor, PreTrainedModel, StaticCache, StoppingCriteria

from hfgraph import models
from hfgraph.bench.loading import multiplied, positions
from hfgraph.bench.tasks import Task

GATE_TOKENS = 4


@dataclass
class Ready:
    """A task with its inputs; the cache is allocated once, because compiled code knows it by its address."""

    task: Task
    ids: Tensor
    mask: Tensor
    forced: Tensor
    cache: StaticCache | None


@dataclass(frozen=True)
class Timing:
    """Seconds of what the task times, and of the time until the first token."""

    seconds: float
    first: float


@dataclass(frozen=True)
class Work:
    """What has to be done at least in what the task times."""

    flops: float
    bytes: float


@torch.no_grad()
def prepare(model: PreTrainedModel, task: Task, seed: int) -> Ready:
    """Inputs, equal in every process, and a cache of fixed size."""
    total = task.length + max(task.new, 1)
    tokens: Any = models.inputs(model, batch=task.batch, length=min(total, positions(model.config) or total), seed=seed)["input_ids"]
    ids = tokens[:, : task.length].clone()
    forced = tokens[:, -min(GATE_TOKENS, max(task.new, 1)) :]
    starts = torch.tensor([task.length - n for n in task.prompts], device=ids.device)[:, None]
    mask = (torch.arange(task.length, device=ids.device)[None] >= starts).long()
    ids = torch.where(mask.bool(), ids, torch.zeros_like(ids))
    return Ready(task, ids, mask, forced, _cache(model, task) if task.new else None)


def _cache(model: PreTrainedModel, task: Task) -> StaticCache:
    """An uncompiled call allocates it, whatever its layers look like; allocated while compiling it would cost one more graph."""
    cache = StaticCache(config=model.config, max_cache_len=task.length + task.new)
    one = torch.zeros((task.batch, 1), dtype=torch.long, device=model.device)
    model.forward(input_ids=one, cache=cache, use_cache=True)
    cache.reset()
    return cache


@torch.no_grad()
def logits(model: PreTrainedModel, ready: Ready) -> Tensor:
    """Logits of the last token and, where tokens are written, of a few prescribed ones: (sequences, tokens, vocabulary)."""
    if ready.cache is None:
        return model(**_prompt(model, ready)).logits[:, -1:].clone()
    found: Any = _generate(model, ready, ready.forced.shape[1], logits_processor=[Forced(ready.forced)], output_logits=True, return_dict_in_generate=True)
    return torch.stack(found.logits, 1).to(model.dtype)  # generate has widened them


@torch.no_grad()
def timing(model: PreTrainedModel, ready: Ready) -> Timing:
    """Run once and time it."""
    marks = Marks(model.device)
    marks.mark()
    if ready.cache is None:
        model(**_prompt(model, ready))
        marks.mark()
    else:
        _generate(model, ready, ready.task.new, stopping_criteria=[AfterEachToken(marks)])
    return timed(ready.task, marks.seconds())


def timed(task: Task, marks: list[float]) -> Timing:
    """What counts of the seconds after which each token was there."""
    whole = {"prompt": marks[0], "all": marks[-1], "step": (marks[-1] - marks[0]) / max(len(marks) - 1, 1)}
    return Timing(whole[task.timed], marks[0])


@torch.no_grad()
def first_token(model: PreTrainedModel, ready: Ready) -> None:
    """The request until its first token."""
    if ready.cache is None:
        model(**_prompt(model, ready)).logits[:, -1].argmax(-1).tolist()
    else:
        _generate(model, ready, 1).tolist()


@torch.no_grad()
def work(model: PreTrainedModel, ready: Ready) -> Work | None:
    """Operations as torch counts them, and bytes that must be read: weights once and the cache as far as it is filled.

    Attention is counted as the matrix products that it is. None where a task mixes prompts and steps.
    """
    task = ready.task
    if task.timed == "all":
        return None
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        if ready.cache is None:
            model.forward(**_prompt(model, ready))
        else:
            ready.cache.reset()
            model.forward(input_ids=ready.ids[:, :1], cache=ready.cache, use_cache=True)
    read = multiplied(model)
    if ready.cache is not None:
        read += cached_bytes(ready.cache, task.length + task.new / 2)
    return Work(float(counter.get_total_flops()), float(read))


def cached_bytes(cache: StaticCache, filled: float) -> float:
    """Bytes of keys and values of `filled` tokens, as far as each layer keeps them."""
    tensors = [x for layer in cache.layers for x in (getattr(layer, "keys", None), getattr(layer, "values", None)) if x is not None]
    return sum(x.numel() * x.element_size() * min(filled / x.shape[-2], 1) for x in tensors)


def _prompt(model: PreTrainedModel, ready: Ready) -> dict[str, Any]:
    given: dict[str, Any] = {"input_ids": ready.ids, "use_cache": False}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        given["logits_to_keep"] = 1
    return given


def _generate(model: PreTrainedModel, ready: Ready, new: int, **rest: Any) -> Any:
    assert ready.cache is not None
    ready.cache.reset()
    generate: Any = model.generate
    return generate(input_ids=ready.ids, attention_mask=ready.mask, cache=ready.cache, max_new_tokens=new, min_new_tokens=new, **rest)


class Forced(LogitsProcessor):
    """Prescribes what is written, so that all systems go on from the same tokens."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens, self.step = tokens, 0

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        chosen = self.tokens[:, self.step : self.step + 1]
        self.step += 1
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)


class AfterEachToken(StoppingCriteria):
    """Stops nothing; marks when each token was there."""

    def __init__(self, marks: Marks) -> None:
        self.marks = marks

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        self.marks.mark()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


class Marks:
    """Points in time: of the wall clock, or of the GPU, whose work goes on while Python is ahead of it."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[Any] = []

    def mark(self) -> None:
        """Now."""
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """From the first mark to each later one."""
        first, *later = self._marks
        if self._cuda:
            torch.cuda.synchronize()
            return [first.elapsed_time(m) / 1e3 for m in later]
        return [m - first for m in later]
