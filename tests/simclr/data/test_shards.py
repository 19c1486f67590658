"""WebDataset's shards: samples, labels in any of their files, splits by the names of shards."""

import json

import pytest

from tests.simclr.data.helpers import error_message, open_data, plain, values, write
from tests.simclr.data.test_archives import make_plain_tar

LABELS = {
    "cls": lambda i: {"cls": str(i % 3).encode()},
    "json": lambda i: {"json": json.dumps({"caption": f"photo {i}", "label": i % 3}).encode()},
    "json number": lambda i: {"json": json.dumps(i % 3).encode()},
    "txt": lambda i: {"txt": f"{i % 3}\n".encode()},
    "cls before captions": lambda i: {"txt": f"photo {i}".encode(), "cls": b"%d" % (i % 3)},
}


def samples(numbers, extra, image="png"):
    """The members of a shard: an image of each number, with other files of the same key."""
    return {f"{i:04}.{kind}": content for i in numbers for kind, content in ({image: plain(i)} | extra(i)).items()}


@pytest.fixture
def shards(tmp_path):
    """Make shards with a kind of labels in a folder."""

    def make(extra, **options):
        for name, numbers in (("train-000", range(12)), ("train-001", range(12, 24)), ("val-000", range(24, 30))):
            write(tmp_path / "shards" / f"{name}.tar", make_plain_tar(samples(numbers, extra, **options)))
        return tmp_path / "shards"

    return make


@pytest.mark.parametrize("kind", LABELS)
def test_labels_are_found_in_the_files_of_a_sample(kind, shards, home):
    data = open_data(home, dir=shards(LABELS[kind]), side=8)
    assert data.classes == ("0", "1", "2")
    assert data.labels.tolist() == [i % 3 for i in data.images[:, 0, 0, 0].tolist()]
    assert values(data, "val") == list(range(24, 30))
    assert len(data.parts["pretrain"]) == len(data.parts["train"])


def test_a_pattern_and_a_single_shard_are_read(shards, home):
    folder = shards(LABELS["cls"])
    assert values(open_data(home, dir=folder / "train-{000..001}.tar", side=8)) == list(range(24))
    assert values(open_data(home, dir=folder / "train-000.tar", side=8)) == list(range(12))
    message = error_message(home, dir=folder / "train-{000..007}.tar")
    assert "train-002.tar, the first of 6 that" in message
    assert "names no file, since 10 is above 05" in error_message(home, dir=folder / "train-{10..05}.tar")
    assert "names 10,000,000 files" in error_message(home, dir=folder / "train-{0..9999999}.tar")


def test_captions_are_no_labels(shards, home):
    data = open_data(home, dir=shards(lambda i: {"txt": f"a photo of {i}".encode(), "json": b'{"width": 8}'}), side=8)
    assert data.classes == ()
    assert values(data) == list(range(30))


def test_a_key_of_the_json_is_chosen_by_the_user(shards, home):
    folder = shards(lambda i: {"json": json.dumps({"label": 0, "colour": "rg"[i % 2]}).encode()})
    assert open_data(home, dir=folder, side=8, label_column="colour").classes == ("g", "r")
    assert open_data(home, dir=folder, side=8, unlabelled=True).classes == ()
    assert "no sample has labels called 'size'" in error_message(home, dir=folder, label_column="size")


def test_of_several_images_the_user_chooses_one(shards, home):
    folder = shards(lambda i: LABELS["cls"](i) | {"seg.png": plain(200)})
    assert "several images (png, seg.png)" in error_message(home, dir=folder)
    assert values(open_data(home, dir=folder, side=8, image_column="png")) == list(range(30))


def test_keys_in_folders_and_of_several_shards_stay_apart(home, tmp_path):
    for shard in (0, 1):
        members = {
            f"{part}/0.{kind}": content
            for part in "ab"
            for kind, content in (("jpg", plain(10 * shard + "ab".index(part))), ("cls", part.encode()))
        }
        write(tmp_path / "shards" / f"{shard}.tar", make_plain_tar(members))
    data = open_data(home, dir=tmp_path / "shards", side=8)
    assert values(data) == [0, 1, 10, 11]
    assert data.labels.tolist() == [0, 1, 0, 1]
    assert data.classes == ("a", "b")


@pytest.mark.parametrize("kind", ["json", "txt"])
def test_an_archive_with_files_about_its_images_is_understood_by_its_folders(kind, home, tmp_path):
    about = {"json": b'{"shapes": []}', "txt": b"0 0.5 0.5 0.1 0.1"}[kind]
    members = {}
    for i in range(24):
        name = f"{'test' if i >= 18 else 'train'}/{'cat' if i % 2 else 'dog'}/{i}"
        members |= {f"{name}.png": plain(i), f"{name}.{kind}": about}
    data = open_data(home, dir=write(tmp_path / "photos.tar", make_plain_tar(members)), side=8)
    assert data.classes == ("cat", "dog")
    assert values(data, "test") == list(range(18, 24))


def test_settings_without_effect_and_wrong_json_are_errors(shards, home, tmp_path):
    folder = shards(LABELS["cls"])
    assert "data.split_column have no effect" in error_message(home, dir=folder, split_column="split")
    assert "is not JSON: nonsense" in error_message(home, dir=shards(lambda i: {"json": b"nonsense"}))
