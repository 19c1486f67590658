"""A table names files and their labels in any usual way. What is unclear is an error that names a setting."""

import unicodedata

import pytest

from simclr.data.tables import read_table
from tests.simclr.data.helpers import (
    error_message,
    make_zip,
    open_and_listen,
    open_data,
    plain,
    values,
    write,
    write_class_folder,
)

ROWS = [(f"{i:03}", "dark" if i % 2 else "bright", "test" if i >= 16 else "train") for i in range(20)]


@pytest.fixture
def photos(tmp_path):
    for i in range(20):
        write(tmp_path / "photos" / f"{i:03}.png", plain(i))
    return tmp_path / "photos"


def table(path, header, rows, separator=","):
    return write(path, "\n".join([header, *(separator.join(row) for row in rows)]).encode() + b"\n")


def labels_of(data):
    """The class and part of each image by its value."""
    parts = {row: part for part in ("train", "val", "test") for row in data.parts[part]}
    pixels = data.images[:, 0, 0, 0].tolist()
    return {value: (data.classes[data.labels[row]], parts[row]) for row, value in enumerate(pixels)}


@pytest.mark.parametrize(
    "form",
    [
        *("stem", "name", "folder", "absolute", "windows", "capitals", "spaces"),
        *("semicolons", "tabs", "bars", "byte order mark", "utf-16", "blank lines", "sep=,"),
    ],
)
def test_files_are_found_however_a_table_writes_them(form, photos, home, tmp_path):
    written = {
        "stem": lambda name: name,
        "folder": lambda name: f"photos/{name}.png",
        "absolute": lambda name: f"/home/me/{name}.png",
        "windows": lambda name: f"C:\\me\\photos\\{name}.png",
        "capitals": lambda name: f"{name}.PNG",
        "spaces": lambda name: f" {name}.png ",
    }.get(form, lambda name: f"{name}.png")
    separator = {"semicolons": ";", "tabs": "\t", "bars": "|"}.get(form, ",")
    before = {"byte order mark": "\ufeff", "blank lines": "\n \n", "sep=,": "sep=,\n"}.get(form, "")
    header = before + separator.join(["image", "label", "split"])
    rows = [(written(name), label, split) for name, label, split in ROWS]
    path = table(tmp_path / f"labels.{'tsv' if form == 'tabs' else 'csv'}", header, rows, separator)
    if form == "utf-16":
        path.write_text(path.read_text(), encoding="utf-16")
    data = open_data(home, dir=photos, labels=path, side=8)
    assert data.classes == ("bright", "dark")
    for value, (label, part) in labels_of(data).items():
        assert label == ROWS[value][1]
        assert (part == "test") == (ROWS[value][2] == "test")


def test_what_was_guessed_is_said(photos, home, tmp_path):
    path = table(tmp_path / "labels.csv", "number,name,class,set", [(str(i), *row) for i, row in enumerate(ROWS)])
    _, notes = open_and_listen(home, dir=photos, labels=path, side=8)
    expected = f"file names from column 'name'; labels from column 'class'; splits from column 'set' of {path}"
    assert f"{expected}; other columns: 'number'" in notes


def test_accents_are_found_in_either_form(home, tmp_path):
    for form, other in (("NFC", "NFD"), ("NFD", "NFC")):
        folder = tmp_path / form
        for i in range(8):
            write(folder / unicodedata.normalize(form, f"\u00e9{i}.png"), plain(i))
        rows = [(unicodedata.normalize(other, f"\u00e9{i}"), "ab"[i % 2]) for i in range(8)]
        table(folder / "labels.csv", "id,label", rows)
        assert open_data(home, dir=folder, side=8).classes == ("a", "b")


def test_names_that_differ_in_capitals_are_kept_apart(home, tmp_path):
    for i, name in enumerate(("a", "A", "b", "B")):
        write(tmp_path / "photos" / f"{name}.png", plain(i))
    table(tmp_path / "photos" / "labels.csv", "id,label", [("a", "1"), ("A", "2"), ("b", "1"), ("B", "2")])
    data = open_data(home, dir=tmp_path / "photos", side=8, val_fraction=0)
    assert dict(zip(data.images[:, 0, 0, 0].tolist(), data.labels.tolist(), strict=True)) == {0: 0, 1: 1, 2: 0, 3: 1}


