"""Tests of experiments/runs/encoders.py."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.runs.encoders import WeightsMissing, find_encoder, open_subject
from experiments.runs.exchange import export_run
from experiments.tracking.store import Store
from experiments.tracking.writing import Tracker, start_run
from simclr.build import build_model
from simclr.config import Config, to_toml
from simclr.data.dataset import Dataset, open_dataset
from simclr.errors import UserError
from simclr.evaluate.protocol import make_protocol
from simclr.weights.checkpoint import save_weights
from simclr.weights.encoder import Encoder
from tests.helpers import tiny


def headless(config: Config) -> Config:
    return config.model_copy(update={"model": config.model.model_copy(update={"head": "none"})})


def test_an_encoder_is_found_by_run_or_by_file(trained: Store) -> None:
    of_run = find_encoder("t0.2-s0", trained)
    of_file = find_encoder(str(of_run.path), trained)
    assert of_run.run_id == trained.find("t0.2-s0").id
    assert of_file.run_id is None
    assert of_file.config == of_run.config.model_copy(update={"name": "model"})
    assert find_encoder(None, trained).run_id == trained.find("t0.5-s0").id


def test_neither_name_nor_folder_of_a_files_config_is_used(trained: Store, tmp_path: Path) -> None:
    found = find_encoder("t0.2-s0", trained)
    (tmp_path / "pictures").mkdir()
    data = {"dataset": "folder", "dir": str(tmp_path / "pictures"), "side": 16}
    config = tiny(name="../../escaped", data=data)
    theirs = tmp_path / "theirs.safetensors"
    save_weights(
        theirs, Encoder(found.config, found.weights).model, {"config": to_toml(headless(config)), "digest": "0"}
    )
    of_file = find_encoder(str(theirs), trained)
    assert (of_file.config.name, of_file.config.data.dir) == ("theirs", None)
    with pytest.raises(UserError, match="add --data-dir"):
        open_subject(of_file, trained, make_protocol([]))
    parity = export_run(of_file, trained, tmp_path / "out" / "inside", "safetensors")
    assert parity.file == tmp_path / "out" / "inside" / "theirs.safetensors"
    assert "escaped" not in parity.file.with_suffix(".md").read_text()


def test_missing_weights_are_an_error_of_one_line(store: Store) -> None:
    start_run(store, "gone", "pretrain", {}).finish("FINISHED")
    with pytest.raises(UserError, match=r"run gone \(\w{8}\) has finished, but its weights were deleted"):
        find_encoder(None, store)


@pytest.mark.parametrize("size", [0, 100, -1])
def test_weights_that_were_cut_off_are_like_missing_ones(size: int, trained: Store, store: Store) -> None:
    whole = find_encoder("t0.2-s0", trained).path.read_bytes()
    tracker = start_run(store, "cut", "pretrain", {})
    tracker.artifact("model.safetensors", lambda path: path.write_bytes(whole[:size]))
    tracker.finish("FINISHED")
    with pytest.raises(WeightsMissing, match=r"run cut \(\w{8}\) has finished, but its weights are damaged"):
        find_encoder(None, store)


def test_an_unfinished_run_has_no_encoder_yet(store: Store) -> None:
    tracker: Tracker = start_run(store, "tiny-s0", "pretrain", tiny().flat())
    tracker.finish("KILLED")
    for name in ("tiny-s0", None):
        with pytest.raises(UserError, match=r"run tiny-s0 \(\w{8}\) was stopped before it finished\. It has no "):
            find_encoder(name, store)


def test_a_remedy_fits_what_started_the_run(store: Store) -> None:
    study = start_run(store, "s", "study", {})
    cell = start_run(store, "cell-s0", "pretrain", {}, parent=study.run_id)
    with pytest.raises(UserError, match=r"is still running\. Wait until it ends$"):
        find_encoder("cell-s0", store)
    cell.finish("KILLED")
    with pytest.raises(UserError, match=r"It belongs to the study 's': run the command that started that again$"):
        find_encoder("cell-s0", store)
    cell.finish("FINISHED")
    with pytest.raises(UserError, match=r"were deleted: to train it again, use `simclr pretrain --again` with its"):
        find_encoder("cell-s0", store)


def test_changed_images_are_refused(trained: Store) -> None:
    found = find_encoder("t0.2-s0", trained)._replace(digest="0123456789")
    with pytest.raises(
        UserError, match="the images of digits or their labels differ from those that this encoder was trained on"
    ):
        open_subject(found, trained, make_protocol([]))


def test_images_that_are_gone_have_a_remedy(trained: Store, tmp_path: Path) -> None:
    found = find_encoder("t0.2-s0", trained)
    data = found.config.data.model_copy(update={"dataset": "folder", "dir": tmp_path / "gone"})
    moved = found._replace(config=found.config.model_copy(update={"data": data}))
    with pytest.raises(UserError, match=r"were in .*gone: if you moved them, add --data-dir NEW"):
        open_subject(moved, trained, make_protocol([]))


def test_images_that_have_moved_are_named_only_once(store: Store, tmp_path: Path) -> None:
    before, now, draw = tmp_path / "before", tmp_path / "now", np.random.default_rng(0)
    for number in range(20):
        (before / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(before / "ab"[number % 2] / f"{number}.png")
    config = tiny(data={"dataset": "folder", "dir": str(before), "side": 16})
    data = open_dataset(config.data, store.folder)
    model = build_model(config, data, torch.device("cpu"))
    tracker = start_run(store, "photos", "pretrain", {})
    facts = {"config": to_toml(config), "digest": data.identity}
    tracker.artifact("model.safetensors", lambda path: save_weights(path, model, facts))
    tracker.finish("FINISHED")
    before.rename(now)
    with pytest.raises(UserError, match="add --data-dir NEW"):
        open_subject(find_encoder("photos", store), store, make_protocol([]))
    first = open_subject(find_encoder("photos", store), store, make_protocol([]), data_dir=now)
    second = open_subject(find_encoder("photos", store), store, make_protocol([]))
    assert first.data.identity == second.data.identity == data.identity
    shutil.copytree(now, before)  # so that they are also where they were, which is then in use again
    assert find_encoder("photos", store).config.data.dir == before
    open_subject(
        find_encoder("photos", store), store, make_protocol([]), data_dir=shutil.copytree(now, tmp_path / "copy")
    )
    shutil.rmtree(before)
    assert find_encoder("photos", store).config.data.dir == now


def test_images_of_which_others_are_held_out_are_refused(trained: Store, digits: Dataset) -> None:
    found = find_encoder("t0.2-s0", trained)._replace(digest=f"{digits.digest}-0123456789")
    with pytest.raises(UserError, match=rf"other ones are held out now \(digest .*, was {digits.digest[:8]}-01234567"):
        open_subject(found, trained, make_protocol([]))
    with pytest.raises(UserError, match="has images that this encoder was trained on"):
        open_subject(found, trained, make_protocol([]), transfer="digits", changes=["data.split_seed=3"])


def test_settings_of_a_transfer_are_those_of_images(trained: Store) -> None:
    found = find_encoder("t0.2-s0", trained)
    with pytest.raises(UserError, match=r"train\.epochs=3 is not a setting of images"):
        open_subject(found, trained, make_protocol([]), transfer="shapes", changes=["train.epochs=3"])


def test_images_of_more_bits_than_the_encoders_own_need_a_range(trained: Store, tmp_path: Path) -> None:
    found, folder = find_encoder("t0.2-s0", trained), tmp_path / "deep"
    for name, brightest in (("a", 4095), ("b", 2000)):
        (folder / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(np.linspace(i, brightest, 256).reshape(16, 16).astype(np.uint16)).save(
                folder / name / f"{i}.png"
            )
    for only_shown in (True, False):
        with pytest.raises(UserError, match="deep has images of more than 8 bits, but the encoder was trained on"):
            open_subject(found, trained, make_protocol([]), transfer=str(folder), only_shown=only_shown)
    subject = open_subject(
        found, trained, make_protocol([]), transfer=str(folder), changes=["data.range=[0, 4095]"], only_shown=True
    )
    assert subject.data.range == (0, 4095)
    own = found.config.model_copy(update={"data": found.config.data.model_copy(update={"range": (0, 8190)})})
    subject = open_subject(
        found._replace(config=own), trained, make_protocol([]), transfer=str(folder), only_shown=True
    )
    assert subject.data.images.max() == 128  # its own range, not that of the folder
    moved = {"dataset": "folder", "dir": tmp_path / "images"}
    own = found.config.model_copy(update={"data": found.config.data.model_copy(update=moved)})
    with pytest.raises(UserError, match=r"trained on images of 8 bits: convert them to 8 bits$"):
        open_subject(found._replace(config=own), trained, make_protocol([]), data_dir=folder, only_shown=True)


def test_transfer_to_the_training_data_is_refused(trained: Store) -> None:
    found = find_encoder("t0.2-s0", trained)
    with pytest.raises(UserError, match="'digits' has images that this encoder was trained on"):
        open_subject(found, trained, make_protocol([]), transfer="digits")


def test_an_unknown_data_set_suggests_the_nearest(trained: Store) -> None:
    found = find_encoder("t0.2-s0", trained)
    with pytest.raises(UserError, match=r"unknown data set or folder 'digit'.*did you mean 'digits'"):
        open_subject(found, trained, make_protocol([]), transfer="digit")


def test_the_subject_has_the_weights_of_the_encoder(trained: Store, digits: Dataset) -> None:
    found = find_encoder("t0.2-s0", trained)
    subject = open_subject(found, trained, make_protocol([]))
    assert subject.data.digest == digits.digest
    weights = subject.model.state_dict()
    assert all(bool((weights[name] == tensor).all()) for name, tensor in found.weights.items())
    assert set(found.weights) == set(weights)
