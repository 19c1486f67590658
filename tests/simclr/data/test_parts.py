"""Parts are cut as they always were. Copies and groups stay together, and what can't be kept apart is reported."""

import numpy as np
import pytest

from simclr.data.images import Files
from simclr.data.parts import describe_copies, divide, group_numbers, joined, told_by_labels
from simclr.data.source import Contents, Split
from simclr.errors import UserError
from simclr.evaluate.subject import hash_rows
from tests.simclr.data.helpers import (
    encode,
    error_message,
    open_and_listen,
    open_data,
    plain,
    values,
    write,
    write_class_folder,
)


def notes(home, **settings):
    """What opening a folder tells the user."""
    return open_and_listen(home, side=8, **settings)[1]


def disjoint(sets):
    return sum(map(len, sets)) == len(set().union(*sets))


# Hashes of the rows of each part of the digits, as the first version cut them.
BEFORE = [
    ({}, ["e7eb2fd6c2ed00de", "e7eb2fd6c2ed00de", "041490486dae1721", "8baad8542cbba573"]),
    ({"split_seed": 1, "limit": 100}, ["310a94a2d1d77eda", "310a94a2d1d77eda", "4e493ba82c68bc7b", "8baad8542cbba573"]),
    ({"val_fraction": 0.3}, ["e45d43323693c798", "e45d43323693c798", "a1bb436ae3ffdac3", "8baad8542cbba573"]),
]


@pytest.mark.parametrize(("settings", "hashes"), BEFORE)
def test_parts_stay_as_they_were(settings, hashes, home):
    data = open_data(home, "digits", **settings)
    assert [hash_rows(data.parts[part]) for part in ("pretrain", "train", "val", "test")] == hashes


def labels_of(sizes):
    return np.repeat(np.arange(len(sizes)), sizes)


@pytest.mark.parametrize("fraction", [0, 0.1, 0.37])
@pytest.mark.parametrize("seed", [0, 3])
def test_images_without_copies_are_divided_as_if_nobody_had_looked(fraction, seed):
    labels = labels_of([50, 7, 23])
    rows = {"train": np.arange(80)}
    alone = divide(rows, labels, fraction=fraction, seed=seed)
    among = divide(rows, labels, fraction=fraction, seed=seed, units=np.arange(80)[::-1] * 7)
    assert all(np.array_equal(alone[part], among[part]) for part in alone)
    assert len(alone["val"]) == len(alone["test"]) == round(fraction * 80)


@pytest.mark.parametrize("seed", range(5))
def test_units_stay_together_and_parts_keep_their_size(seed):
    draw = np.random.default_rng(seed)
    labels, units = labels_of([200, 100]), draw.integers(0, 40, 300)
    parts = divide({"train": np.arange(300)}, labels, fraction=0.2, seed=seed, units=units)
    owned = [set(units[parts[part]]) for part in ("train", "val", "test")]
    assert disjoint(owned)
    assert sorted(np.concatenate([parts[part] for part in ("train", "val", "test")])) == list(range(300))
    assert all(45 <= len(parts[part]) <= 60 for part in ("val", "test"))


def test_the_smallest_unit_is_held_out_if_none_fits():
    units = np.repeat([0, 1, 2, 3], [30, 10, 20, 40])
    parts = divide({"train": np.arange(100)}, np.arange(100) % 2, fraction=0.05, seed=0, units=units)
    assert set(units[parts["val"]]) == {1}
    assert set(units[parts["test"]]) == {2}


def test_units_are_joined_by_either_number():
    units = joined(np.array([0, 0, 1, 2, 3, 4]), np.array([5, 6, 6, 7, 8, 8]))
    assert [np.flatnonzero(units == unit).tolist() for unit in np.unique(units)] == [[0, 1, 2], [3], [4, 5]]


def test_everything_is_for_training_without_a_fraction(home, tmp_path):
    write_class_folder(tmp_path / "photos" / "train")
    write_class_folder(tmp_path / "photos" / "test", each=2, first=100)
    data = open_data(home, dir=tmp_path / "photos", side=8, val_fraction=0)
    assert {part: len(rows) for part, rows in data.parts.items()} == {"pretrain": 30, "train": 30, "val": 0, "test": 6}
    assert not data.has_labels  # so that nothing is measured on validation