def test_a_column_of_splits_that_says_something_else_is_reported(photos, home, tmp_path):
    rows = [(name, label, "01"[split == "test"]) for name, label, split in ROWS]
    path = table(tmp_path / "labels.csv", "id,label,split", rows)
    _, notes = open_and_listen(home, dir=photos, labels=path, side=8)
    assert "warning: column 'split' of labels.csv isn't used: '0', '1' are not splits" in notes


def test_splits_in_another_language_are_understood(photos, home, tmp_path):
    rows = [(name, label, "Prueba" if split == "test" else "entrenamiento") for name, label, split in ROWS]
    path = table(tmp_path / "labels.csv", "id,label,split", rows)
    assert values(open_data(home, dir=photos, labels=path, side=8), "test") == [16, 17, 18, 19]


def test_a_table_may_have_a_column_for_each_class(photos, home, tmp_path):
    classes = ("MEL", "NV", "BCC")
    marks = [["1.0" if i % 3 == kind else "0.0" for kind in range(3)] for i in range(20)]
    rows = [(f"{i:03}", f"{40 + i}", *own) for i, own in enumerate(marks)]
    path = table(tmp_path / "truth.csv", "image,age,MEL,NV,BCC", rows)
    data, notes = open_and_listen(home, dir=photos, labels=path, side=8)
    assert data.classes == ("BCC", "MEL", "NV")
    assert {value: label for value, (label, _) in labels_of(data).items()} == {i: classes[i % 3] for i in range(20)}
    columns = "labels from a column for each class: 'MEL', 'NV', 'BCC'"
    assert f"file names from column 'image'; {columns} of {path}; other columns: 'age'" in notes
    assert open_data(home, dir=photos, labels=path, side=8, label_column="NV").classes == ("0.0", "1.0")
    rows[0] = ("000", "40", "1.0", "1.0", "0.0")
    path = table(tmp_path / "several.csv", "image,age,MEL,NV,BCC", rows)
    assert "may have the labels in age or MEL or NV or BCC" in error_message(home, dir=photos, labels=path)


@pytest.mark.parametrize(
    ("header", "row", "named"),
    [
        ("file,species,male,female", lambda i: (("fox", "owl")[i % 3 > 0], i % 2, 1 - i % 2), "species"),
        ("file,dx,train_fold,test_fold", lambda i: ("ab"[i % 3 > 0], i % 2, 1 - i % 2), "dx"),
        ("file,train,test", lambda i: (i % 2, 1 - i % 2), "train or test"),
    ],
)
def test_columns_of_ones_and_zeros_about_something_else_are_not_taken_for_classes(
    header, row, named, photos, home, tmp_path
):
    path = table(tmp_path / "labels.csv", header, [(f"{i:03}", *map(str, row(i))) for i in range(20)])
    message = error_message(home, dir=photos, labels=path)
    assert f"may have the labels in {named}" in message
    assert "--set data.label_column=NAME" in message


def test_a_column_without_a_name_numbers_the_rows(photos, home, tmp_path):
    path = table(tmp_path / "labels.csv", ",file,species", [(str(i), *row[:2]) for i, row in enumerate(ROWS)])
    assert open_data(home, dir=photos, labels=path, side=8).classes == ("bright", "dark")


def test_a_lone_column_of_groups_is_not_taken_for_labels_in_silence(photos, home, tmp_path):
    path = table(tmp_path / "whales.csv", "file,individual", [(name, f"w{i % 4}") for i, (name, *_) in enumerate(ROWS)])
    data, notes = open_and_listen(home, dir=photos, labels=path, side=8)
    assert data.classes == ()
    (note,) = (note for note in notes if "column 'individual' is taken as groups" in note)
    assert note.endswith("add --set data.label_column=individual")
    assert len(open_data(home, dir=photos, labels=path, side=8, label_column="individual").classes) == 4


