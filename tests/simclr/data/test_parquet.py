"""Parquet files as the Hugging Face hub has them: encoded images, names of classes, splits by the names of files."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from simclr.data import parquet
from tests.simclr.data.helpers import error_message, open_and_listen, open_data, plain, values

FEATURES = {
    "image": {"_type": "Image"},
    "label": {"names": ["cat", "dog"], "_type": "ClassLabel"},
}


def rows(numbers, **columns):
    numbers = list(numbers)
    image = [{"bytes": plain(i), "path": f"{i}.png"} for i in numbers]
    return {"image": image, "label": [i % 2 for i in numbers]} | {
        name: list(map(of, numbers)) for name, of in columns.items()
    }


def save(path, columns, features=FEATURES, **options):
    table = pyarrow.table(columns)
    if features:
        noted = json.dumps({"info": {"features": features}}).encode()
        table = table.replace_schema_metadata({b"huggingface": noted})
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path, **options)
    return path


@pytest.mark.parametrize(
    "names", [("data/train-0000{}-of-00002", "data/test-00000-of-00001"), ("default/train/000{}", "default/test/0000")]
)
def test_the_layouts_of_the_hub_are_read(names, home, tmp_path):
    train, test = names
    for i in range(2):
        save(tmp_path / "hub" / f"{train.format(i)}.parquet", rows(range(10 * i, 10 * i + 10)), row_group_size=3)
    save(tmp_path / "hub" / f"{test}.parquet", rows(range(100, 106)))
    (tmp_path / "hub" / "README.md").write_text("about")
    (tmp_path / "hub" / "logo.png").write_bytes(plain(255))
    data = open_data(home, dir=tmp_path / "hub", side=8)
    assert data.classes == ("cat", "dog")
    assert values(data) == [*range(20), *range(100, 106)]
    assert values(data, "test") == list(range(100, 106))
    assert data.labels.tolist() == [i % 2 for i in data.images[:, 0, 0, 0].tolist()]


def test_a_column_of_splits_is_used_in_any_language_or_named(home, tmp_path):
    for name, other in {"uji": "latih", "b": "a"}.items():
        columns = rows(range(12), split=lambda i, names=(other, name): names[i % 4 == 0])
        path = save(tmp_path / f"{name}.parquet", columns)
        data, notes = open_and_listen(home, dir=path, side=8)
        assert (values(data, "test") == [0, 4, 8]) == (name == "uji")
        unused = f"warning: column 'split' of {name}.parquet isn't used: 'a', 'b' are not splits"
        assert (unused in notes) == (name == "b")


def test_a_file_of_bytes_and_texts_is_read(home, tmp_path):
    columns = {"img": [plain(i) for i in range(8)], "category": ["b", "a"] * 4, "note": [""] * 8}
    path = save(tmp_path / "mine.parquet", columns, features=None)
    data = open_data(home, dir=path, side=8)
    assert data.classes == ("a", "b")
    assert data.labels.tolist() == [1, 0] * 4


def test_splits_come_from_a_column_that_the_user_names(home, tmp_path):
    path = save(tmp_path / "all.parquet", rows(range(12), part=lambda i: "test" if i > 8 else "train"))
    data = open_data(home, dir=path, side=8, split_column="part")
    assert values(data, "test") == [9, 10, 11]
    assert "'0': expected the splits train" in error_message(home, dir=path, split_column="label")


@pytest.mark.parametrize("name", ["all", "train-00000-of-00001"])
def test_a_column_of_splits_is_recognised(name, home, tmp_path):
    path = save(tmp_path / f"{name}.parquet", rows(range(12), split=lambda i: "test" if i > 8 else "train"))
    assert values(open_data(home, dir=path, side=8), "test") == [9, 10, 11]
    path = save(tmp_path / f"{name}.parquet", rows(range(12), split=lambda i: "holdout" if i > 8 else "train"))
    assert "'holdout': expected the splits train" in error_message(home, dir=path, side=8)
    path = save(tmp_path / f"{name}.parquet", rows(range(12), set=lambda i: "blue"))
    assert len(open_data(home, dir=path, side=8).parts["train"]) == 10


def test_the_names_of_several_splits_come_before_a_column(home, tmp_path):
    for split in ("train", "test"):
        save(tmp_path / "hub" / f"{split}.parquet", rows(range(8), split=lambda i: "val"))
    assert len(open_data(home, dir=tmp_path / "hub", side=8).parts["test"]) == 8


@pytest.mark.parametrize("kind", ["large_string", "string_view", "dictionary", "bool"])
def test_labels_of_any_plain_type_are_classes(kind, home, tmp_path):
    texts = [str(i % 2 == 1) for i in range(8)]
    types = {"large_string": pyarrow.large_string(), "string_view": pyarrow.string_view(), "bool": pyarrow.bool_()}
    if kind == "dictionary":
        labels = pyarrow.array(texts).dictionary_encode()
    else:
        labels = pyarrow.array([text == "True" for text in texts] if kind == "bool" else texts, types[kind])
    path = save(tmp_path / "a.parquet", {"image": [plain(i) for i in range(8)], "label": labels}, None)
    data = open_data(home, dir=path, side=8)
    assert data.classes == ("False", "True")
    assert data.labels.tolist() == [0, 1] * 4


def test_without_a_usual_name_the_columns_that_may_hold_labels_are_said(home, tmp_path):
    path = save(tmp_path / "a.parquet", {"image": [plain(i) for i in range(8)], "severity": ["a", "b"] * 4}, None)
    data, notes = open_and_listen(home, dir=path, side=8)
    assert data.classes == ()
    assert any("To use one of severity, add --set data.label_column=NAME" in text for text in notes)
    assert open_data(home, dir=path, side=8, label_column="severity").classes == ("a", "b")


def test_a_class_that_train_lacks_is_an_error_although_it_has_a_name(home, tmp_path):
    save(tmp_path / "hub" / "train.parquet", rows(range(8)) | {"label": [0] * 8})
    save(tmp_path / "hub" / "test.parquet", rows(range(8)))
    assert "the labels 'dog' are in test, but not in train" in error_message(home, dir=tmp_path / "hub", side=8)


def test_hidden_labels_are_none(home, tmp_path):
    save(tmp_path / "hub" / "train.parquet", rows(range(12)))
    save(tmp_path / "hub" / "test.parquet", rows(range(20, 24)) | {"label": [-1] * 4})
    data = open_data(home, dir=tmp_path / "hub", side=8)
    assert len(data.parts["test"]) == 0
    assert len(data.parts["pretrain"]) + len(data.parts["val"]) == 12


def test_unclear_columns_are_errors_whose_remedy_works(home, tmp_path):
    features = {"fine": FEATURES["label"], "coarse": {"names": ["pet"], "_type": "ClassLabel"}}
    columns = rows(range(8), fine=lambda i: i % 2, coarse=lambda i: 0)
    del columns["label"]
    path = save(tmp_path / "a.parquet", columns, features)
    message = error_message(home, dir=path)
    assert "several columns that may hold the labels: fine, coarse" in message
    assert "fine (int64)" in message
    assert open_data(home, dir=path, side=8, label_column="fine").classes == ("cat", "dog")
    assert open_data(home, dir=path, side=8, unlabelled=True).classes == ()
    masks = save(tmp_path / "b.parquet", {"left": columns["image"], "mask": columns["image"], "label": [0] * 8}, None)
    assert "several columns that may hold the images: left, mask" in error_message(home, dir=masks)
    assert len(open_data(home, dir=masks, side=8, image_column="left").images) == 8
    assert "no column 'label' of encoded images" in error_message(home, dir=masks, image_column="label")


WRONG = {
    "no images": ({"label": [0, 1]}, "has no column with the bytes of image files, but label"),
    "labels of another type": (rows(range(4)) | {"label": [0.0, 1.0, 0.0, 1.0]}, "'label' of"),
    "lists of labels": (rows(range(4)) | {"label": [[0], [1], [0], [1]]}, "which names no classes: expected texts"),
    "a label without a name": (rows(range(4)) | {"label": [0, 1, 2, 0]}, "label 2 of the train images has no name"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_tables_are_errors(name, home, tmp_path):
    columns, expected = WRONG[name]
    features = FEATURES if name == "a label without a name" else None
    assert expected in error_message(home, dir=save(tmp_path / "a.parquet", columns, features))


def test_files_that_do_not_belong_together_are_errors(home, tmp_path):
    for config in ("plain", "cropped"):
        save(tmp_path / "hub" / config / "train-00000-of-00001.parquet", rows(range(4)))
    assert "several data sets, in 'cropped', 'plain'" in error_message(home, dir=tmp_path / "hub")
    save(tmp_path / "two" / "train.parquet", rows(range(4)))
    save(tmp_path / "two" / "other.parquet", rows(range(4)))
    assert "names no split, as others do" in error_message(home, dir=tmp_path / "two")
    save(tmp_path / "two" / "other.parquet", rows(range(4), more=lambda i: i))
    assert "has other columns" in error_message(home, dir=tmp_path / "two")


def test_damaged_files_and_missing_bytes_are_errors(home, tmp_path):
    path = save(tmp_path / "a.parquet", rows(range(8)))
    path.write_bytes(path.read_bytes()[:-20])
    assert "can't read" in error_message(home, dir=path)
    columns = rows(range(8))
    columns["image"][3] = {"bytes": None, "path": "/elsewhere/3.png"}
    path = save(tmp_path / "b.parquet", columns)
    assert "b.parquet row 3 (only its path is in the file" in error_message(home, dir=path, side=8)
    assert values(open_data(home, dir=path, side=8, on_bad_image="skip")) == [0, 1, 2, 4, 5, 6, 7]


def test_a_row_group_that_would_not_fit_into_memory_is_refused(home, tmp_path, monkeypatch):
    path = save(tmp_path / "a.parquet", rows(range(8)))
    monkeypatch.setattr(parquet, "LARGEST_GROUP", 100)
    assert "write it again with pyarrow.parquet.write_table(table, FILE, row_group_size=1000)" in error_message(
        home, dir=path
    )
