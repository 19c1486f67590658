"""Each data set is read from its archive or folder in the published layout. Other layouts are errors with a remedy."""

import os
from itertools import product

import numpy as np
import pytest
from PIL import Image

from simclr.data.dataset import DataConfig, source_of
from simclr.data.sources import image_side
from tests.simclr.data.helpers import (
    decode_with_pil,
    encode,
    error_message,
    make_cifar10,
    make_tar,
    make_zip,
    noise,
    open_data,
    plain,
    publish,
    values,
    write,
    write_class_folder,
)

# --- archives ---------------------------------------------------------------------------------------------------------


def test_cifar10_is_read_from_the_binary_archive(home, monkeypatch, rng):
    members, images, labels, classes = make_cifar10(rng)
    content = make_tar(members)
    write(home / "downloads" / publish(monkeypatch, "cifar10", content), content)
    data = open_data(home, "cifar10", val_fraction=0.2)
    assert np.array_equal(data.images, images)
    assert np.array_equal(data.labels, labels)
    assert data.classes == classes
    assert data.parts["test"].tolist() == list(range(20, 24))
    assert sorted([*data.parts["train"], *data.parts["val"]]) == list(range(20))


def test_cifar100_uses_the_fine_labels(home, monkeypatch, rng, tmp_path):
    images = noise(rng, 12, 3, 32, 32)
    coarse, fine = np.arange(12, dtype=np.uint8) % 3, np.arange(12, dtype=np.uint8) + 50
    records = np.concatenate([coarse[:, None], fine[:, None], images.reshape(-1, 3072)], 1)
    fine_names = [f"fine_{i}" for i in range(100)]
    content = make_tar(
        {
            "cifar-100-binary/train.bin": records[:8].tobytes(),
            "cifar-100-binary/test.bin": records[8:].tobytes(),
            "cifar-100-binary/fine_label_names.txt": "\n".join(fine_names).encode(),
            "cifar-100-binary/coarse_label_names.txt": b"a\nb\nc\n",
        }
    )
    write(tmp_path / "mine" / publish(monkeypatch, "cifar100", content), content)
    data = open_data(home, "cifar100", dir=tmp_path / "mine")
    assert np.array_equal(data.images, images)
    assert np.array_equal(data.labels, fine)
    assert data.classes == tuple(fine_names)
    assert data.parts["test"].tolist() == list(range(8, 12))


def test_archive_of_another_version_is_an_error(home, monkeypatch):
    content = make_tar({"cifar-10-batches-py/data_batch_1": b"a pickle"})
    archive = write(home / "downloads" / publish(monkeypatch, "cifar10", content), content)
    assert f"{archive} is not the binary version of cifar10" in error_message(home, "cifar10")


def test_nothing_is_created_for_a_folder_that_cannot_be_meant(home, tmp_path):
    archive = write(tmp_path / "photos.zip", make_zip({"a.png": encode(np.zeros((8, 8), np.uint8))}))
    messages = {
        archive: f"{archive} is a file, but for",
        tmp_path / "cifar.tar.gz": f"there is no file {tmp_path / 'cifar.tar.gz'}",
        tmp_path / "data" / "cifar": f"there is no folder {tmp_path / 'data'} to download into",
    }
    for dataset, (place, message) in product(("cifar10", "tiny-imagenet"), messages.items()):
        assert message in error_message(home, dataset, dir=place)
    assert f"to train on the images in {archive.name}, add --dataset folder" in error_message(
        home, "cifar10", dir=archive
    )
    assert "unpack it, and give its folder" in error_message(home, "tiny-imagenet", dir=archive)
    assert list(tmp_path.iterdir()) == [archive]
    assert f"or add --dataset folder to use the images in {tmp_path}" in error_message(
        home, "digits", unlabelled=True, dir=tmp_path
    )


def test_archive_that_cannot_be_opened_is_an_error(home, monkeypatch):
    content = b"not a tar archive"
    write(home / "downloads" / publish(monkeypatch, "cifar10", content), content)
    assert "can't read the data set 'cifar10'" in error_message(home, "cifar10")