@pytest.mark.parametrize(("column", "settings"), [("patient", {"group": "patient"}), ("split", {})])
def test_labels_come_from_folders_if_the_table_has_none(column, settings, home, tmp_path):
    write_class_folder(tmp_path / "photos", ("cat", "dog"))
    rows = [(f"{name}/{i:03}.png", "test" if i > 7 else "train") for name in ("cat", "dog") for i in range(10)]
    if column == "patient":
        rows = [(name, f"p{i // 2}") for i, (name, _) in enumerate(rows)]
    path = table(tmp_path / "table.csv", f"file,{column}", rows)
    data = open_data(home, dir=tmp_path / "photos", labels=path, side=8, **settings)
    plainly = open_data(home, dir=tmp_path / "photos", side=8)
    assert data.classes == ("cat", "dog")
    if column == "split":
        assert values(data, "test") == [8, 9, 18, 19]
    else:
        assert data.digest == plainly.digest
    assert data.identity != plainly.identity
    assert open_data(home, dir=tmp_path / "photos", labels=path, side=8, unlabelled=True).classes == ()


def test_tables_beside_splits_are_named(home, tmp_path):
    for name, _, split in ROWS:
        write(tmp_path / "photos" / split / f"{name}.png", plain(int(name)))
    path = table(tmp_path / "photos" / "train.csv", "id,label", [row[:2] for row in ROWS if row[2] == "train"])
    table(tmp_path / "photos" / "sample.csv", "id,label", [("016", "x")])
    data, notes = open_and_listen(home, dir=tmp_path / "photos", side=8)
    assert data.classes == ()
    assert f"labels are not taken from sample.csv, train.csv: to use a table, add for example --labels {path}" in notes
    assert open_data(home, dir=tmp_path / "photos", labels=path, side=8).classes == ("bright", "dark")


@pytest.mark.parametrize(
    ("inner", "beside"), [("all/day{}", "labels.csv"), ("all/day{}", "all/labels.csv"), ("all/day1", "all/labels.csv")]
)
def test_a_table_beside_folders_that_are_taken_for_classes_is_named(inner, beside, home, tmp_path):
    for i, (name, *_) in enumerate(ROWS):
        write(tmp_path / "tt" / inner.format(i % 2) / f"{name}.png", plain(i))
    path = table(tmp_path / "tt" / beside, "id,label", [row[:2] for row in ROWS])
    table(tmp_path / "tt" / inner.format(1) / "exif.csv", "id,iso", [("000", "100")])
    data, notes = open_and_listen(home, dir=tmp_path / "tt", side=8)
    assert all(name.startswith("day") for name in data.classes)
    (note,) = (note for note in notes if "labels are not taken from" in note)
    assert note.startswith(f"labels are not taken from {beside}, {inner.format(1)}/exif.csv: ")
    assert note.endswith(f"--labels {path}")
    assert open_data(home, dir=tmp_path / "tt", labels=path, side=8).classes == ("bright", "dark")


def test_the_only_table_in_a_folder_of_images_is_used(photos, home):
    table(photos / "labels.csv", "id,label,split", ROWS)
    assert open_data(home, dir=photos, side=8).classes == ("bright", "dark")
    assert open_data(home, dir=photos, side=8, unlabelled=True).classes == ()
    assert open_data(home, dir=photos / "labels.csv", side=8).classes == ("bright", "dark")


def test_a_table_about_something_else_is_no_table_of_labels(photos, home):
    table(photos / "prices.csv", "item,price", [("apple", "1"), ("pear", "2")])
    assert open_data(home, dir=photos, side=8).classes == ()


def test_a_table_without_usual_names_is_used_only_if_a_column_is_named(photos, home):
    table(photos / "exif.csv", "SourceFile,ISO", [(f"{i:03}.png", str(100 * (1 + i % 3))) for i in range(20)])
    data, notes = open_and_listen(home, dir=photos, side=8)
    assert data.classes == ()
    assert any("exif.csv is not used" in text for text in notes)
    assert open_data(home, dir=photos, side=8, label_column="ISO").classes == ("100", "200", "300")


