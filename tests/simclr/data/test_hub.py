"""The library `datasets` gives the images of a local builder and of a saved data set. No test uses the network."""

import sys
from pathlib import Path

import pytest

from simclr.data import hub
from tests.simclr.data.helpers import error_message, open_data, plain, values, write, write_class_folder

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)


def make(**splits):
    """A DatasetDict of `plain` images, labelled by turns."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    return datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict(
                {"image": [{"bytes": plain(i), "path": None} for i in numbers], "label": [i % 2 for i in numbers]},
                features=features,
            )
            for split, numbers in splits.items()
        }
    )


@pytest.mark.parametrize("form", ["folder", "hf:folder"])
def test_a_saved_data_set_is_read(form, home, tmp_path):
    make(train=range(12), validation=range(20, 24), test=range(30, 36)).save_to_disk(tmp_path / "saved")
    data = open_data(home, dir=Path("hf:saved") if form == "hf:folder" else tmp_path / "saved", side=8)
    assert data.classes == ("cat", "dog")
    assert values(data, "pretrain") == list(range(12))
    assert values(data, "val") == list(range(20, 24))
    assert values(data, "test") == list(range(30, 36))
    assert data.labels.tolist() == [i % 2 for i in data.images[:, 0, 0, 0].tolist()]


def test_a_split_alone_is_for_training_and_an_unknown_one_is_left_out(home, tmp_path):
    make(test=range(8))["test"].save_to_disk(tmp_path / "one")
    assert values(open_data(home, dir=tmp_path / "one", side=8)) == list(range(8))
    make(train=range(8), extra=range(50, 60)).save_to_disk(tmp_path / "two")
    assert values(open_data(home, dir=tmp_path / "two", side=8)) == list(range(8))


def test_splits_of_one_meaning_are_joined(home, tmp_path):
    make(train_a=range(8), train_b=range(8, 16), test=range(30, 34)).save_to_disk(tmp_path / "saved")
    data = open_data(home, dir=tmp_path / "saved", side=8)
    assert values(data, "pretrain") == sorted(set(range(16)) - set(values(data, "val")))
    assert data.labels.tolist() == [i % 2 for i in data.images[:, 0, 0, 0].tolist()]


def test_a_test_split_without_labels_is_not_tested_on(home, tmp_path):
    saved = make(test=range(30, 34), train=range(8))
    saved["test"] = saved["test"].remove_columns("label")
    saved.save_to_disk(tmp_path / "saved")
    data = open_data(home, dir=tmp_path / "saved", side=8)
    assert data.classes == ("cat", "dog")
    assert not set(values(data, "test")) & set(range(30, 34))


def test_other_names_of_classes_in_a_split_are_an_error(home, tmp_path):
    saved = make(train=range(8), test=range(30, 34))
    other = datasets.ClassLabel(names=["dog", "cat"])
    saved["test"] = saved["test"].cast_column("label", other)
    saved.save_to_disk(tmp_path / "saved")
    assert "the split 'test' of" in error_message(home, dir=tmp_path / "saved", side=8)


def test_a_file_called_state_alone_is_no_saved_data_set(home, tmp_path):
    write_class_folder(tmp_path / "photos")
    write(tmp_path / "photos" / "state.json", b"{}")
    assert open_data(home, dir=tmp_path / "photos", side=8).classes == ("cat", "dog", "emu")


def test_a_local_builder_gives_what_its_folder_gives(home, tmp_path):
    for split, first in (("train", 0), ("test", 100)):
        write_class_folder(tmp_path / "photos" / split, each=4, first=first)
    built, folder = (open_data(home, dir=path, side=8) for path in (Path("hf:photos"), tmp_path / "photos"))
    assert built.digest == folder.digest
    assert built.classes == folder.classes


def test_what_cannot_be_loaded_is_an_error_with_a_remedy(home, tmp_path, monkeypatch):
    message = error_message(home, dir=Path("hf:nobody/nothing"))
    assert "can't load hf:nobody/nothing with the library datasets" in message
    write(tmp_path / "script" / "script.py", b"raise SystemExit('run')")
    assert "can't load hf:script" in error_message(home, dir=Path("hf:script"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'simclr-suite[hf]'" in error_message(home, dir=Path("hf:script"))


def test_a_changed_folder_is_read_again(home, tmp_path):
    make(train=range(8)).save_to_disk(tmp_path / "saved")
    first = hub.load_hub(tmp_path / "saved", home, None).fingerprint
    write(tmp_path / "saved" / "more.txt", b"x")
    assert hub.load_hub(tmp_path / "saved", home, None).fingerprint != first