def test_stl10_is_column_major_and_its_unlabelled_images_are_for_pretraining(home, monkeypatch, rng):
    train, test, unlabelled = (noise(rng, n, 3, 96, 96) for n in (10, 4, 5))
    labels = np.arange(1, 11, dtype=np.uint8)
    content = make_tar(
        {
            "stl10_binary/test_X.bin": test.transpose(0, 1, 3, 2).tobytes(),
            "stl10_binary/test_y.bin": labels[:4][::-1].tobytes(),
            "stl10_binary/train_X.bin": train.transpose(0, 1, 3, 2).tobytes(),
            "stl10_binary/train_y.bin": labels.tobytes(),
            "stl10_binary/unlabeled_X.bin": unlabelled.transpose(0, 1, 3, 2).tobytes(),
            "stl10_binary/class_names.txt": b"airplane\nbird\ncar\ncat\ndeer\ndog\nhorse\nmonkey\nship\ntruck\n",
            "stl10_binary/fold_indices.txt": b"0 1 2\n",
        }
    )
    write(home / "downloads" / publish(monkeypatch, "stl10", content), content)
    data = open_data(home, "stl10", val_fraction=0.3)
    assert np.array_equal(data.images, np.concatenate([train, test, unlabelled]))
    assert data.labels.tolist() == [*range(10), 3, 2, 1, 0, *[-1] * 5]
    assert data.classes[0] == "airplane"
    assert len(data.classes) == 10
    assert data.parts["test"].tolist() == list(range(10, 14))
    assert len(data.parts["val"]) == 3
    unlabelled_rows = set(range(14, 19))
    assert set(data.parts["pretrain"]) == set(data.parts["train"]) | unlabelled_rows
    assert not unlabelled_rows & {row for part in ("train", "val", "test") for row in data.parts[part]}


WNIDS = ("n02124075", "n01443537", "n07734744")  # not in alphabetical order, as in the published file


def make_tiny_imagenet(rng):
    """The files of Tiny ImageNet's layout with 3 classes, the names of the images of train and val, and all labels."""
    words = "n00001740\tentity\nn01443537\tgoldfish, Carassius auratus\nn02124075\tEgyptian cat\nn07734744\tmushroom\n"
    files = {"wnids.txt": "\n".join(WNIDS).encode(), "words.txt": words.encode()}
    train, val = {}, {}
    for wnid in WNIDS:
        for i in range(3):
            pixels = noise(rng, 8, 8) if i == 1 else noise(rng, 8, 8, 3)
            train[f"train/{wnid}/images/{wnid}_{i}.JPEG"] = encode(Image.fromarray(pixels).resize((64, 64)), "JPEG")
        files[f"train/{wnid}/{wnid}_boxes.txt"] = f"{wnid}_0.JPEG\t0\t10\t63\t58\n".encode()
    val_labels = {10: 0, 2: 2, 0: 1, 1: 0}
    for i in val_labels:
        val[f"val/images/val_{i}.JPEG"] = encode(Image.fromarray(noise(rng, 8, 8, 3)).resize((64, 64)), "JPEG")
    lines = [f"val_{i}.JPEG\t{WNIDS[label]}\t0\t32\t44\t62\n" for i, label in val_labels.items()]
    files["val/val_annotations.txt"] = "".join(lines).encode()
    files["test/images/test_0.JPEG"] = encode(noise(rng, 64, 64, 3), "JPEG")
    labels = {name: WNIDS.index(name.split("/")[1]) for name in train}
    labels |= {f"val/images/val_{i}.JPEG": label for i, label in val_labels.items()}
    return files | train | val, [*sorted(train), *sorted(val)], labels


@pytest.mark.parametrize("layout", ["zip", "unpacked", "unpacked in a folder"])
def test_tiny_imagenet_is_read_zipped_and_unpacked(layout, home, monkeypatch, rng, tmp_path):
    files, names, labels = make_tiny_imagenet(rng)
    folder = tmp_path / "given"
    if layout == "zip":
        content = make_zip({"tiny-imagenet-200/": b""} | {f"tiny-imagenet-200/{n}": c for n, c in files.items()})
        write(folder / publish(monkeypatch, "tiny-imagenet", content), content)
    else:
        root = folder / "tiny-imagenet-200" if layout != "unpacked" else folder
        for name, content in files.items():
            write(root / name, content)
    data = open_data(home, "tiny-imagenet", dir=folder, val_fraction=0.3)
    assert np.array_equal(data.images, np.stack([decode_with_pil(files[name]) for name in names]))
    assert data.labels.tolist() == [labels[name] for name in names]
    assert data.classes == ("Egyptian cat", "goldfish", "mushroom")
    assert data.parts["test"].tolist() == list(range(9, 13))
    assert sorted([*data.parts["train"], *data.parts["val"]]) == list(range(9))