@pytest.mark.parametrize(("content", "reason"), [
    (b"item,label\napple,1\n", "no column names most of the images"),
    (b"id,label\n000,a, big\n", "has rows with more cells than its header"),
])  # fmt: skip
def test_it_is_said_why_a_lone_table_is_not_used(content, reason, photos, home):
    write(photos / "prices.csv", content)
    data, notes = open_and_listen(home, dir=photos, side=8)
    assert data.classes == ()
    assert any("prices.csv is not used, because " in text and reason in text for text in notes)


def test_a_table_labels_the_images_of_an_archive(photos, home, tmp_path):
    archive = write(tmp_path / "photos.zip", make_zip({f"in/{i:03}.png": plain(i) for i in range(20)}))
    path = table(tmp_path / "labels.csv", "id,label,split", ROWS)
    inside = open_data(home, dir=archive, labels=path, side=8)
    assert inside.digest == open_data(home, dir=photos, labels=path, side=8).digest


def test_a_table_may_leave_out_the_folder_around_everything(home, tmp_path):
    members = {f"photos/{label}/{name}.png": plain(int(name)) for name, label, _ in ROWS}
    archive = write(tmp_path / "photos.zip", make_zip(members))
    path = table(tmp_path / "labels.csv", "id,label", [(f"{label}/{name}.png", label) for name, label, _ in ROWS])
    assert values(open_data(home, dir=archive, labels=path, side=8)) == list(range(20))


def test_splits_come_from_folders_if_no_column_has_them(home, tmp_path):
    for name, *_, split in ROWS:
        write(tmp_path / "photos" / split / f"{name}.png", plain(int(name)))
    path = table(tmp_path / "labels.csv", "id,label", [row[:2] for row in ROWS])
    assert values(open_data(home, dir=tmp_path / "photos", labels=path, side=8), "test") == [16, 17, 18, 19]


def test_an_empty_label_is_none(photos, home, tmp_path):
    path = table(
        tmp_path / "labels.csv", "id,label", [(name, "" if name == "003" else label) for name, label, _ in ROWS]
    )
    data = open_data(home, dir=photos, labels=path, side=8)
    assert data.labels[data.images[:, 0, 0, 0] == 3].tolist() == [-1]
    assert 3 in values(data, "pretrain")


@pytest.mark.parametrize("classes", [("None", "Mild", "Severe"), ("-1", "1"), ("nan", "1", "2")])
def test_every_text_in_a_table_is_a_class(classes, photos, home, tmp_path):
    path = table(tmp_path / "labels.csv", "id,label", [(f"{i:03}", classes[i % len(classes)]) for i in range(20)])
    data = open_data(home, dir=photos, labels=path, side=8)
    assert sorted(data.classes) == sorted(classes)
    assert data.labels.min() == 0


def test_a_column_called_set_without_any_split_is_about_something_else(photos, home, tmp_path):
    path = table(tmp_path / "labels.csv", "id,label,set", [(*row[:2], "blue") for row in ROWS])
    assert open_data(home, dir=photos, labels=path, side=8, label_column="label").classes == ("bright", "dark")


def test_files_that_the_table_lacks_are_left_out_and_counted(photos, home, tmp_path):
    path = table(tmp_path / "labels.csv", "id,label", [row[:2] for row in ROWS[:12]])
    data, notes = open_and_listen(home, dir=photos, labels=path, side=8)
    assert values(data) == list(range(12))
    assert any("left out 8 files that labels.csv doesn't list" in text for text in notes)


def test_missing_files_are_errors_or_skipped(photos, home, tmp_path):
    path = table(tmp_path / "labels.csv", "id,label", [row[:2] for row in ROWS] + [("../../etc/passwd", "bright")])
    message = error_message(home, dir=photos, labels=path, side=8)
    assert "1 of 21 files can't be read as images: ../../etc/passwd (there is no such file, or it is a link" in message
    assert values(open_data(home, dir=photos, labels=path, side=8, on_bad_image="skip")) == list(range(20))


