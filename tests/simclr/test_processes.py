"""One run in several processes is the run of one process."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from simclr import processes
from simclr.data.dataset import open_dataset
from simclr.errors import Deserted, UserError
from simclr.train import budget
from tests.helpers import tiny
from tests.simclr.several import LOOP, STOP, company, everything, whole_run

GPUS = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@pytest.mark.parametrize(
    ("count", "device"),
    [
        (2, "cpu"),
        pytest.param(4, "cpu", marks=pytest.mark.long),
        pytest.param(2, "cuda", marks=[pytest.mark.gpu, GPUS]),
    ],
)
def test_several_processes_compute_what_one_does(count: int, device: str, home: Path, tmp_path: Path) -> None:
    """Of all methods, in float64: weights, running statistics, metrics, and a run that goes on in one process."""
    data, own = open_dataset(LOOP.data, home), torch.device(device)
    alone = everything(data, tmp_path / "alone", own)
    with company(count, home, device):
        together = everything(data, tmp_path / "together", own)
        together["run, begun by one process"] = whole_run(
            data, tmp_path / "alone" / "stopped", own, stop=False, resume=True
        )
    together["run, begun by several"] = whole_run(data, tmp_path / "together" / "stopped", own, stop=False, resume=True)
    assert alone["stopped"] == together["stopped"] == {"stopped": torch.tensor(STOP)}
    for case, found in together.items():
        expected = alone[case.partition(", begun")[0]]
        assert found.keys() <= expected.keys()
        for name, value in found.items():
            difference = (value.double() - expected[name].double()).abs().max().item()
            assert difference < 1e-9, f"{case}: {name} differs by {difference}"


SHARES = {  # processes, batch, norm_batch and device: what the message says
    (
        3,
        256,
        64,
        "cpu",
    ): r"^3 processes can't share a batch of 256, which batch norm divides into 4 of 64 images: start 2$",
    (4, 256, 256, "cpu"): r"into 1 of 256 images: start 1, or set train\.norm_batch=64, which changes the result$",
    (2, 256, 64, "cuda:1"): r"^--device cuda:1 is one device, but 2 processes need one each: use --device cuda$",
    (2, 256, 64, "mps"): r"^2 processes can't share Apple's GPU: start one, or add --device cpu$",
    (2, 256, 64, "cuda"): r"^2 processes need as many GPUs, but this machine has 1: start 1$",
}


@pytest.mark.parametrize("case", SHARES, ids=str)
def test_processes_that_cannot_share_a_batch_are_refused(
    case: tuple[int, int, int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    count, batch, group, device = case
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    config = tiny(train={"batch_size": batch, "norm_batch": group}, device=device)

    def check() -> None:
        budget.check_share(config)
        budget.check_devices(config, torch.device(device))

    with processes.pretended(count), pytest.raises(UserError, match=SHARES[case]):
        check()


def test_a_remedy_that_the_message_names_works() -> None:
    with processes.pretended(4):
        budget.check_share(tiny(train={"batch_size": 256, "norm_batch": 64}))
        assert budget.micro_batches(tiny(train={"batch_size": 256, "norm_batch": 32})) == [32, 64]
        assert budget.micro_batches(tiny(train={"batch_size": 256, "norm_batch": 32, "micro_batch": 128})) == [64]


def test_processes_that_differ_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def others(everyones: list[object], own: dict[str, object]) -> None:
        everyones[:] = [own, own, {"seed": 0, "optim.lr": 0.2}]

    monkeypatch.setattr(processes.dist, "all_gather_object", others)
    message = r"^the processes of this run disagree: optim\.lr is 0\.1 in process 0 and 0\.2 in process 2\. Do this$"
    with processes._as(processes.World(3, 1)), pytest.raises(UserError, match=message):
        processes.agree({"seed": 0, "optim.lr": 0.1}, "Do this")


def test_an_exchange_without_a_partner_ends_quietly_and_one_without_memory_says_so() -> None:
    def lost(*_: object) -> None:
        raise RuntimeError("Connection closed by peer [127.0.0.1]:4711\nmore")

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(Deserted, match=r"^Connection closed by peer \[127\.0\.0\.1\]:4711$"):
        processes._exchange(lost)
    with pytest.raises(torch.OutOfMemoryError):
        processes._exchange(full)


def test_processes_that_are_started_again_do_not_find_what_earlier_ones_left() -> None:
    """torchrun keeps its store when it starts all of them again, at any moment. Here the first one comes last."""
    store = dist.HashStore()
    for number in range(3):
        with ThreadPoolExecutor() as threads:
            others = [threads.submit(processes._of_this_round, store, rank, 3) for rank in (1, 2)]
            wait(others, timeout=0.1)
            first = processes._of_this_round(store, 0, 3)
        parts = [first, *(other.result() for other in others)]
        assert not any(part.check(["address"]) for part in parts)
        first.set("address", str(number))
        assert [part.get("address") for part in parts] == [str(number).encode()] * 3
        store.add("rounds", number)  # sometimes the first process ends before the others have come
