"""Presets that go by the clock."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, simclr, tiny

from experiments import timed
from experiments.configure import Time
from experiments.tracking import Store
from simclr.data import open_dataset
from simclr.errors import UserError
from simclr.train import plan

LARGE, MIDDLE, SMALL = (
    {"epochs": 10, "set": {"data.side": 64}},
    {"epochs": 10, "set": {"model.width": 0.25}},
    {"epochs": 10, "set": {"model.width": 0.0625}},
)
SECONDS = {0.25: 2e-3, 0.0625: 1e-3}  # an image, by width


def asked(seconds: float, *choices: dict[str, object]) -> Time:
    return Time.model_validate({"hours": seconds / timed.STEPS / 3600, "choices": choices or (LARGE, MIDDLE, SMALL)})


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(timed, "seconds_an_image", lambda config, images: SECONDS[config.model.width])
    open_dataset(tiny().data, tmp_path)  # so that no choice waits for it
    return Store(tmp_path)


@pytest.mark.parametrize(
    ("seconds", "width", "epochs"),
    [(31.0, 0.25, 12), (28.9, 0.25, 11), (28.0, 0.0625, 21), (3.0, 0.0625, 2)],
    ids=["the first that fits", "just", "the next", "the last in any case"],
)
def test_the_first_choice_that_gets_through_its_epochs_in_time(store: Store, seconds, width, epochs) -> None:
    chosen, _ = timed.within(tiny(), asked(seconds), store)
    assert chosen.data.side is None  # 64 px would be larger than the files
    assert chosen.model.width == width
    data = open_dataset(chosen.data, store.folder)
    epoch = plan(chosen, data)[1] * chosen.train.batch_size * SECONDS[width]
    assert chosen.train.epochs * epoch <= seconds
    assert chosen.train.epochs == pytest.approx(epochs, abs=1)
    assert chosen == tiny(model={"width": width}, train={"epochs": chosen.train.epochs})


def test_time_that_holds_no_epoch_is_refused(store: Store) -> None:
    with pytest.raises(UserError, match=r"hold no epoch of tiny: one takes .* Give it more .--hours"):
        timed.within(tiny(), asked(0.9), store)


def test_a_choice_that_the_memory_cannot_hold_is_passed_over(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(config, images):
        if config.model.width == 0.25:
            raise UserError("it needs more")
        return SECONDS[config.model.width]

    monkeypatch.setattr(timed, "seconds_an_image", seconds)
    assert timed.within(tiny(), asked(1000.0), store)[0].model.width == 0.0625
    with pytest.raises(UserError, match="it needs more"):
        timed.within(tiny(), asked(1000.0, MIDDLE), store)


def test_speed_is_measured_without_the_images() -> None:
    assert 0 < timed.seconds_an_image(tiny(train={"batch_size": 8}), 100) < 1


CONFIG = """
data.dataset = "digits"
device = "cpu"
model = {stem = "stride2", width = 0.0625}
optim = {name = "adamw", lr = 1e-3, lr_scaling = "none", warmup_epochs = 0}
train = {batch_size = 64, precision = "fp32", knn_every = 1, checkpoint_minutes = 0.001}
time = {hours = HOURS}
"""


def test_it_ends_in_time_and_a_killed_run_goes_on_as_it_was_chosen(tmp_path: Path) -> None:
    config = tmp_path / "clock.toml"
    config.write_text(CONFIG.replace("HOURS", str(20 / 3600)))
    command = [sys.executable, str(ROOT / "cli.py"), "pretrain", "--config", str(config)]
    environment = {"SIMCLR_HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "PATH": ""}
    with subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.rglob("step-*.pt")) and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    store = Store(tmp_path)
    [run] = store.search("tags.kind = 'pretrain'")
    done = simclr("pretrain", "--config", str(config), "--resume", home=tmp_path)
    assert done.returncode == 0, done.stderr
    [again] = store.search("tags.kind = 'pretrain'")
    assert again.info.run_id == run.info.run_id
    assert again.data.params == run.data.params
    assert again.info.status == "FINISHED"
    assert "has trained this config" in simclr("pretrain", "--config", str(config), home=tmp_path).stdout
    refused = simclr("ablate", "--config", str(config), "--drop", "flip", home=tmp_path)
    assert refused.returncode == 2
    assert "goes by the clock" in refused.stderr