def test_a_class_with_the_name_of_a_file_makes_no_column_of_names(photos, home, tmp_path):
    write(photos / "bright.png", plain(20))
    rows = [(f"elsewhere/{i}.png", label) for i, (_, label, _) in enumerate(ROWS)]
    path = table(tmp_path / "labels.csv", "file,label", rows)
    assert "no column of" in error_message(home, dir=photos, labels=path)
    path = table(tmp_path / "few.csv", "file,label", [*rows, ROWS[0][:2]])
    assert values(open_data(home, dir=photos, labels=path, side=8, on_bad_image=0.96)) == [0]
    # Three boxes of each picture. Most pictures are gone.
    boxes = [(str(1000 + i), f"{i // 3:03}", "cat") for i in range(180)]
    path = table(tmp_path / "boxes.csv", "id,picture,label", boxes)
    assert values(open_data(home, dir=photos, labels=path, side=8, on_bad_image=0.9)) == list(range(20))
    path = table(tmp_path / "right.csv", "file,label", [row[:2] for row in ROWS])
    assert open_data(home, dir=photos, labels=path, side=8).classes == ("bright", "dark")


@pytest.mark.parametrize("form", ["stem", "name", "folder"])
def test_a_name_that_several_files_have_is_an_error_whose_remedies_work(form, home, tmp_path):
    for copy in ("clean", "clean2"):
        for name, label, _ in ROWS:
            write(tmp_path / "all" / copy / label / f"{name}.png", plain(int(name)))
    write(tmp_path / "all" / "clean" / "bright.png", plain(20))  # a class has the name of a file
    written = {
        "stem": lambda name, _: name,
        "name": lambda name, _: f"{name}.png",
        "folder": lambda name, label: f"{label}/{name}.png",
    }[form]
    rows = [(written(name, label), label) for name, label, _ in ROWS]
    path = table(tmp_path / "labels.csv", "file,label", rows)
    message = error_message(home, dir=tmp_path / "all", labels=path)
    assert f"'{rows[0][0]}' in {path} could be clean/bright/000.png or clean2/bright/000.png (20 such rows)" in message
    assert values(open_data(home, dir=tmp_path / "all" / "clean2", labels=path, side=8)) == list(range(20))
    path = table(path, "file,label", [(f"clean2/{label}/{name}", label) for name, label, _ in ROWS])
    assert values(open_data(home, dir=tmp_path / "all", labels=path, side=8)) == list(range(20))


def test_rows_that_contradict_each_other_are_an_error(photos, home, tmp_path):
    path = table(tmp_path / "labels.csv", "id,label", [row[:2] for row in ROWS] + [("000", "dark")])
    message = error_message(home, dir=photos, labels=path)
    assert "different rows for one image, 1 in all: (000, bright, train) and (000, dark, train)" in message
    path = table(tmp_path / "labels.csv", "id,label", [row[:2] for row in [*ROWS, *ROWS]])
    assert values(open_data(home, dir=photos, labels=path, side=8)) == list(range(20))


def test_two_rows_for_images_of_one_name_in_other_folders_are_an_error(photos, home, tmp_path):
    rows = [(f"{split}/{name}.png", label) for name, label, _ in ROWS for split in ("train", "test")]
    path = table(tmp_path / "labels.csv", "id,label", rows)
    assert "different rows for one image, 20 in all" in error_message(home, dir=photos, labels=path)


UNCLEAR = {
    "two labels": (
        "id,label,category",
        lambda n, i: (n, "ab"[i % 2], "xy"[i % 2]),
        "labels in label or category",
        "label",
    ),
    "two names": ("a,b,label", lambda n, i: (n, f"{n}.png", "ab"[i % 2]), "names of files in a and b", "image"),
    "no usual name": (
        "id,price,weight",
        lambda n, i: (n, "12"[i % 2], "34"[i % 2]),
        "labels in price or weight",
        "label",
    ),
    "a caption": ("id,text", lambda n, i: (n, f"photo {i}"), "has 21 different labels for 21 images", "label"),
}


