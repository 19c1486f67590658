"""Presets with a time budget: which choice is trained, for how long, and how it resumes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import Tensor

from experiments.configs import time_budget
from experiments.configs.resolve import TimeBudget
from experiments.configs.time_budget import TRAINING_SHARE, choose_config
from experiments.runs.prepare import prepare
from experiments.runs.train import train
from experiments.tracking.store import Store
from experiments.tracking.writing import start_run
from simclr.config import Config
from simclr.errors import BadSettings, UserError
from simclr.progress import Observer
from simclr.train import cost, loop
from simclr.train.loop import Interrupted
from simclr.train.step import Training
from tests.helpers import tiny

LARGE, MIDDLE, SMALL = (
    {"epochs": 10, "set": {"data.side": 64}},
    {"epochs": 10, "set": {"model.width": 0.25}},
    {"epochs": 10, "set": {"model.width": 0.125}},
)
SPEED = {0.25: 2e-3, 0.125: 1e-3}  # seconds per image, by width


def budget_of(seconds: float, *choices: dict[str, object]) -> TimeBudget:
    """A budget with so many seconds for training steps."""
    hours = seconds / TRAINING_SHARE / 3600
    return TimeBudget.model_validate({"hours": hours, "choices": choices or (LARGE, MIDDLE, SMALL)})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that stands still unless a test moves it, for choosing and for training."""
    clock = SimpleNamespace(now=0.0, seconds_per_image=1e-3)
    clock.monotonic = clock.perf_counter = lambda: clock.now
    for module in (time_budget, cost, loop):
        monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def speed(clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Config], float]], None]:
    """Sets the measured speed, by default that in SPEED."""

    def patch(seconds_per_image: Callable[[Config], float]) -> None:
        monkeypatch.setattr(time_budget, "seconds_per_image", lambda config, seconds: seconds_per_image(config))

    patch(lambda config: SPEED[config.model.width])
    return patch


@pytest.mark.parametrize(
    ("seconds", "width", "epochs"),
    [(31.0, 0.25, 12), (26.9, 0.25, 10), (24.9, 0.125, 19), (3.0, 0.125, 2)],
    ids=["first", "just fits", "next", "last"],
)
@pytest.mark.usefixtures("speed")
def test_the_first_choice_whose_epochs_fit_is_taken(store: Store, seconds: float, width: float, epochs: int) -> None:
    chosen, _ = choose_config(tiny(), budget_of(seconds), store)
    assert chosen == tiny(model={"width": width}, train={"epochs": chosen.train.epochs})  # 64 px would enlarge files
    assert chosen.train.epochs == pytest.approx(epochs, abs=1)
    images = prepare(chosen, store.folder).steps.total * chosen.train.batch_size
    assert images * SPEED[width] <= seconds


def test_time_for_decoding_and_measuring_is_subtracted(
    store: Store, clock: SimpleNamespace, speed: Callable[[Callable[[Config], float]], None]
) -> None:
    """26 s are enough for ten epochs of the middle choice (25 s), but not after two measurements of 1 s each."""

    def measure(config: Config) -> float:
        clock.now += 1
        return SPEED[config.model.width]

    speed(measure)
    chosen, _ = choose_config(tiny(), budget_of(26.0), store)
    assert chosen.model.width == 0.125
    images = prepare(chosen, store.folder).steps.per_epoch * chosen.train.batch_size
    assert chosen.train.epochs == int(24 / (images * 1e-3))


@pytest.mark.usefixtures("speed")
def test_batches_of_few_images_are_small_and_found_again(store: Store) -> None:
    few = tiny(data={"limit": 80})
    asked = budget_of(31.0, SMALL).model_copy(update={"smallest_batch": 16})
    chosen, request = choose_config(few, asked, store)
    assert chosen.train.batch_size == 64
    own = {"request": request, "config_key": chosen.key()}
    start_run(store, "run", "pretrain", chosen.flat(), own).finish("FINISHED")
    assert choose_config(few, asked, store) == (chosen, request)
    with pytest.raises(UserError, match=r"train\.batch_size = 256 is larger than the 80 images"):
        choose_config(few, asked.model_copy(update={"smallest_batch": None}), store)  # nothing was measured
    assert choose_config(tiny(), asked, store)[0].train.batch_size == 256


