"""Training whose process is killed, several times, at the moments that could do the most damage."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from simclr.data.dataset import open_dataset
from simclr.train.loop import pretrain
from simclr.weights import checkpoint
from tests.helpers import tiny
from tests.simclr.train.helpers import same_weights
from tests.system.processes import fork

CONFIG = tiny(model={"backbone": "resnet10"}, data={"limit": 256}, train={"batch_size": 64, "checkpoint_minutes": 1e-9})


def train_and_die(folder: Path, home: Path, moment: str, step: int) -> None:
    """Train or resume CONFIG, and kill this process at a moment of a step."""
    torch.set_num_threads(1)
    save, updates = torch.save, list[object]()

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def write_half(state: dict[str, Any], file: IO[bytes]) -> None:
        if state["step"] == step:
            file.write(b"PK half a checkpoint")
            file.flush()
            die()
        save(state, file)

    def die_before_removing(path: Path) -> None:
        if checkpoint.checkpoints(folder)[-1].name == f"step-{step:09d}.pt":
            die()
        path.unlink()

    def die_after_update(scaler: object) -> None:
        updates.append(scaler)
        if len(updates) == step:
            die()

    with pytest.MonkeyPatch.context() as patch:
        if moment == "writing a checkpoint":
            patch.setattr(torch, "save", write_half)
        if moment == "removing an old checkpoint":
            patch.setattr(checkpoint, "_remove", die_before_removing)
        if moment == "after an update":  # the weights have changed, and no checkpoint has them
            patch.setattr(torch.amp.GradScaler, "update", die_after_update)
        resume = bool(checkpoint.checkpoints(folder))
        pretrain(CONFIG, open_dataset(CONFIG.data, home), torch.device("cpu"), folder, resume=resume)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
def test_a_run_killed_again_and_again_ends_in_the_same_bits(home: Path, tmp_path: Path) -> None:
    """Each process resumes what the one before left."""
    data, cpu = open_dataset(CONFIG.data, home), torch.device("cpu")
    folder = tmp_path / "killed"
    for moment, step, left in (
        ("writing a checkpoint", 4, [2, 3]),
        ("after an update", 2, [3, 4]),  # the second of this process, which is step 5
        ("removing an old checkpoint", 6, [4, 5, 6]),
    ):
        killed = fork(train_and_die, folder, home, moment, step)
        killed.join()
        assert killed.exitcode == -signal.SIGKILL
        assert [path.name for path in checkpoint.checkpoints(folder)] == [f"step-{number:09d}.pt" for number in left]
    resumed = pretrain(CONFIG, data, cpu, folder, resume=True)
    assert same_weights(resumed, pretrain(CONFIG, data, cpu, tmp_path / "whole"))
