"""Tests of experiments/runs/threads.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from experiments.runs import threads as module
from experiments.runs.prepare import Prepared, prepare
from experiments.runs.threads import choose_threads
from experiments.runs.train import train
from experiments.tracking.store import Store
from simclr import processes
from simclr.errors import UserError
from simclr.progress import Observer
from simclr.train.loop import Interrupted
from tests.experiments.studies.helpers import leave_out_pictures
from tests.helpers import tiny


class Watch(Observer):
    """Collects the number of threads at each step and what it is told, and asks to stop after the first step."""

    def __init__(self) -> None:
        self.threads: list[int] = []
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def stop(self) -> bool:
        self.threads.append(torch.get_num_threads())
        return True


def with_threads(home: Path, threads: Any) -> Prepared:
    return prepare(tiny(threads=threads), home)


def test_a_run_keeps_its_threads_when_it_is_resumed_without_a_number(
    home: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_out_pictures(monkeypatch)
    before, seen = torch.get_num_threads(), []
    for threads in (2, None, "auto", 1, None):
        watch = Watch()
        with pytest.raises(Interrupted):
            train(with_threads(home, threads), store, resume=None, observer=watch)
        (record,) = store.records(kind="pretrain")
        seen.append((*watch.threads, record.tags["threads"], record.tags["device"]))
        assert torch.get_num_threads() == before
    two, one = (2, "2", "cpu, 2 threads"), (1, "1", "cpu, 1 thread")
    assert seen == [two, two, two, one, one]


def test_a_machine_with_fewer_cores_says_so(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "cores", lambda: 4)
    watch, earlier = Watch(), SimpleNamespace(tags={"threads": "16"})
    assert choose_threads(with_threads(home, None), earlier, watch) == 4  # type: ignore[arg-type]
    assert watch.said == [
        "the run started with 16 CPU threads, and this machine has 4 cores, so its results differ by rounding: "
        "continuing with 4"
    ]


@pytest.mark.parametrize(
    ("seconds", "fastest"),
    [({8: 1.0, 4: 2.0, 2: 3.0, 1: 4.0}, 8), ({8: 9.0, 4: 2.0, 2: 1.0, 1: 4.0}, 2), ({8: 9, 4: 7, 2: 5, 1: 2}, 1)],
)
def test_auto_takes_the_fastest_number(
    seconds: Mapping[int, float], fastest: int, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = [8]
    monkeypatch.setattr(torch, "get_num_threads", lambda: used[-1])
    monkeypatch.setattr(torch, "set_num_threads", used.append)

    def timer(*arguments: Any) -> Callable[[], float]:
        return lambda: seconds[used[-1]]

    monkeypatch.setattr(module, "step_timer", timer)
    assert choose_threads(with_threads(home, "auto")) == fastest


def test_auto_is_refused_in_several_processes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = with_threads(home, "auto")
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(UserError, match="give a number"):
        choose_threads(prepared)


def test_threads_of_a_run_on_a_gpu_are_not_measured_and_not_talked_about() -> None:
    gpu, watch = torch.device("cuda"), Watch()
    earlier: Any = SimpleNamespace(tags={"threads": "7"})
    prepared: Any = SimpleNamespace(config=tiny(), device=gpu)
    assert choose_threads(prepared, earlier, watch) == torch.get_num_threads()
    assert not watch.said
    with pytest.raises(UserError, match=r"^--threads auto times steps on a CPU, but this run uses cuda: leave it out$"):
        choose_threads(SimpleNamespace(config=tiny(threads="auto"), device=gpu))  # type: ignore[arg-type]
