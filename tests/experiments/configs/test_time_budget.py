"""Presets that go by the clock."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from experiments.configs import time_budget as timed
from experiments.configs.resolve import Time
from experiments.tracking import Store
from simclr.config import Config
from simclr.data.dataset import open_dataset
from simclr.errors import BadSettings, UserError
from simclr.train.loop import count_steps
from tests.helpers import ROOT, simclr, tiny

LARGE, MIDDLE, SMALL = (
    {"epochs": 10, "set": {"data.side": 64}},
    {"epochs": 10, "set": {"model.width": 0.25}},
    {"epochs": 10, "set": {"model.width": 0.125}},
)
SECONDS = {0.25: 2e-3, 0.125: 1e-3}  # an image, by width


def asked(seconds: float, *choices: dict[str, object]) -> Time:
    return Time.model_validate({"hours": seconds / timed.STEPS / 3600, "choices": choices or (LARGE, MIDDLE, SMALL)})


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(timed, "seconds_an_image", lambda config: SECONDS[config.model.width])
    monkeypatch.setattr(timed, "time", SimpleNamespace(monotonic=lambda: 0.0))  # decoding and measuring take no time
    return Store(tmp_path)


@pytest.mark.parametrize(
    ("seconds", "width", "epochs"),
    [(31.0, 0.25, 12), (26.9, 0.25, 10), (24.9, 0.125, 19), (3.0, 0.125, 2)],
    ids=["the first that fits", "just", "the next", "the last in any case"],
)
def test_the_first_choice_that_gets_through_its_epochs_in_time(store: Store, seconds, width, epochs) -> None:
    chosen, _ = timed.within(tiny(), asked(seconds), store)
    assert chosen.data.side is None  # 64 px would be larger than the files
    assert chosen.model.width == width
    data = open_dataset(chosen.data, store.folder)
    epoch = count_steps(chosen, data)[1] * chosen.train.batch_size * SECONDS[width]
    assert chosen.train.epochs * epoch <= seconds
    assert chosen.train.epochs == pytest.approx(epochs, abs=1)
    assert chosen == tiny(model={"width": width}, train={"epochs": chosen.train.epochs})


def test_what_decoding_and_measuring_took_is_not_there_to_train(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """31 s hold ten epochs of the middle one (25 s), but not after two measurements of 10 s."""
    spent = [0.0]

    def seconds(config: Config) -> float:
        spent[0] += 10
        return SECONDS[config.model.width]

    monkeypatch.setattr(timed, "seconds_an_image", seconds)
    monkeypatch.setattr(timed, "time", SimpleNamespace(monotonic=lambda: spent[0]))
    chosen, _ = timed.within(tiny(), asked(31.0), store)
    steps = count_steps(chosen, open_dataset(chosen.data, store.folder))[1]
    assert chosen.model.width == 0.125
    assert chosen.train.epochs == int(11 / (steps * chosen.train.batch_size * 1e-3))


def test_a_batch_of_more_than_all_images_is_passed_over(store: Store) -> None:
    """And one that fits is chosen, where there is time for its epochs."""
    over, fits = ({"epochs": 1, "set": {"train.batch_size": size}} for size in (2048, 512))
    assert timed.within(tiny(), asked(31.0, over, fits, SMALL), store)[0].train.batch_size == 512
    slow = fits | {"epochs": 100}
    assert timed.within(tiny(), asked(31.0, over, slow, SMALL), store)[0].train.batch_size == tiny().train.batch_size


def test_time_that_holds_no_epoch_is_refused(store: Store) -> None:
    with pytest.raises(UserError, match=r"hold no epoch of tiny: one takes .* Give it more .--hours"):
        timed.within(tiny(), asked(0.9), store)


@pytest.mark.parametrize("error", [UserError, BadSettings], ids=["planned", "out of memory"])
def test_a_choice_that_the_memory_cannot_hold_is_passed_over(
    error: type[Exception], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds(config):
        if config.model.width == 0.25:
            raise error("it needs more")
        return SECONDS[config.model.width]

    monkeypatch.setattr(timed, "seconds_an_image", seconds)
    assert timed.within(tiny(), asked(1000.0), store)[0].model.width == 0.125
    with pytest.raises(error, match="it needs more"):
        timed.within(tiny(), asked(1000.0, MIDDLE), store)


def test_a_hopeless_choice_is_not_even_timed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(timed, "seconds_an_image", lambda config: seen.append(config.model.backbone) or 1e-3)
    huge = {"epochs": 10, "set": {"model.backbone": "resnet152", "model.width": 1.0}}
    assert timed.within(tiny(), asked(20.0, huge, SMALL), store)[0].model.backbone == "resnet18"
    assert set(seen) == {"resnet18"}


def test_a_network_that_cannot_take_the_images_is_a_sentence(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    config = tiny(model={"backbone": "alexnet", "stem": "imagenet", "width": 1.0})
    with pytest.raises(UserError, match=r"backbone 'alexnet' can't take 16 px images"):
        timed.within(config, asked(100.0, {"epochs": 1}), store)


def test_images_of_files_are_never_enlarged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(40):
        path = tmp_path / "photos" / f"{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 50 if number % 3 else 20), (number, 0, 0)).save(path)
    monkeypatch.setattr(timed, "seconds_an_image", lambda config: 1e-6)
    config = tiny(data={"dataset": "folder", "dir": str(tmp_path / "photos"), "side": 16}, train={"batch_size": 8})
    choices = ({"epochs": 1, "set": {"data.side": side}} for side in (64, 48, 16))
    chosen, _ = timed.within(config, asked(100.0, *choices), Store(tmp_path))
    assert chosen.data.side == 48  # most are 50 px
    assert [path.name.split("-")[0] for path in (tmp_path / "cache").iterdir() if path.is_dir()] == ["folder"] * 2


@pytest.mark.parametrize("status", ["FINISHED", "KILLED"])
def test_what_was_chosen_before_stands(store: Store, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished run's choice, unless a new one is asked for; the one with a checkpoint, to resume."""
    chosen, request = timed.within(tiny(), asked(31.0), store)
    tags = {"kind": "pretrain", "request": request, "config_key": chosen.key()}
    tracker = store.start("run", tags, chosen.flat())
    tracker.finish(status)
    monkeypatch.setitem(SECONDS, 0.25, 1.0)  # the machine has slowed down
    again = {"knn_every": 7, "checkpoint_minutes": 1.0}  # which decide nothing

    def now(**how: bool) -> Config:
        return timed.within(tiny(train=again), asked(31.0), store, **how)[0]

    expected = chosen.model_copy(update={"train": chosen.train.model_copy(update=again)})
    assert now(again=True).model.width == 0.125
    if status == "FINISHED":
        assert now() == expected
        assert now(resume=True).model.width == 0.125
    else:
        assert now().model.width == now(resume=True).model.width == 0.125  # there is nothing to go on from
        folder = store.run_folder(tracker.run_id)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "step-00000001.pt").touch()
        assert now() == now(resume=True) == now(resume=True, again=True) == expected
        assert now(again=True).model.width == 0.125
    other = tiny(memory="4GiB", train=again)
    assert timed.within(other, asked(31.0), store)[0].model.width == 0.125