@pytest.mark.parametrize("name", UNCLEAR)
def test_an_unclear_column_is_an_error_whose_remedy_works(name, photos, home, tmp_path):
    header, row, expected, setting = UNCLEAR[name]
    write(photos / "020.png", plain(20))
    path = table(tmp_path / "labels.csv", header, [row(f"{i:03}", i) for i in range(21)])
    message = error_message(home, dir=photos, labels=path)
    assert expected in message
    assert f"--set data.{setting}_column=NAME" in message
    column = header.split(",")[1] if name != "a caption" else None
    options = {f"{setting}_column": column} if column else {"unlabelled": True}
    assert len(open_data(home, dir=photos, labels=path, side=8, **options).images) == 21


def test_columns_without_names_are_no_columns_of_one_name(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("id,label, ,  \n000,a,x,y\n")
    assert read_table(path).iloc[0].tolist() == ["000", "a", "x", "y"]


WRONG = {
    "no header": (b"000.png,bright\n001.png,dark\n", "has no header"),
    "empty": (b"", "is empty: expected a header"),
    "two columns of a name": (b"id,label,label\n000,a,b\n", "two columns called 'label'"),
    "two columns of a name after spaces": (b"id,label,label \n000,a,b\n", "two columns called 'label'"),
    "spaces for separators": (b"000.png bright\n001.png dark\n", "the first line of the table names its columns"),
    "no rows": (b"id,label\n", "has no rows"),
    "binary": (b"id,\xff\xfe\n", "is not text in UTF-8"),
    "other names": (b"id,label\nx,bright\n", "no column of"),
    "ragged": (b"id,label\n000,a\n001,a,b,c\n", "can't read"),
    "an unquoted comma": (b"id,label\n000,a, big\n001,b, small\n", "more cells than its header"),
    "no images to train on": (b"id,label,split\n000,a,test\n001,b,test\n", "only test"),
    "some splits": (b"id,label,split\n000,a,train\n001,b,\n", "has '': expected the splits train"),
    "two ways to write a number": (b"id,label\n000,1\n001,1.0\n002,01\n", "'01' and '1' are the same number"),
    "split": (b"id,label,split\n000,a,somewhere\n001,b,train\n", None),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_tables_are_errors(name, photos, home, tmp_path):
    content, expected = WRONG[name]
    path = write(tmp_path / "labels.csv", content)
    if expected is None:
        message = error_message(home, dir=photos, labels=path, split_column="split")
        assert "column 'split'" in message
        assert "'somewhere': expected the splits train" in message
    else:
        assert expected in error_message(home, dir=photos, labels=path)
    for other in ("labels.json", "labels.xlsx"):
        message = error_message(home, dir=photos, labels=write(tmp_path / other, content))
        assert "is not a table of labels: save it as a .csv file" in message
    missing, near = tmp_path / "none.csv", write(tmp_path / "nome.csv", b"")
    message = error_message(home, dir=photos, labels=missing)
    assert message.startswith(f"can't read the labels {missing}")
    assert message.endswith(f"Did you mean '{near}'?")


def test_a_column_without_a_table_is_an_error(photos, home):
    assert "add --labels TABLE" in error_message(home, dir=photos, label_column="label")


def test_a_changed_table_is_read_again(photos, home, tmp_path):
    path = table(tmp_path / "labels.csv", "id,label", [row[:2] for row in ROWS])
    assert open_data(home, dir=photos, labels=path, side=8).classes == ("bright", "dark")
    table(path, "id,label", [(name, f"{label}er") for name, label, _ in ROWS])
    assert open_data(home, dir=photos, labels=path, side=8).classes == ("brighter", "darker")


def test_images_of_one_value_in_a_column_stay_in_one_part(photos, home, tmp_path):
    rows = [(name, label, f"p{i // 4}") for i, (name, label, _) in enumerate(ROWS)]
    path = table(tmp_path / "labels.csv", "id,label,patient", rows)
    data = open_data(home, dir=photos, labels=path, side=8, group="patient", val_fraction=0.2)
    patients = {part: {value // 4 for value in values(data, part)} for part in ("train", "val", "test")}
    assert sum(len(own) for own in patients.values()) == 5
    assert all(patients.values())
    assert len(set.union(*patients.values())) == 5
