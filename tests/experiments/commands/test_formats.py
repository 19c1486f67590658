"""Commands that take a folder of images take every other form of images too."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from tests.experiments.commands.helpers import Run, assert_one_line


@pytest.fixture(scope="session")
def forms(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of the folder `two` in every other form, and a table of their labels."""
    out = tmp_path_factory.mktemp("forms")
    files = sorted((images / "two").rglob("*.png"))
    names = [path.relative_to(images / "two").as_posix() for path in files]
    classes = [path.parent.name for path in files]
    pixels = np.stack([np.asarray(Image.open(path)) for path in files])
    with zipfile.ZipFile(out / "a.zip", "w") as archive:
        for path, name in zip(files, names, strict=True):
            archive.write(path, name)
    with tarfile.open(out / "a.tar.gz", "w:gz") as tar:
        for path, name in zip(files, names, strict=True):
            tar.add(path, name)
    (out / "shards").mkdir()
    with tarfile.open(out / "shards" / "train-000.tar", "w") as tar:
        for row, (path, label) in enumerate(zip(files, classes, strict=True)):
            for kind, content in (("png", path.read_bytes()), ("cls", label.encode())):
                info = tarfile.TarInfo(f"{row:04}.{kind}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    columns = {"image": [{"bytes": path.read_bytes(), "path": path.name} for path in files]}
    labels = {"label": [["a", "b"].index(label) for label in classes]}
    features = {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}
    noted = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    table = pyarrow.table(columns | labels).replace_schema_metadata(noted)
    pyarrow.parquet.write_table(table, out / "a.parquet")
    np.savez(out / "a.npz", images=pixels, labels=np.array(classes))
    pd.DataFrame({"file": names, "label": classes}).to_csv(out / "labels.csv", index=False)
    pd.DataFrame({"file": [path.as_posix() for path in files], "kind": classes, "colour": classes}).to_csv(
        out / "unclear.csv", index=False
    )
    return out


@pytest.fixture
def features_of_folder(run: Run, images: Path) -> np.ndarray:
    assert run("embed", "tiny-s0", images / "two", "--out", "folder.npz").exit_code == 0
    return np.load("folder.npz")["features"]


KNN = ("--knn", "--set", "knn.k=[5]")
OWN = ("--config", "tiny.toml", "--dataset", "folder", "--batch-size", 16, "--epochs", 1)


@pytest.mark.parametrize("form", ["a.zip", "a.tar.gz", "shards/train-{000..000}.tar", "a.parquet", "a.npz"])
def test_images_are_embedded_in_every_form(form: str, run: Run, forms: Path, features_of_folder: np.ndarray) -> None:
    done = run("embed", "tiny-s0", forms / form, "--out", "form.npz")
    assert done.exit_code == 0, done.output
    assert np.allclose(np.load("form.npz")["features"], features_of_folder, atol=1e-5)


@pytest.mark.parametrize("form", ["shards", "a.npz"])
def test_images_are_drawn_and_transferred_to_in_every_form(form: str, run: Run, forms: Path, images: Path) -> None:
    assert run("views", *OWN[:4], "--data-dir", forms / form).exit_code == 0
    figures = []
    for path in (forms / form, images / "two"):
        done = run("eval", "tiny-s0", *KNN, "--transfer", path)
        assert done.exit_code == 0, done.output
        figures.append([line for line in done.stdout.splitlines() if line.startswith("knn")])
    assert figures[0] == figures[1] != []


def test_a_run_on_an_archive_is_evaluated_wherever_the_archive_is_now(run: Run, forms: Path) -> None:
    # Its seed is its own, since a run of the same images and settings would be reused, whatever its name.
    done = run("pretrain", *OWN, "--data-dir", forms / "a.zip", "--name", "zip", "--seed", 7)
    assert done.exit_code == 0, done.output
    Path("moved.zip").write_bytes((forms / "a.zip").read_bytes())
    Path("query.png").write_bytes(zipfile.ZipFile("moved.zip").read("a/0.png"))
    for command in (["eval", "zip-s7", *KNN], ["neighbours", "zip-s7", "query.png", "--count", 2]):
        done = run(*command, "--data-dir", "moved.zip")
        assert done.exit_code == 0, done.output


def test_labels_come_from_a_table_in_every_command(run: Run, forms: Path, images: Path) -> None:
    table = ["--labels", forms / "labels.csv"]
    own = [*OWN, "--data-dir", images / "two", *table]
    done = run("pretrain", *own, "--name", "table", "--seed", 1)
    assert done.exit_code == 0, done.output
    assert "labels from column 'label'" in done.output
    for command in (
        ["eval", "table-s1", *KNN, *table],
        ["eval", "tiny-s0", *KNN, "--transfer", images / "two", *table],
        ["tsne", "table-s1", "--part", "train", *table],
    ):
        done = run(*command)
        assert done.exit_code == 0, done.output
    refused = run("eval", "table-s1", *KNN, *table, "--set", "data.val_fraction=0.3")  # it chose others to hold out
    assert_one_line(refused, 2, "leave out data.val_fraction")
    assert "2 classes from labels.csv: a, b" in run("ablate", *own, "--seeds", 1, "--drop", "flip", "--dry-run").output


def test_unclear_columns_are_chosen_with_a_setting_in_every_command(run: Run, forms: Path, images: Path) -> None:
    table, column = ["--labels", forms / "unclear.csv"], ["--set", "data.label_column=kind"]
    for command in (
        ["views", *OWN[:4], "--data-dir", images / "two", *table],
        ["eval", "tiny-s0", *KNN, "--transfer", images / "two", *table],
    ):
        assert_one_line(run(*command), 2, "--set data.label_column=NAME")
        done = run(*command, *column)
        assert done.exit_code == 0, done.output
    assert_one_line(run("eval", "tiny-s0", *KNN, *column), 2, "data.label_column=kind is for images other than")