def test_speed_is_measured_without_the_images() -> None:
    assert 0 < timed.seconds_an_image(tiny(train={"batch_size": 8})) < 1


SHORT = 20  # seconds
CONFIG = """
data.dataset = "digits"
device = "cpu"
model = {stem = "stride2", width = 0.125}
optim = {name = "adamw", lr = 1e-3, lr_scaling = "none", warmup_epochs = 0}
train = {batch_size = 64, precision = "fp32", knn_every = 1, checkpoint_minutes = 0.001}
time = {hours = HOURS}
"""


@pytest.mark.slow
def test_a_run_ends_in_time(tmp_path: Path) -> None:
    config = tmp_path / "clock.toml"
    config.write_text(CONFIG.replace("HOURS", str(SHORT / 3600)))
    done = simclr("pretrain", "--config", str(config), home=tmp_path)
    assert done.returncode == 0, done.stderr
    [run] = Store(tmp_path).search("tags.kind = 'pretrain'")
    took = (run.info.end_time - run.info.start_time) / 1000
    assert 0.3 * SHORT < took < 1.3 * SHORT  # tests share their cores with others


def test_a_killed_run_goes_on_as_it_was_chosen(tmp_path: Path) -> None:
    config = tmp_path / "clock.toml"
    config.write_text(CONFIG.replace("HOURS", str(SHORT / 3600)))
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