# --- copies -----------------------------------------------------------------------------------------------------------


def test_copies_stay_in_one_part_and_change_the_identity(home, tmp_path):
    labels = write_class_folder(tmp_path / "photos", each=10)
    alone = open_data(home, dir=tmp_path / "photos", side=8, val_fraction=0.2)
    for value, label in labels.items():
        write(tmp_path / "photos" / ("cat", "dog", "emu")[label] / f"copy-{value}.png", plain(value))
    digests, identities = set(), set()
    for seed in range(3):
        data = open_data(home, dir=tmp_path / "photos", side=8, val_fraction=0.2, split_seed=seed)
        owned = [set(values(data, part)) for part in ("train", "val", "test")]
        assert disjoint(owned)
        assert [len(data.parts[part]) for part in ("train", "val", "test")] == [36, 12, 12]
        digests.add(data.digest)
        identities.add(data.identity)
    assert alone.identity == alone.digest
    assert len(digests) == 1  # it is that of images and labels
    assert len(identities) == 3
    assert not digests & identities  # earlier versions recorded the digest, and let copies of test images into train


def test_copies_that_change_no_part_do_not_change_the_identity(home, tmp_path):
    write_class_folder(tmp_path / "photos" / "train", each=4)
    write_class_folder(tmp_path / "photos" / "val", each=1)
    write_class_folder(tmp_path / "photos" / "test", each=2)
    data = open_data(home, dir=tmp_path / "photos", side=8)
    assert data.identity == data.digest
    texts = notes(home, dir=tmp_path / "photos")
    assert "warning: 6 of 6 test images also occur in train or val" in texts
    assert "warning: 3 of 3 val images also occur in train" in texts


def test_copies_are_counted():
    hashes = np.array([1, 2, 3, 4, 5, 1, 2, 6, 3], np.uint64)
    labels = np.array([0, 0, 1, 1, -1, 0, 1, 1, -1])
    parts = {"pretrain": [0, 1, 2, 4], "train": [0, 1, 2], "val": [3, 8], "test": [5, 6, 7]}
    parts = {part: np.array(rows) for part, rows in parts.items()}
    assert describe_copies(hashes, labels, parts) == [
        "2 of 3 test images also occur in train or val",
        "1 of 2 val images also occur in train",
        "1 image occurs in more than one class",
    ]
    parts["test"] = np.array([7])
    assert describe_copies(np.arange(9).astype(np.uint64), labels, parts) == []


def test_copies_of_held_out_images_that_have_no_labels_are_counted(home, tmp_path):
    for i in range(20):
        write(tmp_path / "photos" / f"{i:02}.png", plain(i))
        write(tmp_path / "photos" / f"copy{i:02}.png", plain(i))
    rows = [(f"{i:02}.png", "ab"[i % 2]) for i in range(20)] + [(f"copy{i:02}.png", "") for i in range(20)]
    write_table(tmp_path / "photos", "file,label", rows)
    texts = notes(home, dir=tmp_path / "photos")
    assert "warning: 4 images without labels are left out, because copies of them are held out" in texts


def test_a_class_that_copies_keep_out_of_a_part_is_reported(home, tmp_path):
    write_class_folder(tmp_path / "photos", classes=("ship",), each=20)
    for i in range(20):
        write(tmp_path / "photos" / "empty" / f"{i}.png", plain(200))
    texts = [text for text in notes(home, dir=tmp_path / "photos", val_fraction=0.2) if text.startswith("warning: no")]
    why = "because its images are in one group or copies of each other, and so stay in one part"
    assert texts == [f"warning: no {part} image is of class 'empty', {why}" for part in ("val", "test")]


