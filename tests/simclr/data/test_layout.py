"""Classes and splits are understood from names alone. What can be understood in two ways is an error with a remedy."""

import pytest

from simclr.data.layout import understand
from simclr.errors import UserError


def names(text):
    """Names from words such as cat/{1,2}.jpg."""
    found = []
    for word in text.split():
        before, brace, rest = word.partition("{")
        inner, _, after = rest.partition("}")
        found += [before + each + after for each in inner.split(",")] if brace else [word]
    return found


def shown(layout):
    """The splits with the name of each class in place of its label."""
    classes = [*layout.classes, None]
    return {split: [(name, classes[label]) for name, label in labelled] for split, labelled in layout.splits.items()}


CAT_DOG = {"train": [("cat/1.jpg", "cat"), ("dog/1.jpg", "dog")]}
TWO_SPLITS = "{}/cat/1.jpg {}/dog/1.jpg {}/cat/2.jpg"


@pytest.mark.parametrize("noise", ["", "README.txt cat/boxes.xml dog/1.json notes.csv", ".git/1.jpg"])
@pytest.mark.parametrize("system", ["", "__MACOSX/cat/._1.jpg @eaDir/cat/1.jpg $RECYCLE.BIN/1.jpg cat/Thumbs.db"])
def test_files_that_cannot_be_images_change_nothing(noise, system):
    layout = understand(names(f"cat/1.jpg dog/1.jpg {noise} {system}"), "here")
    assert shown(layout) == CAT_DOG
    assert len(layout.notes) == ("README" in noise)


def test_ignored_files_are_counted_by_suffix():
    (note,) = understand(names("cat/1.jpg cat/{1,2,3}.TXT a.csv dog/1.jpg"), "here").notes
    assert note == "ignored 4 files that can't be images: 1 .csv, 3 .txt"


@pytest.mark.parametrize(("train", "other", "split"), [
    ("train", "val", "val"), ("Train", "Test", "test"), ("TRAIN", "VALID", "val"), ("training", "validation", "val"),
    ("Training", "Testing", "test"), ("train", "dev", "val"), ("train", "eval", "test"),
])  # fmt: skip
@pytest.mark.parametrize("above", ["", "data/", "data/set-1/"])
def test_splits_have_many_names(train, other, split, above):
    layout = understand(names(TWO_SPLITS.format(above + train, above + train, above + other)), "here")
    assert layout.classes == ("cat", "dog")
    first, second = f"{above}{train}", f"{above}{other}"
    expected = {"train": [(f"{first}/cat/1.jpg", 0), (f"{first}/dog/1.jpg", 1)], split: [(f"{second}/cat/2.jpg", 0)]}
    assert layout.splits == expected
    assert any(f"{other}/ is {split}" in note for note in layout.notes) == (other != split)


@pytest.mark.parametrize(("text", "holds"), [
    ("dataset/cat/1.jpg dataset/dog/1.jpg", "dataset/"),
    ("a/b/cat/1.jpg a/b/dog/1.jpg a/README", "a/b/"),
    ("train/train/cat/1.jpg train/train/dog/1.jpg", "train/train/"),
    ("Test/cat/1.jpg Test/dog/1.jpg", "Test/"),
])  # fmt: skip
def test_one_folder_around_everything_is_entered(text, holds):
    layout = understand(names(text), "here")
    assert layout.classes == ("cat", "dog")
    assert f"using the folder {holds}, which contains everything" in layout.notes


def test_one_folder_of_images_is_one_class():
    layout = understand(names("all/{1,2}.jpg"), "here")
    assert layout[:3] == (("all",), {"train": [("all/1.jpg", 0), ("all/2.jpg", 0)]}, ())


@pytest.mark.parametrize("annotations", ["masks", "Labels", "annotations", "ground_truth"])
def test_annotations_beside_images_are_not_classes(annotations):
    layout = understand(names(f"images/{{1,2}}.jpg {annotations}/{{1,2}}.png"), "here")
    assert shown(layout) == {"train": [("images/1.jpg", None), ("images/2.jpg", None)]}
    assert layout.notes == (f"ignored {annotations}/ (2 files), annotations of the images",)


