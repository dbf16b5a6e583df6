"""The other end of a worker: starts it, asks it, and ends it with all that it started."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hfgraph.bench.plan import Plan
from hfgraph.errors import WorkerDied, WorkerFailed

_LINES = 12


class Process:
    """A worker process. Its compile caches are its own and empty at first."""

    def __init__(self, plan: Plan, system: str, folder: Path) -> None:
        self.system = system
        mine = folder / system
        mine.mkdir()
        self._log = mine / "stderr"
        threads = {"OMP_NUM_THREADS": str(plan.threads)} if plan.threads else {}
        caches = {"TORCHINDUCTOR_CACHE_DIR": str(mine / "cache"), "TRITON_CACHE_DIR": str(mine / "triton")}
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "hfgraph.bench.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **caches, **threads, "TOKENIZERS_PARALLELISM": "false"},
                start_new_session=True,  # an interrupt reaches the parent alone, which then ends them all
            )
        self._send({"plan": plan.to_dict(), "system": system, "folder": str(folder)}, "starting")

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def ask(self, request: str, doing: str = "", **arguments: Any) -> Any:
        """Send a request and wait for its answer.

        Raises:
            WorkerDied: there is none.
            WorkerFailed: it says why it cannot go on.
        """
        doing = doing or " ".join([request, *map(str, arguments.values())])
        self._send({"request": request, **arguments}, doing)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._died(doing)
        answer = json.loads(line)
        if "failed" in answer:
            raise WorkerFailed(self.system, doing, answer["failed"])
        return answer["done"]

    def close(self) -> None:
        """End it and what it started, whatever state it is in."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _send(self, message: dict[str, Any], doing: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except OSError as e:
            raise self._died(doing) from e

    def _died(self, doing: str) -> WorkerDied:
        self._process.wait()
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return WorkerDied(self.system, doing, "\n".join(lines[-_LINES:]))


class Crew:
    """All workers of a run: whatever happens, none outlives it."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self._plan, self._folder = plan, folder
        self.members: dict[str, Process] = {}

    def start(self, system: str) -> Process:
        """One more."""
        self.members[system] = Process(self._plan, system, self._folder)
        return self.members[system]

    def dismiss(self, system: str) -> None:
        """One less."""
        self.members.pop(system).close()


@contextlib.contextmanager
def crew(plan: Plan) -> Iterator[Crew]:
    """Workers and a folder for what they leave each other, both gone at the end."""
    with tempfile.TemporaryDirectory(prefix="hfgraph-bench-") as folder:
        made = Crew(plan, Path(folder))
        try:
            yield made
        finally:
            for system in list(made.members):
                made.dismiss(system)