@pytest.mark.usefixtures("speed")
def test_a_batch_larger_than_the_data_set_is_skipped(store: Store) -> None:
    large, fits = ({"epochs": 1, "set": {"train.batch_size": size}} for size in (2048, 512))
    assert choose_config(tiny(), budget_of(31.0, large, fits, SMALL), store)[0].train.batch_size == 512
    slow = fits | {"epochs": 100}
    chosen, _ = choose_config(tiny(), budget_of(31.0, large, slow, SMALL), store)
    assert chosen.train.batch_size == tiny().train.batch_size


def test_a_poor_choice_is_said() -> None:
    (busy,) = time_budget._cautions(9.3, 2, 99)
    assert "(load 9.3 on 2 cores)" in busy
    (few,) = time_budget._cautions(2.0, 2, 99)
    assert few == "only 99 steps fit into the time, in which the encoder learns little: allow more --hours"
    assert time_budget._cautions(2.0, 2, 100) == []


@pytest.mark.usefixtures("speed")
def test_a_budget_too_short_for_one_epoch_is_refused(store: Store) -> None:
    with pytest.raises(UserError, match=r"too short for tiny: an epoch takes 1 s here, .* Allow --hours 0.01 or more"):
        choose_config(tiny(), budget_of(0.9), store)
    choose_config(tiny(), TimeBudget(hours=0.01, choices=budget_of(1, SMALL).choices), store)


def test_measuring_takes_a_tenth_of_the_time(
    store: Store, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each choice may be measured for as long as is left. When nothing is left, the last choice is trained."""
    allowed: list[float] = []

    def measure(config: Config, seconds: float) -> float:
        allowed.append(seconds)
        clock.now += 6
        return SPEED[config.model.width]

    monkeypatch.setattr(time_budget, "seconds_per_image", measure)
    chosen, _ = choose_config(tiny(), budget_of(100.0, MIDDLE | {"epochs": 40}, MIDDLE, SMALL), store)
    assert allowed == pytest.approx([10, 4])
    assert chosen.model.width == 0.125


@pytest.mark.parametrize("error", [UserError, BadSettings], ids=["predicted", "out of memory"])
def test_a_choice_that_does_not_fit_into_memory_is_skipped(
    error: type[Exception], store: Store, speed: Callable[[Callable[[Config], float]], None]
) -> None:
    def measure(config: Config) -> float:
        if config.model.width == 0.25:
            raise error("it needs more")
        return SPEED[config.model.width]

    speed(measure)
    assert choose_config(tiny(), budget_of(1000.0), store)[0].model.width == 0.125
    with pytest.raises(error, match="it needs more"):
        choose_config(tiny(), budget_of(1000.0, MIDDLE), store)


def test_a_choice_that_is_much_too_slow_is_not_measured(
    store: Store, speed: Callable[[Callable[[Config], float]], None]
) -> None:
    measured = []
    speed(lambda config: measured.append(config.model.backbone) or 1e-3)  # type: ignore[func-returns-value]
    huge = {"epochs": 10, "set": {"model.backbone": "resnet152", "model.width": 1.0}}
    assert choose_config(tiny(), budget_of(20.0, huge, SMALL), store)[0].model.backbone == "resnet18"
    assert set(measured) == {"resnet18"}


def test_a_network_that_cannot_process_the_images_is_refused(store: Store) -> None:
    config = tiny(model={"backbone": "alexnet", "stem": "imagenet", "width": 1.0})
    with pytest.raises(UserError, match=r"backbone 'alexnet' can't process 16 px images"):
        choose_config(config, budget_of(100.0, {"epochs": 1}), store)


def test_images_are_never_enlarged(
    store: Store, tmp_path: Path, speed: Callable[[Callable[[Config], float]], None]
) -> None:
    for number in range(40):
        path = tmp_path / "photos" / f"{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 50 if number % 3 else 20), (number, 0, 0)).save(path)
    speed(lambda config: 1e-6)
    config = tiny(data={"dataset": "folder", "dir": str(tmp_path / "photos"), "side": 16}, train={"batch_size": 8})
    choices = ({"epochs": 1, "set": {"data.side": side}} for side in (64, 48, 16))
    chosen, _ = choose_config(config, budget_of(100.0, *choices), store)
    assert chosen.data.side == 48  # most images have 50 px
    decoded = [path.name.split("-")[0] for path in (store.folder / "cache").iterdir() if path.is_dir()]
    assert decoded == ["folder"] * 2  # nothing at 64 px


@pytest.mark.parametrize("status", ["FINISHED", "KILLED", "RUNNING"])
def test_a_run_of_the_same_request_keeps_its_config(
    store: Store, speed: Callable[[Callable[[Config], float]], None], status: str
) -> None:
    """A finished run's config is kept unless a new run is asked for. An unfinished one needs a checkpoint."""
    chosen, request = choose_config(tiny(), budget_of(31.0), store)
    tracker = start_run(store, "run", "pretrain", chosen.flat(), {"request": request, "config_key": chosen.key()})
    if status != "RUNNING":
        tracker.finish(status)
    speed(lambda config: {0.25: 1.0, 0.125: 1e-3}[config.model.width])  # the machine has become slower
    unrelated = {"knn_every": 7, "checkpoint_minutes": 1.0}  # settings that don't change the result

    def choose(**options: bool) -> Config:
        return choose_config(tiny(train=unrelated), budget_of(31.0), store, **options)[0]

    expected = chosen.model_copy(update={"train": chosen.train.model_copy(update=unrelated)})
    if status == "FINISHED":
        assert choose() == expected
        with pytest.raises(UserError, match="there is no unfinished run with the same options and images"):
            choose(resume=True)
    else:
        assert choose().model.width == 0.125  # it has no checkpoint
        assert choose(resume=True) == expected  # and starts over
        folder = store.run_folder(tracker.run_id)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "step-00000001.pt").touch()
        assert choose() == choose(resume=True) == choose(resume=True, again=True) == expected
    assert choose(again=True).model.width == 0.125
    other = tiny(memory="4GiB", train=unrelated)
    assert choose_config(other, budget_of(31.0), store)[0].model.width == 0.125


