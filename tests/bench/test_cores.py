"""Disturbed samples are taken again: a made-up clock and made-up use of the cores."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from hfgraph.bench import cores as module
from hfgraph.bench.cores import Cores, Patience, attempt, family, kept, undisturbed, wait_idle


class Machine:
    """A second passes with each sample; others use so many cores meanwhile."""

    def __init__(self, *others: float) -> None:
        self.others = iter(others)
        self.now = self.spent = self.mine = 0.0
        self.waits = 0

    def busy(self) -> float:
        return self.spent

    def own(self) -> float:
        return self.mine

    def take(self) -> float:
        self.now += 1.0
        self.mine += 2.0
        self.spent += 2.0 + next(self.others)
        return self.now

    def wait(self) -> None:
        self.waits += 1


def taken(*others: float) -> tuple[Machine, list[Any]]:
    machine: Any = Machine(*others)
    return machine, undisturbed(machine.take, machine, machine.wait, clock=lambda: machine.now)


def test_an_undisturbed_sample_is_taken_once() -> None:
    machine, found = taken(0.05)
    assert len(found) == 1 and machine.waits == 1
    assert found[0].others == pytest.approx(0.05) and not found[0].disturbed


def test_a_disturbed_sample_is_taken_again() -> None:
    machine, found = taken(0.9, 0.0)
    assert [a.disturbed for a in found] == [True, False] and machine.waits == 2
    assert kept(found).value == 2.0


def test_at_most_three_times_and_the_least_disturbed_counts() -> None:
    _, found = taken(0.9, 0.3, 0.5)
    assert len(found) == 3
    assert kept(found).value == 2.0 and kept(found).disturbed


def test_our_own_work_is_no_disturbance() -> None:
    machine: Any = Machine(0.0)
    assert attempt(machine.take, machine, clock=lambda: machine.now).others == 0.0


class Busy:
    """Cores that become idle after so many glances."""

    def __init__(self, glances: int) -> None:
        self.left, self.spent, self.now = glances, 0.0, 0.0

    def busy(self) -> float:
        return self.spent

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.spent += seconds if self.left > 0 else 0.0
        self.left -= 1


@pytest.mark.parametrize(("glances", "waited"), [(0, 0.0), (5, 1.0), (1000, 10.0)])
def test_waiting_has_an_end(glances: int, waited: float) -> None:
    machine: Any = Busy(glances)
    assert wait_idle(machine, 10.0, clock=lambda: machine.now, sleep=machine.sleep) == pytest.approx(waited, abs=0.21)
    assert machine.now < 10.5


def test_patience_is_used_up() -> None:
    """Ten seconds each time, until a minute has gone."""
    given: list[float] = []
    cores: Any = None
    patience = Patience(cores, lambda _, most: given.append(most) or most)
    for _ in range(8):
        patience()
    assert given == [10.0] * 6 + [0.0] * 2


def test_the_cores_of_this_machine() -> None:
    """Work in a child counts as our own, and as the machine's."""
    code = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        cores = Cores([os.getpid()])
        busy = cores.busy()
        assert child.stdout is not None
        child.stdout.readline()
        assert cores.own() >= 0.25
        assert cores.busy() - busy >= 0.2
        twice = Cores([os.getpid(), child.pid])
        assert abs(twice.own() - cores.own()) < 0.15, "a process named twice counts once"
        child.communicate(b"\n")
    assert family(child.pid) == []
    assert Cores([child.pid]).own() == 0.0


def test_a_process_that_ends_meanwhile_counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_: Any) -> None:
        raise module.psutil.NoSuchProcess(1)

    cores = Cores([os.getpid()])
    monkeypatch.setattr(module.psutil.Process, "cpu_times", gone)
    assert cores.own() == 0.0
