"""Many architectures side by side, each in a process that others share; what is known is kept at once."""

from __future__ import annotations

import logging
import multiprocessing
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

from hfgraph import models
from hfgraph.backend import source_digest
from hfgraph.zoo.record import Record, begun, examine, installed
from hfgraph.zoo.table import Coverage

Say = Callable[[str, int, int], None]  # what was done last, models done, models in all


def survey(names: Sequence[str], *, jobs: int, file: Path | None = None, say: Say = lambda *_: None) -> Coverage:
    """Examine architectures.

    Args:
        jobs: processes.
        file: records go there as they come. What it holds already, by the same hfgraph and the same versions, is not examined again.

    Raises:
        NotACoverageTable: `file` is something else.
    """
    known = Coverage.load(file) if file is not None and file.exists() else Coverage()
    chosen = known.stale(names, source_digest(), installed())
    left = len(chosen)
    say("starting", len(names) - left, len(names))
    for record in _examined(deque(chosen), jobs):
        known.records[record.name] = record
        if file is not None:
            known.save(file)
        left -= 1
        say(record.name, len(names) - left, len(names))
    return Coverage({n: known.records[n] for n in names})


def _examined(waiting: deque[str], jobs: int) -> Iterator[Record]:
    """Where a process dies, what was under way is done again one by one, to see which it was."""
    while waiting:
        for name in (yield from _until_one_dies(waiting, jobs)):
            if (yield from _until_one_dies(deque([name]), 1)):
                yield replace(begun(name), failed="its process died")


def _until_one_dies(waiting: deque[str], jobs: int) -> Generator[Record, None, list[str]]:
    """Takes from `waiting`. Returns what was under way when a process died."""
    running: dict[Future[Record], str] = {}
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _quiet) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    future = pool.submit(examine, waiting[0])
                    running[future] = waiting.popleft()
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield future.result()
                    del running[future]
        except BrokenProcessPool:
            return list(running.values())
    return []


def _quiet() -> None:
    """A process of its own: one thread, and only what is asked for on the screen."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    models.quiet()