def test_tiny_imagenet_with_an_unlisted_class_is_an_error(home, rng, tmp_path):
    files, *_ = make_tiny_imagenet(rng)
    for name, content in (files | {"wnids.txt": "\n".join(WNIDS[1:]).encode()}).items():
        write(tmp_path / "given" / name, content)
    message = error_message(home, "tiny-imagenet", dir=tmp_path / "given")
    assert f"images of class '{WNIDS[0]}', which its wnids.txt does not list" in message


@pytest.mark.parametrize("dataset", ["cifar10", "tiny-imagenet"])
def test_member_names_that_lead_outside_write_nothing_there(dataset, home, monkeypatch, rng, tmp_path):
    evil = {"../../evil.JPEG": b"x", f"{tmp_path}/evil.bin": b"x", "../evil.bin": b"x"}
    if dataset == "cifar10":
        content = make_tar(evil | make_cifar10(rng)[0])
    else:
        content = make_zip(evil | {f"tiny-imagenet-200/{n}": c for n, c in make_tiny_imagenet(rng)[0].items()})
    name = publish(monkeypatch, dataset, content)
    write(home / "downloads" / name, content)
    assert len(open_data(home, dataset).images) == (24 if dataset == "cifar10" else 13)
    assert {path.name for path in (home / "downloads").iterdir()} == {name}
    assert {path.name for path in home.iterdir()} == {"downloads", "cache"}
    assert {path.name for path in tmp_path.iterdir()} == {"home"}


# --- folders of images ------------------------------------------------------------------------------------------------


def test_folder_is_labelled_by_its_subfolders(home, tmp_path):
    labels = write_class_folder(tmp_path / "photos")
    data = open_data(home, dir=tmp_path / "photos", side=8)
    assert data.classes == ("cat", "dog", "emu")
    assert dict(zip(data.images[:, 0, 0, 0].tolist(), data.labels.tolist(), strict=True)) == labels
    assert sorted(value for part in ("train", "val", "test") for value in values(data, part)) == sorted(labels)
    assert data.has_labels


def test_train_val_and_test_folders_are_those_parts(home, tmp_path):
    root = tmp_path / "photos"
    write_class_folder(root / "train", each=4)
    write_class_folder(root / "val", classes=("dog",), each=3, first=100)
    write_class_folder(root / "test", classes=("emu", "cat"), each=2, first=200)
    data = open_data(home, dir=root, side=8)
    assert data.classes == ("cat", "dog", "emu")
    assert values(data, "train") == values(data, "pretrain") == list(range(12))
    assert values(data, "val") == [100, 101, 102]
    assert values(data, "test") == [200, 201, 202, 203]
    labels = dict(zip(data.images[:, 0, 0, 0].tolist(), data.labels.tolist(), strict=True))
    assert [labels[value] for value in (100, 101, 102, 200, 201, 202, 203)] == [1, 1, 1, 2, 2, 0, 0]


@pytest.mark.parametrize("inside", ["", "train"])
def test_flat_folder_has_no_labels_and_is_all_for_pretraining(inside, home, tmp_path):
    for i in range(20):
        write(tmp_path / "photos" / inside / f"{i}.png", plain(i))
    data = open_data(home, dir=tmp_path / "photos", side=8)
    assert data.classes == ()
    assert set(data.labels.tolist()) == {-1}
    assert not data.has_labels
    assert [len(data.parts[part]) for part in ("train", "val", "test")] == [0, 0, 0]
    assert values(data, "pretrain") == list(range(20))


def test_files_in_folders_within_a_class_belong_to_that_class(home, tmp_path):
    write_class_folder(tmp_path / "photos", each=4)
    write(tmp_path / "photos" / "dog" / "summer" / "beach" / "a.png", plain(90))
    data = open_data(home, dir=tmp_path / "photos", side=8)
    assert data.labels[data.images[:, 0, 0, 0] == 90].tolist() == [1]
    assert data.classes == ("cat", "dog", "emu")


