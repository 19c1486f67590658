"""What two or more processes compute together, to be compared with what one computes.

The tests are process 0 themselves, and start the others with `python -m tests.simclr.several`.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from simclr import processes
from simclr.build import build_model
from simclr.data.dataset import Dataset, open_dataset
from simclr.methods import METHODS, ntxent
from simclr.train import step
from simclr.train.loop import Interrupted, load_batches, pretrain
from simclr.train.step import build_method, make_training, train_step
from tests.helpers import ROOT, tiny
from tests.simclr.train.helpers import Watch

SMALL = {"backbone": "resnet10", "out_dim": 16, "head_batch_norm": True}
TRAIN = {"batch_size": 16, "norm_batch": 4, "precision": "fp32"}  # four groups
LOOP = tiny(
    model=SMALL,
    data={"limit": 70},
    train=TRAIN | {"epochs": 2, "knn_every": 1},
    optim={"schedule": "plateau", "plateau_patience": 0},
)
STOP = 5  # steps after which the run is stopped and resumed
CASES = {  # settings of a method, and how many images are in memory at the same time
    "simclr, whole shares": ("simclr", {}, 16),
    "simclr, one group at a time": ("simclr", {}, 4),
    "simclr, views one after the other": ("simclr", {"views": "split"}, 4),
    "simclr, blocks": ("simclr", {}, 16),
    "simclr, dropout": ("simclr", {}, 4),
    "simclr, averaged": ("simclr", {"ema": 0.9}, 4),
    "moco, more views": ("moco", {}, 4),
    "vicreg, small crops": ("vicreg", {}, 4),
    **{name: (name, {}, 4) for name in METHODS if name not in ("simclr", "distill")},  # the last one needs a teacher
}
AUGMENT: dict[str, dict[str, object]] = {
    "moco, more views": {"views": 3},
    "vicreg, small crops": {"local": {"count": 2, "size": 8}},
}
FEW = 4  # of the cases
Tensors = dict[str, Tensor]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(count: int, rank: int, port: int) -> dict[str, str]:
    """What torchrun tells the processes that it starts."""
    facts = {"WORLD_SIZE": count, "RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    names = {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "test", "GLOO_SOCKET_IFNAME": "lo"}
    return names | {name: str(value) for name, value in facts.items()}


def two_steps(data: Dataset, case: str, device: torch.device) -> Tensors:
    """Weights, running statistics and what the steps report, after two steps in float64."""
    method, train, micro_batch = CASES[case]
    settings = TRAIN | train | {"micro_batch": micro_batch}
    config = tiny(method=method, model=SMALL, train=settings, augment=AUGMENT.get(case, {}))
    with pytest.MonkeyPatch.context() as patch:
        if case.endswith("blocks"):
            patch.setattr(ntxent, "PLAIN_ROWS", 0)
            patch.setattr(ntxent, "BLOCK", 5)
        network = build_model(config, data, device).double()
        if case.endswith("dropout"):
            network.head.append(nn.Dropout(0.5))
        training = make_training(config, build_method(config, network).double(), torch.float32, "")
        batches = load_batches(config, data, device, images_on_device=False)
        reports = [train_step(training, *next(batches)) for _ in range(2)]
    return training.method.state_dict() | {"reports": torch.stack(reports)}


def whole_run(data: Dataset, folder: Path, device: torch.device, *, stop: bool, resume: bool) -> Tensors:
    """Weights, running statistics and metrics of a run in float64 with kNN, or of its first steps if it should stop."""
    watch = Watch(STOP if stop and processes.is_first() else None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "build_model", lambda *arguments: build_model(*arguments).double())
        try:
            network = pretrain(LOOP, data, device, folder, watch, resume=resume)
        except Interrupted as stopped:
            return {"stopped": torch.tensor(stopped.step)}
    names = ("train/loss", "train/learning_rate", "val/knn_k")
    metrics = {
        f"{name} {number}": torch.tensor(value)
        for number, found in watch.history
        for name, value in found.items()
        if name.startswith(names)
    }
    return network.state_dict() | metrics


def everything(data: Dataset, folder: Path, device: torch.device) -> dict[str, Tensors]:
    """All that is computed, by its name, and a run that was stopped. All processes compute it together.

    More than two processes compute only the first methods, to save time.
    """
    cases = list(CASES)[:FEW] if processes.count() > 2 else CASES
    found = {case: two_steps(data, case, device) for case in cases}
    found["run"] = whole_run(data, folder / "whole", device, stop=False, resume=False)
    found["stopped"] = whole_run(data, folder / "stopped", device, stop=True, resume=False)
    return found


@contextmanager
def company(count: int, home: Path, device: str) -> Iterator[None]:
    """A context in which this is the first of so many processes. The others call `everything`, and resume a run."""
    port = free_port()
    command = [sys.executable, "-m", "tests.simclr.several", str(home), device]
    own = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    others = [
        subprocess.Popen(command, env=own | environment(count, rank, port), cwd=ROOT, stderr=subprocess.PIPE)
        for rank in range(1, count)
    ]
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment(count, 0, port).items():
                patch.setenv(name, value)
            with processes.joined():
                yield
        for other in others:
            _, errors = other.communicate()
            assert other.returncode == 0, errors.decode()
    finally:
        for other in others:
            other.kill()


if __name__ == "__main__":
    torch.set_num_threads(1)
    with processes.joined():
        images, unused, own = open_dataset(LOOP.data, Path(sys.argv[1])), Path(), torch.device(sys.argv[2])
        everything(images, unused, own)
        whole_run(images, unused, own, stop=False, resume=True)
