"""Parts are disjoint, stratified and drawn by the split seed. Images are stored at the chosen side and measured."""

import numpy as np
import pytest
from PIL import Image

from simclr.data.dataset import NORMALIZATIONS
from simclr.data.sources import DATASETS
from tests.simclr.data.helpers import error_message, open_data, plain, values, write, write_class_folder


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home folder for the module, so that the digits are decoded once."""
    return tmp_path_factory.mktemp("home")


def rows(data, *parts):
    return {int(row) for part in parts for row in data.parts[part]}


# --- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.05, 0.3])
def test_parts_are_disjoint_and_follow_val_fraction(fraction, home):
    data = open_data(home, "digits", val_fraction=fraction)
    sizes = {part: len(data.parts[part]) for part in ("train", "val", "test")}
    assert sizes["val"] == round(fraction * (1797 - 359))
    assert sum(sizes.values()) == len(rows(data, "train", "val", "test")) == 1797
    assert rows(data, "pretrain") == rows(data, "train")
    assert all(np.array_equal(part, np.sort(part)) for part in data.parts.values())


def test_parts_are_stratified(home):
    data = open_data(home, "digits")
    whole = np.bincount(data.labels[np.concatenate([data.parts["train"], data.parts["val"]])]) / 1438
    for part in ("train", "val"):
        counts = np.bincount(data.labels[data.parts[part]], minlength=10) / len(data.parts[part])
        assert np.abs(counts - whole).max() < 1.5 / len(data.parts[part])


def test_labelled_folder_gets_a_test_part_as_large_as_validation(home, tmp_path):
    write_class_folder(tmp_path / "photos")
    data = open_data(home, dir=tmp_path / "photos", side=8, val_fraction=0.2)
    assert {part: len(data.parts[part]) for part in data.parts} == {"pretrain": 18, "train": 18, "val": 6, "test": 6}
    assert len(rows(data, "train", "val", "test")) == 30
    assert not rows(data, "pretrain") & rows(data, "val", "test")


def test_validation_is_held_out_of_train_where_there_is_only_a_test_folder(home, tmp_path):
    write_class_folder(tmp_path / "photos" / "train", each=10)
    write_class_folder(tmp_path / "photos" / "test", each=2, first=100)
    data = open_data(home, dir=tmp_path / "photos", side=8, val_fraction=0.2)
    assert len(data.parts["val"]) == 6
    assert sorted(values(data, "train") + values(data, "val")) == list(range(30))
    assert values(data, "test") == list(range(100, 106))


def test_folder_of_one_class_is_all_for_training(home, tmp_path):
    write_class_folder(tmp_path / "photos", classes=("all",), each=20)
    data = open_data(home, dir=tmp_path / "photos", side=8)
    assert len(data.parts["pretrain"]) == 20
    assert not data.has_labels


def test_only_the_split_seed_decides_the_split(home):
    first, again = (open_data(home, "digits", split_seed=1, normalize=name) for name in ("dataset", "none"))
    other = open_data(home, "digits", split_seed=2)
    assert all(np.array_equal(first.parts[part], again.parts[part]) for part in first.parts)
    assert rows(first, "val") != rows(other, "val")
    assert rows(first, "test") == rows(other, "test")  # the data set comes with it


def test_limit_is_drawn_from_train_and_is_part_of_any_larger_limit(home):
    whole, large, small = (open_data(home, "digits", limit=n) for n in (None, 200, 50))
    assert [len(data.parts["pretrain"]) for data in (large, small)] == [200, 50]
    assert rows(small, "pretrain") < rows(large, "pretrain") < rows(whole, "pretrain")
    assert rows(small, "pretrain") == rows(small, "train")
    assert all(rows(small, part) == rows(whole, part) for part in ("val", "test"))
    assert rows(small, "train") != rows(open_data(home, "digits", limit=50, split_seed=1), "train")
    assert len(set(small.labels[small.parts["train"]])) == 10


@pytest.mark.parametrize(("each", "fraction"), [(1, 0.1), (10, 0.6)])  # held out twice: for val and for test
def test_too_few_images_to_train_on_is_an_error(each, fraction, home, tmp_path):
    write_class_folder(tmp_path / "photos", classes=("cat", "dog"), each=each)
    message = error_message(home, dir=tmp_path / "photos", side=8, val_fraction=fraction)
    assert f"data.val_fraction = {fraction} of {2 * each} images leaves none" in message


# --- sides and statistics ---------------------------------------------------------------------------------------------


def test_images_are_stored_at_the_default_side(home):
    data = open_data(home, "digits")
    assert data.side == DATASETS["digits"].side == 16
    assert data.images.shape == (1797, 3, 16, 16)


def test_images_are_resized_to_the_chosen_side(home):
    small, large = (open_data(home, "digits", side=side) for side in (8, 24))
    assert small.side == 8  # their own: not resized
    assert set(np.unique(small.images)) == {round(v * 255 / 16) for v in range(17)}
    image = Image.fromarray(small.images[0].transpose(1, 2, 0)).resize((24, 24), Image.Resampling.BICUBIC)
    assert np.array_equal(large.images[0], np.asarray(image).transpose(2, 0, 1))
    assert np.array_equal(large.labels, small.labels)


def test_statistics_come_from_the_images_to_pretrain_on(home, tmp_path):
    write_class_folder(tmp_path / "photos" / "train", each=5)
    write_class_folder(tmp_path / "photos" / "test", each=5, first=200)
    data = open_data(home, dir=tmp_path / "photos", side=8)
    pretrain = data.images[data.parts["pretrain"]] / 255
    assert len(pretrain) == 13
    assert np.allclose(data.mean, pretrain.mean((0, 2, 3)), atol=1e-6)
    assert np.allclose(data.std, pretrain.std((0, 2, 3)), atol=1e-6)


def test_statistics_of_many_images_come_from_a_sample(home, tmp_path, monkeypatch):
    monkeypatch.setattr("simclr.data.dataset.STATISTICS", 5)
    for i in range(11):
        write(tmp_path / "photos" / f"{i:02d}.png", plain(i))
    data = open_data(home, dir=tmp_path / "photos", side=8)
    assert np.allclose(data.mean, np.arange(0, 11, 2).mean() / 255, atol=1e-6)


def test_normalization_is_the_data_sets_statistics_or_constants(home):
    data = open_data(home, "digits")
    assert NORMALIZATIONS["dataset"](data) == (data.mean, data.std)
    assert NORMALIZATIONS["half"](data) == ((0.5,) * 3, (0.5,) * 3)
    assert NORMALIZATIONS["none"](data) == ((0.0,) * 3, (1.0,) * 3)