def test_hidden_files_and_text_beside_class_folders_are_ignored(home, tmp_path):
    write_class_folder(tmp_path / "photos", each=4)
    for name in (
        ".DS_Store",
        "cat/.DS_Store",
        "cat/Thumbs.db",
        "dog/desktop.ini",
        "cat/._000.png",
        "cat/.ipynb_checkpoints/000-checkpoint.png",
        ".thumbnails/000.png",
        ".hidden.png",
        "README.txt",
    ):
        write(tmp_path / "photos" / name, b"not an image")
    data = open_data(home, dir=tmp_path / "photos", side=8)
    assert values(data) == list(range(12))
    assert data.classes == ("cat", "dog", "emu")


def test_missing_folder_is_an_error(home, tmp_path):
    assert "add --data-dir FOLDER" in error_message(home)
    assert f"there is no folder {tmp_path / 'none'}" in error_message(home, dir=tmp_path / "none")


@pytest.mark.parametrize("folders", [[""], ["cat", "dog"], ["train", "test"], [".hidden"]])
def test_folder_without_images_is_an_error(folders, home, tmp_path):
    for name in folders:
        (tmp_path / "photos" / name).mkdir(parents=True)
    assert f"no images in {tmp_path / 'photos'}" in error_message(home, dir=tmp_path / "photos")


def test_images_beside_class_folders_are_an_error(home, tmp_path):
    write_class_folder(tmp_path / "photos", each=2)
    write(tmp_path / "photos" / "loose.PNG", plain(1))
    assert "(such as loose.PNG) beside folders" in error_message(home, dir=tmp_path / "photos")


def test_broken_link_is_an_unreadable_image(home, tmp_path):
    write_class_folder(tmp_path / "photos", each=10)
    (tmp_path / "photos" / "cat" / "gone.png").symlink_to(tmp_path / "gone.png")
    assert "gone.png" in error_message(home, dir=tmp_path / "photos", side=8)
    assert len(open_data(home, dir=tmp_path / "photos", side=8, on_bad_image="skip").images) == 30


def test_file_name_that_is_not_utf_8_is_read(home, tmp_path):
    labels = write_class_folder(tmp_path / "photos", each=4)
    folder = os.fsencode(tmp_path / "photos" / "cat")
    try:
        os.rename(os.path.join(folder, b"000.png"), os.path.join(folder, b"caf\xe9.png"))
    except OSError:
        pytest.skip("this file system accepts only UTF-8 names")
    assert values(open_data(home, dir=tmp_path / "photos", side=8)) == sorted(labels)


# --- built-in data sets, and sides ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", ["shapes", "digits"])
def test_folder_for_a_built_in_data_set_is_an_error(dataset, home, tmp_path):
    message = error_message(home, dataset, dir=tmp_path)
    assert message.startswith(f"the data set '{dataset}' is built in and reads no folder")
    assert "add --dataset folder" in message
    gone = tmp_path / "gone"
    assert error_message(home, dataset, dir=gone).endswith(
        f": leave out --data-dir, which names {gone}: it doesn't exist"
    )


def test_digits_are_split_at_random_into_train_and_test(home):
    contents = source_of(DataConfig(dataset="digits"), home).read()
    sizes = {name: len(split.labels) for name, split in contents.splits.items()}
    assert sizes == {"train": 1438, "test": 359}
    for images, labels, _ in contents.splits.values():
        assert images.shape == (len(labels), 3, 8, 8)
        counts = np.bincount(labels, minlength=10)
        assert counts.min() > 0.7 * counts.mean()
    assert set(np.unique(contents.splits["train"].images)) == {round(v * 255 / 16) for v in range(17)}


def test_image_side_is_the_median_of_the_shorter_sides(home, tmp_path):
    for i, (height, width) in enumerate([(30, 90), (50, 40), (60, 60)]):
        write(tmp_path / "photos" / f"{i}.png", encode(np.zeros((height, width, 3), np.uint8)))
    write(tmp_path / "photos" / "broken.png", b"x")
    assert image_side(source_of(DataConfig(dataset="folder", dir=tmp_path / "photos"), home).read()) == 40
    assert image_side(source_of(DataConfig(dataset="digits"), home).read()) == 8
