"""Training whose process is killed, several times, at the moments that could do the most damage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from simclr.data.dataset import open_dataset
from simclr.train.loop import pretrain
from simclr.weights.checkpoint import checkpoints
from tests.helpers import ROOT, tiny
from tests.simclr.train.helpers import same_weights

CONFIG = tiny(model={"backbone": "resnet10"}, data={"limit": 256}, train={"batch_size": 64, "checkpoint_minutes": 1e-9})

# Trains or resumes CONFIG, and kills itself at a moment of a step.
KILLED = """
import os, signal, sys, torch
from pathlib import Path
from simclr.data.dataset import open_dataset
from simclr.train.loop import pretrain
from simclr.weights import checkpoint
from tests.system.test_killed_training import CONFIG

folder, home, moment, step = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
torch.set_num_threads(1)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def write_half(state, file, save=torch.save):
    if state["step"] == step:
        file.write(b"PK half a checkpoint")
        file.flush()
        die()
    save(state, file)

def die_before_removing(path):
    if checkpoint.checkpoints(folder)[-1].name == f"step-{step:09d}.pt":
        die()
    path.unlink()

def die_after_update(scaler, updates=[]):
    updates.append(scaler)
    if len(updates) == step:
        die()

if moment == "writing a checkpoint":
    torch.save = write_half
if moment == "removing an old checkpoint":
    checkpoint._remove = die_before_removing
if moment == "after an update":  # the weights have changed, and no checkpoint has them
    torch.amp.GradScaler.update = die_after_update
resume = bool(checkpoint.checkpoints(folder))
pretrain(CONFIG, open_dataset(CONFIG.data, home), torch.device("cpu"), folder, resume=resume)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
def test_a_run_killed_again_and_again_ends_in_the_same_bits(home: Path, tmp_path: Path) -> None:
    """Each process resumes what the one before left."""
    data, cpu = open_dataset(CONFIG.data, home), torch.device("cpu")
    folder, environment = tmp_path / "killed", os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for moment, step, left in (
        ("writing a checkpoint", 4, [2, 3]),
        ("after an update", 2, [3, 4]),  # the second of this process, which is step 5
        ("removing an old checkpoint", 6, [4, 5, 6]),
    ):
        command = [sys.executable, "-c", KILLED, str(folder), str(home), moment, str(step)]
        killed = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert [path.name for path in checkpoints(folder)] == [f"step-{number:09d}.pt" for number in left]
    resumed = pretrain(CONFIG, data, cpu, folder, resume=True)
    assert same_weights(resumed, pretrain(CONFIG, data, cpu, tmp_path / "whole"))
