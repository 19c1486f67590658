"""Tests of experiments/runs/train.py."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from experiments.runs.prepare import Prepared, prepare
from experiments.runs.train import train, train_or_resume
from experiments.tracking.store import Record, Store
from experiments.tracking.writing import Tracker, start_run
from simclr import device as devices
from simclr.errors import RunFailed, UnusableCheckpoint, UserError
from simclr.model import build_encoder
from simclr.progress import Observer
from simclr.train import loop
from simclr.train.loop import Interrupted
from simclr.weights.checkpoint import checkpoints, load_weights
from simclr.weights.start import resolved
from tests.experiments.studies.helpers import leave_out_pictures
from tests.helpers import tiny


class Watch(Observer):
    """Remembers what it is told, and asks to stop after a number of steps."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.told: list[tuple[str, str]] = []
        self.said: list[str] = []
        self.stop_after, self.asked = stop_after, 0

    def began(self, run_id: str, steps: int) -> None:
        self.told.append(("began", run_id))

    def reused(self, run_id: str, name: str) -> None:
        self.told.append(("reused", run_id))

    def say(self, text: str) -> None:
        self.said.append(text)

    def note(self, text: str, folder: Path | None = None) -> None:
        self.said.append(text)

    def stop(self) -> bool:
        self.asked += 1
        return self.stop_after is not None and self.asked >= self.stop_after


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out_pictures(monkeypatch)


@pytest.fixture
def prepared(home: Path) -> Prepared:
    return prepare(tiny(train={"epochs": 1}), home)