def test_classes_without_training_images_are_counted(home, tmp_path):
    for i in range(30):  # a folder of its own for each image
        write(tmp_path / "photos" / f"{i:02}" / "0.png", plain(8 * i))
    data = open_data(home, dir=tmp_path / "photos")
    lost = np.setdiff1d(
        data.labels[np.concatenate([data.parts["val"], data.parts["test"]])], data.labels[data.parts["train"]]
    )
    assert len(lost) > 1
    (text,) = [text for text in notes(home, dir=tmp_path / "photos") if "no training images" in text]
    assert (
        f"warning: {len(lost)} classes have validation or test images but no training images, such as '{lost[0]:02}'"
        in text
    )
    write_class_folder(tmp_path / "more", each=20)
    assert not [text for text in notes(home, dir=tmp_path / "more") if "no training images" in text]


# --- groups -----------------------------------------------------------------------------------------------------------


def contents(*names, **columns):
    return Contents((), {"train": Split(Files(names, lambda _: b""), np.zeros(len(names)), columns)})


def test_groups_are_found_in_names():
    names = ("cat/p1_a.png", "cat/p2_a.png", "dog/p1_b.png")
    assert group_numbers(contents(*names), r"(p\d+)_").tolist() == [0, 1, 0]
    assert group_numbers(contents(*names), r"p\d+").tolist() == [0, 1, 0]
    assert group_numbers(contents(*names), r"^[^/]+").tolist() == [0, 0, 1]
    assert group_numbers(contents(*names, patient=["x", "y", "y"]), "patient").tolist() == [0, 1, 1]
    with pytest.raises(UserError, match=r"finds no group in 1 of 3 names, such as 'dog/p1_b.png'"):
        group_numbers(contents(*names), "a.png")


