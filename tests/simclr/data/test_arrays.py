"""NumPy's files are read in MedMNIST's, Keras' and plain forms, exactly; others are errors that name the arrays."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from simclr.data.source import UNLABELLED
from tests.simclr.data.helpers import error_message, noise, open_data

NAMES = {
    "medmnist": [("train_images", "train_labels"), ("val_images", "val_labels"), ("test_images", "test_labels")],
    "keras": [("x_train", "y_train"), ("x_val", "y_val"), ("x_test", "y_test")],
}


@pytest.fixture
def splits(rng):
    """Images, N x H x W x C, and labels of train, val and test."""
    return [(noise(rng, n, 9, 9, 3), np.arange(n) % 3) for n in (12, 6, 3)]


def save(path, arrays, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (np.savez_compressed if options.get("compressed") else np.savez)(path, **arrays)
    return path


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("names", NAMES)
def test_splits_are_read_exactly(names, compressed, splits, home, tmp_path):
    arrays = {}
    for (image, label), (images, labels) in zip(NAMES[names], splits, strict=True):
        arrays |= {image: images, label: labels[:, None] if names == "medmnist" else labels}
    data = open_data(home, dir=save(tmp_path / "data.npz", arrays, compressed=compressed), side=9)
    assert data.classes == ("0", "1", "2")
    for part, (images, labels) in zip(("train", "val", "test"), splits, strict=True):
        assert np.array_equal(data.images[data.parts[part]], images.transpose(0, 3, 1, 2))
        assert np.array_equal(data.labels[data.parts[part]], labels)


@pytest.mark.parametrize("form", ["N x H x W", "N x H x W x 1", "N x 3 x H x W", "Fortran order"])
def test_every_shape_gives_the_same_pixels(form, rng, home, tmp_path):
    gray = noise(rng, 12, 9, 7)
    colour = np.repeat(gray[..., None], 3, axis=-1)
    images = {
        "N x H x W": gray,
        "N x H x W x 1": gray[..., None],
        "N x 3 x H x W": colour.transpose(0, 3, 1, 2),
        "Fortran order": np.asfortranarray(colour),
    }[form]
    path = save(tmp_path / "data.npz", {"images": images, "labels": np.arange(12) % 2})
    expected = save(tmp_path / "plain.npz", {"images": colour, "labels": np.arange(12) % 2})
    assert np.array_equal(open_data(home, dir=path, side=9).images, open_data(home, dir=expected, side=9).images)


def test_images_that_are_no_squares_are_cropped_as_files_are(rng, home, tmp_path):
    images = noise(rng, 6, 20, 32, 3)
    for i, image in enumerate(images):
        (tmp_path / "files").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "files" / f"{i}.png")
    data = open_data(home, dir=save(tmp_path / "data.npz", {"images": images}), side=32)
    assert np.array_equal(data.images, open_data(home, dir=tmp_path / "files", side=32).images)


def test_arrays_of_a_folder_are_those_of_its_files(splits, home, tmp_path):
    (images, labels), *_ = splits
    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data" / "x_train.npy", images)
    np.save(tmp_path / "data" / "y_train.npy", labels)
    assert (
        open_data(home, dir=tmp_path / "data", side=9).digest
        == open_data(home, dir=save(tmp_path / "data.npz", {"images": images, "labels": labels}), side=9).digest
    )


def test_images_without_labels_are_for_pretraining(splits, home, tmp_path):
    np.save(tmp_path / "images.npy", splits[0][0])
    data = open_data(home, dir=tmp_path / "images.npy", side=9)
    assert not data.has_labels
    assert len(data.parts["pretrain"]) == 12


def test_classes_are_named_after_labels_in_their_order(rng, home, tmp_path):
    labels = np.array([2, 10, -1, 2, 10, 10])
    data = open_data(home, dir=save(tmp_path / "data.npz", {"x": noise(rng, 6, 8, 8), "y": labels}), side=8)
    assert data.classes == ("-1", "2", "10")
    assert data.labels.tolist() == [1, 2, 0, 1, 2, 2]


def test_labels_of_bytes_are_named_by_their_text(rng, home, tmp_path):
    path = save(tmp_path / "data.npz", {"x": noise(rng, 6, 8, 8), "y": np.array([b"cat", b"dog"] * 3)})
    assert open_data(home, dir=path, side=8).classes == ("cat", "dog")


def test_one_hot_labels_are_classes(rng, home, tmp_path):
    path = save(tmp_path / "data.npz", {"x": noise(rng, 6, 8, 8), "y": np.eye(3)[[0, 1, 2, 2, 1, 0]]})
    assert open_data(home, dir=path, side=8).labels.tolist() == [0, 1, 2, 2, 1, 0]


def test_arrays_with_other_names_are_chosen_by_the_user(splits, home, tmp_path):
    (images, labels), *_ = splits
    path = save(tmp_path / "data.npz", {"a": images, "b": images[::-1], "coarse": labels, "fine": labels + 5})
    message = error_message(home, dir=path, side=8)
    assert "several arrays that may be the images: a, b" in message
    assert "fine (12 int64)" in message
    message = error_message(home, dir=path, side=8, image_column="b")
    assert "several arrays that may be the labels: coarse, fine" in message
    data = open_data(home, dir=path, side=9, image_column="b", label_column="fine")
    assert np.array_equal(data.images, images[::-1].transpose(0, 3, 1, 2))
    assert data.classes == ("5", "6", "7")
    assert open_data(home, dir=path, side=9, image_column="b", unlabelled=True).classes == ()
    assert "has no array 'c'" in error_message(home, dir=path, image_column="c")


UNCLEAR = {
    "truth": (np.ones((4, 8, 8), bool), "numpy.uint8(255 * array)"),
    "text": (np.full((4, 8, 8), "a"), "doesn't contain real numbers"),
    "a picture": (np.zeros((8, 8, 3), np.uint8), "is a single picture"),
    "channels twice": (np.zeros((4, 3, 8, 3), np.uint8), "doesn't have the shape of images"),
    "five axes": (np.zeros((4, 3, 8, 8, 2), np.uint8), "doesn't have the shape of images"),
}


@pytest.mark.parametrize("name", UNCLEAR)
def test_unclear_arrays_are_errors(name, home, tmp_path):
    array, expected = UNCLEAR[name]
    assert expected in error_message(home, dir=save(tmp_path / "data.npz", {"images": array}))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (np.zeros(5, int), "doesn't have a label for each of the 6 images"),
        (np.ones((6, 3), int), "gives an image several labels or none"),
        (np.linspace(0, 1, 6), "has fractions"),
        (np.array([0, 1, np.inf, 0, 1, 1]), "infinite values"),
        (np.array(["a"] * 6, dtype=object), "could run code when they are read"),
    ],
)
def test_labels_that_are_no_classes_are_errors(labels, expected, home, tmp_path):
    path = save(tmp_path / "data.npz", {"images": np.zeros((6, 8, 8), np.uint8), "labels": labels})
    assert expected in error_message(home, dir=path)


def test_nan_marks_a_missing_label(rng, home, tmp_path):
    labels = np.arange(40) % 2.0
    labels[[3, 20]] = np.nan
    path = save(tmp_path / "data.npz", {"images": noise(rng, 40, 8, 8), "labels": labels})
    data = open_data(home, dir=path, side=8)
    assert data.classes == ("0", "1")
    assert np.array_equal(data.labels, np.nan_to_num(labels, nan=UNLABELLED))


@pytest.mark.parametrize(("dtype", "most"), [("float32", 1), ("float64", 255), ("uint16", 4095), ("int32", 255)])
def test_other_numbers_are_scaled_by_one_range(dtype, most, rng, home, tmp_path):
    levels = noise(rng, 40, 9, 9, 3)
    stored = (levels * (most / 255)).astype(dtype)
    path = save(tmp_path / "data.npz", {"images": stored, "labels": np.arange(40) % 2})
    data = open_data(home, dir=path, side=9)
    assert np.array_equal(data.images, (stored * (255 / most)).round().transpose(0, 3, 1, 2))
    assert data.range == (0, most)
    halved = open_data(home, dir=path, side=9, range=(0, 2 * most)).images
    assert abs(halved - (stored * (255 / most / 2)).transpose(0, 3, 1, 2)).max() <= 0.5 + 1e-6


def test_splits_of_different_types_are_an_error(home, tmp_path):
    arrays = {"x_train": np.zeros((9, 8, 8), np.uint8), "x_test": np.zeros((9, 8, 8), np.float32)}
    assert "have different types in its splits" in error_message(home, dir=save(tmp_path / "data.npz", arrays))


def test_a_test_class_that_train_lacks_is_an_error(splits, home, tmp_path):
    arrays = {"x_train": splits[0][0], "y_train": splits[0][1], "x_test": splits[2][0], "y_test": splits[2][1] + 1}
    assert "the labels '3' are in test, but not in train" in error_message(home, dir=save(tmp_path / "d.npz", arrays))


def test_a_header_that_claims_more_than_there_is_is_refused_before_anything_is_allocated(home, tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 10**6, 3)})
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr("images.npy", header.getvalue() + b"\0" * 100)
    (tmp_path / "images.npy").write_bytes(header.getvalue() + b"\0" * 100)
    for name in ("data.npz", "images.npy"):
        assert "header describes 3,000,000,000,000,128" in error_message(home, dir=tmp_path / name)


@pytest.mark.parametrize("name", ["data.npz", "images.npy"])
def test_damaged_files_are_errors(name, home, tmp_path):
    (tmp_path / name).write_bytes(b"neither")
    assert "can't be read as NumPy arrays" in error_message(home, dir=tmp_path / name)


def test_a_changed_file_is_read_again(splits, home, tmp_path):
    first = open_data(home, dir=save(tmp_path / "data.npz", {"images": splits[0][0]}), side=9).digest
    assert open_data(home, dir=save(tmp_path / "data.npz", {"images": splits[1][0]}), side=9).digest != first