def test_a_run_keeps_its_config_environment_views_weights_and_curve(
    prepared: Prepared, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # this run has its pictures
    record = train(prepared, store, tags={"request": "r"})
    assert (record.name, record.kind, record.status) == ("tiny-s0", "pretrain", "FINISHED")
    assert record.tags["config_key"] == prepared.config.key()
    assert record.tags["data_digest"] == prepared.data.digest
    assert (record.tags["seed"], record.tags["request"], record.tags["precision"]) == ("0", "r", "float32")
    assert record.tags["tf32"] == "never"
    assert 0.05 < float(record.tags["val_chance"]) < 0.2
    assert record.params["loss.temperature"] == "0.2"
    config, _, digest = load_weights(record.artifact("model.safetensors"))
    assert (config, digest) == (prepared.config, prepared.data.digest)
    assert 'name = "tiny"' in record.artifact("config.toml").read_text()
    (images,) = store.client.get_run(record.id).inputs.dataset_inputs
    assert images.dataset.name == "digits"
    assert images.dataset.digest.startswith(prepared.data.digest[:8])
    assert json.loads(images.dataset.profile)["train"] == len(prepared.data.parts["train"])
    assert record.metrics["system/disk_available_megabytes"] > 0
    for name in ("environment.json", "views.png", "loss.png"):
        assert record.artifact(name).stat().st_size > 0
    assert record.history("train/loss")["step"].iloc[-1] == prepared.steps.total
    assert checkpoints(record.folder) == []


def test_a_finished_config_is_not_trained_again_unless_asked(prepared: Prepared, store: Store) -> None:
    first = train(prepared, store)
    watch = Watch()
    assert train(prepared, store, observer=watch).id == first.id
    assert watch.told == [("reused", first.id)]
    again = train(prepared, store, again=True)
    assert again.id != first.id
    assert again.metrics["train/loss"] == first.metrics["train/loss"]


def test_an_unfinished_run_is_resumed_only_when_asked(prepared: Prepared, store: Store) -> None:
    with pytest.raises(Interrupted):
        train(prepared, store, observer=Watch(stop_after=2))
    (stopped,) = store.records()
    assert stopped.status == "KILLED"
    with pytest.raises(UserError, match=f"run {stopped.short_id} of this config did not finish: add --resume"):
        train(prepared, store)
    watch = Watch()
    resumed = train(prepared, store, resume=True, observer=watch)
    assert watch.told == [("began", stopped.id)]
    assert (resumed.id, resumed.status) == (stopped.id, "FINISHED")
    assert resumed.metrics["train/loss"] == train(prepared, store, again=True).metrics["train/loss"]


def test_again_leaves_an_unfinished_run_as_it_is(prepared: Prepared, store: Store) -> None:
    with pytest.raises(Interrupted):
        train(prepared, store, observer=Watch(stop_after=1))
    (stopped,) = store.records()
    assert train(prepared, store, again=True).id != stopped.id
    assert checkpoints(stopped.folder)


def test_resume_without_an_unfinished_run_is_an_error(prepared: Prepared, store: Store) -> None:
    with pytest.raises(UserError, match="no unfinished run of this config has a checkpoint: leave out --resume"):
        train(prepared, store, resume=True)


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_over(prepared: Prepared, store: Store) -> None:
    with pytest.raises(Interrupted):
        train(prepared, store, observer=Watch(stop_after=1))
    (stopped,) = store.records()
    for checkpoint in checkpoints(stopped.folder):
        checkpoint.unlink()
    store.client.update_run(stopped.id, "RUNNING")  # as it is when nobody has opened the store since
    watch = Watch()
    assert train(prepared, store, resume=True, observer=watch).id != stopped.id
    assert store.get(stopped.id).status == "KILLED"
    assert watch.said == [f"run {stopped.name} ({stopped.short_id}) has no checkpoint yet: it starts over"]


def test_images_that_changed_since_a_run_started_are_named(prepared: Prepared, store: Store) -> None:
    with pytest.raises(Interrupted):
        train(prepared, store, observer=Watch(stop_after=2))
    (stopped,) = store.records()
    own = prepared.data.digest[:8]
    for change, now in (({"digest": "0123abcdef"}, "0123abcd"), ({"division": "4567abcdef"}, f"{own}-4567abcd")):
        changed = replace(prepared, data=replace(prepared.data, **change))
        counts = rf"{prepared.data.used:,} then, {prepared.data.used:,} now"
        message = rf"{stopped.short_id}\) is unfinished, but its images .* \({counts}; digest {now}, was {own}\)"
        with pytest.raises(UserError, match=message):
            train(changed, store, resume=True)


def test_a_run_resumes_without_the_weights_that_it_started_from(home: Path, store: Store, tmp_path: Path) -> None:
    path, config = tmp_path / "theirs.safetensors", tiny(train={"epochs": 1})
    for seed in (2, 1):
        encoder = build_encoder(config.model, 16, seed)[0]
        save_file(encoder.state_dict(), path)
        prepared = prepare(resolved(config, path), home)
        if seed == 2:
            with pytest.raises(Interrupted):
                train(prepared, store, observer=Watch(stop_after=2))
            stopped, first = store.records()[0], prepared
    assert stopped.tags["start"] == "theirs.safetensors"
    message = f"run {stopped.short_id} of this config started from other weights .*--set init='{first.config.init}'"
    with pytest.raises(UserError, match=message):
        train(prepared, store, resume=True)
    path.unlink()
    assert train(first, store, resume=True).id == stopped.id


def test_a_name_that_an_earlier_run_has_is_pointed_out(home: Path, store: Store) -> None:
    first, watch = tiny(train={"epochs": 1}), Watch()
    earlier = train(prepare(first, home), store, observer=watch)
    assert not any("an earlier run is also called" in text for text in watch.said)
    other = train(prepare(tiny(train={"epochs": 2}), home), store, parent=earlier.id, observer=watch)
    assert not any("an earlier run is also called" in text for text in watch.said)
    train(prepare(tiny(train={"epochs": 3}), home), store, observer=watch)
    assert any(f"use the id {other.short_id} for" in text for text in watch.said)


def auto(home: Path) -> Prepared:
    return prepare(tiny(train={"epochs": 1, "precision": "auto"}), home)


def make_older(record: Record) -> None:
    """Change a run to what an earlier version recorded, which wrote "auto" into its keys."""
    tracker, config = Tracker(record.store, record.id), tiny(train={"epochs": 1, "precision": "auto"})
    tracker.tag({"config_key": config.key("auto")})
    record.store.client.delete_tag(record.id, "tf32")
    for checkpoint in checkpoints(record.folder):
        state = torch.load(checkpoint)
        torch.save(state | {"key": config.key("auto")}, checkpoint)
    tracker.flush()


def test_auto_is_found_again_only_where_it_stands_for_the_same_precision(
    home: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "has_fast_bf16", lambda device: False)
    first = train(auto(home), store)
    assert (first.tags["precision"], first.params["train.precision"]) == ("float32", "fp32")
    assert 'precision = "fp32"' in first.artifact("config.toml").read_text()
    for older in (False, True):
        if older:
            make_older(first)
        assert train(auto(home), store).id == first.id
        assert train(prepare(tiny(train={"epochs": 1, "precision": "fp32"}), home), store).id == first.id
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(devices, "has_fast_bf16", lambda device: True)
            prepared = auto(home)
            assert store.of_config(prepared.config, prepared.data.identity) == []


def test_an_unfinished_run_of_an_earlier_version_is_resumed(
    home: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "has_fast_bf16", lambda device: False)
    with pytest.raises(Interrupted):
        train(auto(home), store, observer=Watch(stop_after=2))
    (stopped,) = store.records()
    make_older(stopped)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(devices, "has_fast_bf16", lambda device: True)
        with pytest.raises(
            UserError, match=f"run {stopped.short_id} of this config started in fp32, .* in bf16 here: add"
        ):
            train(auto(home), store, resume=True)
    assert train(auto(home), store, resume=True).id == stopped.id


@pytest.mark.parametrize(
    ("device", "precision", "found"),
    [("NVIDIA H200", "float32", False), ("NVIDIA H200", "bfloat16", True), ("cpu, 2 threads", "float32", True)],
)
def test_float32_that_was_tf32_on_cuda_is_not_reused(device: str, precision: str, found: bool, store: Store) -> None:
    config = tiny(train={"precision": {"float32": "fp32", "bfloat16": "bf16"}[precision]})
    tags = {"config_key": config.key(), "data_digest": "d", "device": device, "precision": precision}
    tracker = start_run(store, "older", "pretrain", {}, tags)
    assert bool(store.of_config(config, "d")) == found
    tracker.tag({"tf32": "never"})
    tracker.flush()
    assert store.of_config(config, "d")


def test_a_checkpoint_that_cannot_be_used_starts_over(
    prepared: Prepared, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Interrupted):
        train(prepared, store, observer=Watch(stop_after=1))
    (stopped,) = store.records()
    (checkpoint,) = checkpoints(stopped.folder)
    checkpoint.write_bytes(b"damaged")
    with pytest.raises(UnusableCheckpoint):
        train(prepared, store, resume=True)
    assert train_or_resume(prepared, store).id != stopped.id


OUT_OF_MEMORY = {
    "accelerator": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    "cpu": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 20 bytes"),
}


@pytest.mark.parametrize("place", ["train_step", "load_batches", "knn_accuracy"])
@pytest.mark.parametrize("kind", OUT_OF_MEMORY)
def test_out_of_memory_is_an_error_of_one_line(
    kind: str, place: str, home: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise OUT_OF_MEMORY[kind]

    monkeypatch.setattr(loop, place, fail)
    expected = r"lower train.norm_batch \(now 256\) or model.width, .* close other programs, and add --resume"
    with pytest.raises(RunFailed, match=expected):
        train(prepare(tiny(train={"knn_every": 1, "epochs": 1}), home), store)
    assert [record.status for record in store.records()] == ["FAILED"]