def test_yolo_folders_are_images_without_labels():
    layout = understand(
        names("images/train/{1,2}.jpg images/val/3.jpg labels/train/{1,2}.txt labels/val/3.txt"), "here"
    )
    assert shown(layout) == {
        "train": [("images/train/1.jpg", None), ("images/train/2.jpg", None)],
        "val": [("images/val/3.jpg", None)],
    }
    layout = understand(names("train/images/1.jpg train/masks/1.png val/images/2.jpg val/masks/2.png"), "here")
    assert shown(layout) == {"train": [("train/images/1.jpg", None)], "val": [("val/images/2.jpg", None)]}


def test_splits_within_classes():
    layout = understand(names("cat/train/1.jpg cat/Test/2.jpg dog/train/3.jpg dog/Test/4.jpg"), "here")
    assert shown(layout) == {
        "train": [("cat/train/1.jpg", "cat"), ("dog/train/3.jpg", "dog")],
        "test": [("cat/Test/2.jpg", "cat"), ("dog/Test/4.jpg", "dog")],
    }
    assert layout.notes == ("understood splits within the classes: train, test",)


def test_unlabelled_images_have_a_split_of_their_own():
    layout = understand(names("train/cat/1.jpg train/dog/2.jpg unlabeled/a/3.jpg unlabeled/4.jpg"), "here")
    assert shown(layout)["unlabeled"] == [("unlabeled/4.jpg", None), ("unlabeled/a/3.jpg", None)]


def test_test_images_without_class_folders_are_left_out():
    layout = understand(names("train/cat/1.jpg train/dog/2.jpg test/{3,4}.jpg"), "here")
    assert list(layout.splits) == ["train"]
    assert "left out test/: its images have no label, because they are not in a class folder" in layout.notes


def test_unlabelled_means_splits_and_no_classes():
    layout = understand(names("2024/1.jpg 2025/2.jpg 0.jpg"), "here", unlabelled=True)
    assert layout[:3] == ((), {"train": [("0.jpg", -1), ("2024/1.jpg", -1), ("2025/2.jpg", -1)]}, ())
    layout = understand(names("train/good/1.jpg test/bad/2.jpg test/3.jpg"), "here", unlabelled=True)
    assert layout.classes == ()
    assert {split: len(labelled) for split, labelled in layout.splits.items()} == {"train": 1, "test": 2}


def test_order_is_by_class_then_by_name():
    layout = understand(names("a/2.jpg a-b/1.jpg a/1/x.jpg a/1.jpg"), "here")
    assert [name for name, _ in layout.splits["train"]] == ["a/1.jpg", "a/1/x.jpg", "a/2.jpg", "a-b/1.jpg"]


@pytest.mark.parametrize(("text", "message"), [
    ("a.txt b.csv", r"no images in here \(ignored 2 files that can't be images: 1 .csv, 1 .txt\): expected"),
    ("", "no images in here: expected image files"),
    ("cat/1.jpg dog/1.jpg loose.PNG", r"here has images \(such as loose.PNG\) beside folders.*--unlabelled"),
    ("cat/1.jpg test/cat/2.jpg", "folders cat beside 'test': expected only splits"),
    ("train/cat/1.jpg extra/cat/2.jpg", "folders extra beside 'train'"),
    ("val/cat/1.jpg test/cat/2.jpg", "the folders 'test', 'val' but no 'train'"),
    ("train/c/1.jpg val/c/2.jpg valid/c/3.jpg", "val and valid, which are names of one split"),
    ("train/cat/1.jpg train/dog/2.jpg val/Cat/3.jpg", "the class 'Cat' in val, but not in train, whose .*'cat', 'dog'"),
    ("train/cat/1.jpg train/dog/2.jpg test/images/3.jpg", "'images' in test.*--unlabelled"),
    ("train/1.jpg test/cat/2.jpg", "'cat' in test, but not in train, whose folders are not classes"),
    ("train/n01/images/1.JPEG train/n02/images/2.JPEG val/images/3.JPEG val/val_annotations.txt", "--dataset tiny-im"),
])  # fmt: skip
def test_what_is_unclear_is_an_error_with_a_remedy(text, message):
    with pytest.raises(UserError, match=message):
        understand(names(text), "here")


def test_names_in_errors_and_notes_can_be_printed():
    strange = "caf\udce9"
    with pytest.raises(UserError) as caught:
        understand(["train/a/1.jpg", f"val/{strange}/1.jpg"], "here")
    assert r"caf\udce9" in str(caught.value)
    assert r"caf\udce9" in understand([f"{strange}/a/1.jpg", f"{strange}/b/1.jpg"], "here").notes[0]
