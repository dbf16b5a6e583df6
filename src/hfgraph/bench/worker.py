"""One process per system: it loads the model, compiles it, and answers requests, one line of JSON each."""

from __future__ import annotations

import importlib
import json
import os
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from hfgraph.bench.systems import BASELINE, SYSTEMS
from hfgraph.errors import HfgraphError, HfgraphWarning, NothingCompiled

_START = time.perf_counter()
_LEAST = 0.5  # seconds of a sample: what is shorter is run again
_MOST = 50


class Session:
    """What a worker has, and the requests that it knows: its public methods."""

    def __init__(self, plan: dict[str, Any], system: str, folder: str) -> None:
        import torch

        from hfgraph import models
        from hfgraph.bench.gate import Logits
        from hfgraph.bench.plan import Plan

        models.quiet()
        _import_compiler(system)
        warnings.showwarning = self._note
        self.plan, self.logits = Plan.read(plan), Logits(folder)
        self.name, self.system = system, SYSTEMS.get(system)
        if self.plan.threads:
            torch.set_num_threads(self.plan.threads)
        self.ready: dict[str, Any] = {}
        self.runs: dict[str, int] = {}
        self.applied: set[str] = set()
        self.notes: list[str] = []
        self.imports = time.perf_counter() - _START

    def load(self) -> dict[str, Any]:
        """Build the model and the inputs of all tasks."""
        from hfgraph.bench import loading, running
        from hfgraph.bench.tasks import TASKS

        start = time.perf_counter()
        self.model = loading.build(self.plan)
        seconds = time.perf_counter() - start
        limit = loading.positions(self.model.config)
        for name in self.plan.tasks:
            self.ready[name] = running.prepare(self.model, TASKS[name].within(limit), self.plan.seed)
        return {"import_seconds": self.imports, "load_seconds": seconds, "model_class": type(self.model).__name__}

    def exact(self, dtype: str) -> dict[str, Any]:
        """As the reference: logits of all tasks, kept for the others."""
        import torch

        from hfgraph.bench import gate, running

        wide = getattr(torch, dtype)
        self.model.to(wide)
        with gate.reference(wide):
            for name, ready in self.ready.items():
                again = running.prepare(self.model, ready.task, self.plan.seed)
                self.logits.put("exact", name, running.logits(self.model, again))
        return {}

    def first(self) -> dict[str, Any]:
        """Compile, and the first request until its first token.

        Raises:
            NothingCompiled: torch.compile is switched off.
        """
        import torch

        from hfgraph.bench import running

        task, ready = next(iter(self.ready.items()))
        start = time.perf_counter()
        self._compile()
        running.first_token(self.model, ready)
        if self.system and self.system.backend and not torch._dynamo.utils.counters["stats"]["unique_graphs"]:
            raise NothingCompiled(f"system {self.name}")
        return {"first_token_seconds": time.perf_counter() - start, "first_token_task": task}

    def gate(self, task: str) -> dict[str, Any]:
        """Logits of a task, judged; this also compiles all that the task needs."""
        from hfgraph.bench import running

        values = running.logits(self.model, self.ready[task])
        if self.name == BASELINE:
            self.logits.put("eager", task, values)
        return asdict(self.logits.check(self.name, task, values))

    def work(self, task: str) -> dict[str, Any] | None:
        """Operations and bytes of a task."""
        from hfgraph.bench import running

        found = running.work(self.model, self.ready[task])
        return asdict(found) if found else None

    def sample(self, task: str) -> dict[str, Any]:
        """Time a task once, or so often that a sample lasts long enough; the median counts."""
        from hfgraph.bench import running

        if task not in self.runs:
            start = time.perf_counter()
            running.timing(self.model, self.ready[task])  # nothing is left to compile after this
            self.runs[task] = min(_MOST, max(1, round(_LEAST / (time.perf_counter() - start))))
        found = [running.timing(self.model, self.ready[task]) for _ in range(self.runs[task])]
        seconds, first = (statistics.median(getattr(t, field) for t in found) for field in ("seconds", "first"))
        return {"seconds": seconds, "first": first, "runs": len(found)}

    def state(self) -> dict[str, Any]:
        """Peak memory so far, what hfgraph warned of, and the rules that it applied if one is falsified."""
        import torch

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        gpu = torch.cuda.max_memory_allocated() if self.plan.device == "cuda" else None
        return {"peak_bytes": peak, "peak_gpu_bytes": gpu, "notes": self.notes, "applied": sorted(self.applied)}

    def _note(self, message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        """A graph that hfgraph had to leave alone would be timed under its name: that must be seen."""
        if issubclass(category, HfgraphWarning):
            self.notes.append(str(message))

    def _compile(self) -> None:
        import torch
        from torch._inductor import config

        if self.system is None or self.system.backend is None:
            return
        torch._dynamo.config.recompile_limit = 1000
        torch._dynamo.config.accumulated_recompile_limit = 1000
        if self.system.freezing:
            config.freezing = True
        backend = self._falsified(self.plan.sabotage) if self.plan.sabotage and self.system.ours else self.system.backend
        self.model.compile(backend=backend, dynamic=False)

    def _falsified(self, rule: str) -> Callable[..., Any]:
        """hfgraph's backend with a rule that is wrong; the rules that it applies are counted."""
        from hfgraph.backend import check_inputs, inductor, rewrite
        from hfgraph.graph.replacing import RULES
        from hfgraph.options import Options
        from hfgraph.pipeline import Context

        def backend(gm: Any, example_inputs: Any, **_: Any) -> Any:
            check_inputs(gm, example_inputs)
            rewritten, _found = rewrite(gm, example_inputs, Context(Options(), sabotage=rule))
            self.applied |= {name for node in rewritten.graph.nodes for name in node.meta.get(RULES, ())}
            return inductor(rewritten, example_inputs, Options(), None)

        return backend


def _import_compiler(system: str) -> None:
    """Imports are no part of the time to the first token."""
    ours = system in SYSTEMS and SYSTEMS[system].ours
    for module in ("torch._dynamo", "torch._inductor.compile_fx", *(["hfgraph.backend"] if ours else [])):
        importlib.import_module(module)


def main() -> None:
    """Answer requests until there are no more. Standard output is the other end's: what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    session = Session(**json.loads(sys.stdin.readline()))
    for line in sys.stdin:
        asked: dict[str, Any] = json.loads(line)
        answers.write(json.dumps(_answer(session, asked.pop("request"), asked)) + "\n")
        answers.flush()


def _answer(session: Session, request: str, arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"done": getattr(session, request)(**arguments)}
    except HfgraphError as e:
        return {"failed": str(e)}


if __name__ == "__main__":
    main()