def test_groups_of_a_folder_stay_in_one_part(home, tmp_path):
    for value in range(60):
        patient = value // 4
        write(tmp_path / "scans" / ("ill", "well")[value % 2] / f"p{patient:02}-{value}.png", plain(value))
    write(tmp_path / "scans" / "ill" / "p00-broken.png", b"broken")
    data = open_data(home, dir=tmp_path / "scans", side=8, group=r"p(\d+)-", val_fraction=0.2, on_bad_image="skip")
    owned = [{value // 4 for value in values(data, part)} for part in ("train", "val", "test")]
    assert disjoint(owned)
    assert [len(patients) for patients in owned] == [9, 3, 3]
    assert len({*zip(data.units, [int(image.mean()) // 4 for image in data.images], strict=True)}) == 15
    assert "data.group needs images in files" in error_message(home, "digits", group="x")
    message = error_message(home, dir=tmp_path / "scans", side=8, group="ill|well", on_bad_image="skip")
    assert "can't be divided into train, val, test" in message
    assert "form only 2 groups" in message
    message = error_message(home, dir=tmp_path / "scans", side=8, group="p", on_bad_image="skip")
    assert "form only 1 group:" in message


@pytest.mark.parametrize("limit", [None, 10])
def test_groups_that_take_all_images_of_a_class_are_an_error(limit, home, tmp_path):
    write_class_folder(tmp_path / "photos", classes=("cat", "dog", "emu", "fox"))
    message = error_message(home, dir=tmp_path / "photos", side=8, group=r"^\w+", limit=limit)
    assert "leaves no training images of some classes" in message


def test_groups_in_several_splits_are_reported(home, tmp_path):
    for value in range(20):
        part = ("train", "test")[value % 2]
        write(tmp_path / "scans" / part / "ab"[value // 2 % 2] / f"p{value // 3}-{value}.png", plain(value))
    texts = notes(home, dir=tmp_path / "scans", group=r"p\d", val_fraction=0)
    trained, tested = ({value // 3 for value in range(first, 20, 2)} for first in (0, 1))
    shared = sum(value // 3 in trained & tested for value in range(1, 20, 2))
    assert f"warning: {shared} of 10 test images belong to groups that train or val has too" in texts


def write_table(root, header, rows):
    write(root / "labels.csv", "\n".join([header, *(",".join(map(str, row)) for row in rows)]).encode())


def test_images_without_a_group_are_an_error(home, tmp_path):
    for value in range(12):
        write(tmp_path / "scans" / f"{value:02}.png", plain(value))
    write_table(
        tmp_path / "scans", "file,label,patient", [(f"{i:02}.png", "ab"[i % 2], f"p{i}" * (i < 8)) for i in range(12)]
    )
    message = error_message(home, dir=tmp_path / "scans", side=8, group="patient")
    assert "has no value for 4 of 12 images, such as '08.png'" in message


def test_groups_are_found_once(home, tmp_path, monkeypatch):
    write_class_folder(tmp_path / "photos")
    settings = {"dir": tmp_path / "photos", "side": 8, "val_fraction": 0.2}
    first = open_data(home, group=r"(\d)\.", **settings)
    monkeypatch.setattr("simclr.data.dataset.group_numbers", None)
    assert open_data(home, group=r"(\d)\.", **settings).parts.keys() == first.parts.keys()
    with pytest.raises(TypeError):
        open_data(home, group=r"0(\d)", **settings)


def test_images_without_labels_that_belong_to_held_out_groups_are_counted(home, tmp_path):
    rows = [(f"{i:02}.png", "ab"[i % 2] if i % 4 < 2 else "", f"p{i // 4}") for i in range(40)]
    for i in range(40):
        write(tmp_path / "scans" / f"{i:02}.png", plain(i))
    write_table(tmp_path / "scans", "file,label,patient", rows)
    texts = notes(home, dir=tmp_path / "scans", group="patient", val_fraction=0.2)
    assert any("warning: 8 images without labels are left out" in text for text in texts)
    assert texts[-1].endswith("12 train, 4 validation, 4 test, 12 without labels")


# --- what identifies the parts ----------------------------------------------------------------------------------------


def identities(home, root, header, *tables, **settings):
    """The digests and the identities of images whose table is written anew."""
    opened = []
    for rows in tables:
        write_table(root, header, rows)
        opened.append(open_data(home, dir=root, side=8, **settings))
    return {data.digest for data in opened}, {data.identity for data in opened}


def test_a_table_that_divides_the_images_otherwise_changes_the_identity(home, tmp_path):
    root = tmp_path / "photos"
    for value in range(40):
        write(root / f"{value:02}.png", plain(value))
    names = [(f"{i:02}.png", "ab"[i % 2]) for i in range(40)]
    splits = ([(*names[i], "train" if i < end else "test") for i in range(40)] for end in (30, 20))
    digests, found = identities(home, root, "file,label,split", *splits)
    assert (len(digests), len(found)) == (1, 2)
    alone, own = identities(home, root, "file,label", names)
    assert alone == digests
    assert not own & found
    patients = ([(*names[i], f"p{i * factor % 40 // 4}") for i in range(40)] for factor in (1, 7))
    digests, found = identities(home, root, "file,label,patient", *patients, group="patient")
    assert (len(digests), len(found)) == (1, 2)


def test_the_identity_of_ordinary_folders_is_their_digest(home, tmp_path):
    write_class_folder(tmp_path / "photos", each=8)
    write_class_folder(tmp_path / "split" / "train", each=8)
    write_class_folder(tmp_path / "split" / "test", classes=("emu",), each=3, first=100)
    for name in ("photos", "split"):
        for settings in ({}, {"limit": 6, "split_seed": 2}, {"unlabelled": name == "photos"}):
            data = open_data(home, dir=tmp_path / name, side=8, **settings)
            assert data.identity == data.digest
    assert open_data(home, "digits", limit=100).division == ""


def test_labels_in_order_tell_where_splits_begin():
    labels = np.array([0, 0, 1, 1, -1, -1, 0, 1, 0, 1])
    ends = {"train": range(4), "unlabeled": range(4, 6), "val": range(6, 8), "test": range(8, 10)}
    splits = {split: np.array(rows) for split, rows in ends.items()}
    assert told_by_labels(splits, labels)
    assert not told_by_labels(splits | {"train": np.arange(3), "unlabeled": np.arange(3, 6)}, labels)
    assert not told_by_labels({"train": np.arange(4)}, np.array([0, 1, 0, 1]))


# --- images without a label in train ----------------------------------------------------------------------------------


def test_only_labelled_images_are_held_out():
    labels = np.where(np.arange(200) % 5, -1, np.arange(200) % 2)  # 40 labelled ones
    parts = divide({"train": np.arange(200)}, labels, fraction=0.2, seed=0)
    assert {part: len(rows) for part, rows in parts.items()} == {"pretrain": 184, "train": 24, "val": 8, "test": 8}
    assert sorted(np.concatenate([parts[part] for part in ("pretrain", "val", "test")])) == list(range(200))
    units = np.arange(200) // 10
    parts = divide({"train": np.arange(200)}, labels, fraction=0.2, seed=0, units=units)
    assert disjoint([set(units[parts[part]]) for part in ("pretrain", "val", "test")])
    alone = divide({"train": np.arange(200)}, np.full(200, -1), fraction=0.2, seed=0, units=units)
    assert len(alone["pretrain"]) == 200


# --- what is said -----------------------------------------------------------------------------------------------------


def test_what_was_understood_is_said_in_one_line(home, tmp_path):
    write_class_folder(tmp_path / "photos", classes=("2024", "2025"), each=40)
    texts = notes(home, dir=tmp_path / "photos")
    assert texts[1:] == ["80 images, 2 classes from folder names: 2024, 2025; 64 train, 8 validation, 8 test"]
    texts = notes(home, dir=tmp_path / "photos", unlabelled=True)
    assert texts == ["of 80 images, 80 are of one colour", "80 images, without labels"]


@pytest.mark.parametrize(("kind", "has_effect"), [(np.uint8, False), (np.uint16, True)])
def test_a_range_without_effect_is_reported(kind, has_effect, home, tmp_path):
    values = np.arange(640, dtype=kind).reshape(10, 8, 8)
    for i, image in enumerate(values):
        write(tmp_path / "files" / f"{i}.png", encode(image))
    np.save(tmp_path / "array.npy", values)
    for source in ("files", "files", "array.npy", "array.npy"):  # decoded, and then from the store
        texts = notes(home, dir=tmp_path / source, range=(0, 100))
        assert any("data.range changes nothing" in text for text in texts) != has_effect


def test_validation_images_can_be_tested_on(home, tmp_path):
    write_class_folder(tmp_path / "photos" / "train", each=10)
    write_class_folder(tmp_path / "photos" / "val", each=2, first=100)
    assert any("--set data.test_from=val" in text for text in notes(home, dir=tmp_path / "photos"))
    data = open_data(home, dir=tmp_path / "photos", side=8, test_from="val")
    assert values(data, "test") == list(range(100, 106))
    assert [len(data.parts[part]) for part in ("train", "val", "test")] == [27, 3, 6]
    write_class_folder(tmp_path / "photos" / "test", each=2, first=200)
    assert "these have train, val, test" in error_message(home, dir=tmp_path / "photos", side=8, test_from="val")


@pytest.mark.parametrize(("bad", "choice", "opens"), [
    (3, "skip", True), (4, "skip", False), (4, 0.5, True), (4, 0.2, False), (1, "error", False),
])  # fmt: skip
def test_skipped_files_are_reported_up_to_a_share(bad, choice, opens, home, tmp_path):
    write_class_folder(tmp_path / "photos", each=3)
    for i in range(bad):
        write(tmp_path / "photos" / "cat" / f"broken-{i}.png", b"broken")
    if opens:
        (text,) = (text for text in notes(home, dir=tmp_path / "photos", on_bad_image=choice) if "skipped" in text)
        assert text.startswith(f"{bad} of {9 + bad} files can't be read as images: cat/broken-0.png (")
    else:
        message = error_message(home, dir=tmp_path / "photos", side=8, on_bad_image=choice)
        assert f"{bad} of {9 + bad} files can't be read as images: cat/broken-0.png" in message
        assert ("allow more with --on-bad-image 0.31" in message) == (choice != "error")


def test_class_names_can_be_printed(home, tmp_path):
    for name in ("a", "caf\udce9"):
        try:
            write_class_folder(tmp_path / "photos", classes=(name,), each=5, first=len(name))
        except OSError:
            pytest.skip("this file system accepts only UTF-8 names")
    data = open_data(home, dir=tmp_path / "photos", side=8)
    assert data.classes == ("a", r"caf\udce9")
    assert "".join(notes(home, dir=tmp_path / "photos")).encode()