@pytest.fixture
def steps(clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training steps that do nothing but take time on the clock."""

    def step(training: Training, images: Tensor, labels: Tensor) -> Tensor:
        clock.now += clock.seconds_per_image * len(images)
        training.step += 1
        return torch.ones(1 + len(training.method.figures))

    for module in (cost, loop):
        monkeypatch.setattr(module, "train_step", step)


@pytest.mark.usefixtures("steps")
def test_a_run_ends_within_its_time(store: Store, clock: SimpleNamespace) -> None:
    chosen, _ = choose_config(tiny(), budget_of(30.0, {"epochs": 1}), store)
    loop.pretrain(chosen, prepare(chosen, store.folder).data, torch.device("cpu"), store.folder)
    assert 28 < clock.now <= 30  # with the steps that were measured


@pytest.mark.usefixtures("steps")
def test_an_interrupted_run_resumes_with_its_config(store: Store, clock: SimpleNamespace) -> None:
    budget = budget_of(30.0, {"epochs": 1})
    chosen, request = choose_config(tiny(), budget, store)
    stopped = type("Stopped", (Observer,), {"stop": lambda self: True})()
    with pytest.raises(Interrupted):
        train(prepare(chosen, store.folder), store, tags={"request": request}, observer=stopped)
    (interrupted,) = store.records(kind="pretrain")
    clock.seconds_per_image *= 2  # a new choice would have half as many epochs
    resumed, _ = choose_config(tiny(), budget, store, resume=True)
    assert resumed == chosen
    record = train(prepare(resumed, store.folder), store, resume=True)
    assert (record.id, record.status, record.params) == (interrupted.id, "FINISHED", interrupted.params)


@pytest.mark.usefixtures("steps")
def test_a_run_whose_images_have_changed_is_not_resumed_and_named(store: Store, tmp_path: Path) -> None:
    (images := tmp_path / "photos").mkdir()
    for number in range(20):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(images / f"{number}.png")
    config = tiny(data={"dataset": "folder", "dir": str(images), "side": 16}, train={"batch_size": 8})
    chosen, request = choose_config(config, budget := budget_of(30.0, SMALL), store)
    stopped = type("Stopped", (Observer,), {"stop": lambda self: True})()
    with pytest.raises(Interrupted):
        train(prepare(chosen, store.folder), store, tags={"request": request}, observer=stopped)
    (run,) = store.records(kind="pretrain")
    Image.new("RGB", (20, 20)).save(extra := images / "extra.png")
    named = rf"^{run.name} \({run.short_id}\) is unfinished, but its images have changed \(20 then, 21 now; digest "
    with pytest.raises(UserError, match=named):
        choose_config(config, budget, store, resume=True)
    extra.unlink()
    other = budget.model_copy(update={"hours": 2 * budget.hours})
    with pytest.raises(UserError, match=r"is unfinished, but it was started on another machine, with another --hou"):
        choose_config(config, other, store, resume=True)


def test_speed_is_measured_without_the_images() -> None:
    assert 0 < time_budget.seconds_per_image(tiny(train={"batch_size": 8})) < 60
