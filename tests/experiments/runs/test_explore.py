"""The explorer of an encoder's images: what it says about them, against NumPy and the records."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from analysis.explorer import Column
from experiments.runs import explore as module
from experiments.runs.encoders import FoundEncoder, find_encoder, open_subject
from experiments.runs.evaluate import evaluate_encoder
from experiments.runs.explore import NEIGHBOURS, explore
from experiments.tracking.store import Store
from simclr.build import build_model
from simclr.data.dataset import Dataset, open_dataset
from simclr.errors import BadSettings, UserError, printable
from simclr.evaluate.protocol import make_protocol
from simclr.evaluate.subject import Subject, features
from tests.helpers import subject_of, tiny


class Page:
    """What the explorer's page was made from."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.columns: dict[str, Column] = {}
        monkeypatch.setattr(module, "explorer_page", self._keep)

    def _keep(self, title: str, notes: list[str], names: list[str], columns: list[Column], *arrays: np.ndarray) -> str:
        self.title, self.notes, self.names = title, notes, names
        self.columns = {column.name: column for column in columns}
        self.points, self.near, self.similarities, self.thumbnails, self.sizes = arrays
        return "a page"

    def values(self, column: str) -> list[str]:
        """The category of each image."""
        found = self.columns[column]
        return [found.categories[code] if code >= 0 else "" for code in found.codes.tolist()]


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Page:
    return Page(monkeypatch)


def found_of(subject: Subject, run_id: str | None = None) -> FoundEncoder:
    return FoundEncoder(subject.config, subject.model.state_dict(), subject.data.identity, Path("m"), run_id)


def write(subject: Subject, store: Store, out: Path, **changes: Any) -> str:
    options: dict[str, Any] = {"transfer": None, "images": 300, "clusters": None, "seed": 0}
    return explore(found_of(subject), subject, store, out, **(options | changes))


def test_every_image_has_its_name_class_split_picture_and_neighbours(
    digits: Dataset, store: Store, tmp_path: Path, page: Page
) -> None:
    subject = subject_of(digits)
    assert write(subject, store, tmp_path / "e.html", table=tmp_path / "e.csv") == "300 of 1,797 images"
    assert (tmp_path / "e.html").read_text() == "a page"
    assert page.title == "digits, seen by tiny-s0"
    rows = [int(name.split()[1]) + (0 if name.startswith("train") else 1438) for name in page.names]
    assert len(set(rows)) == 300
    assert page.values("class") == [digits.classes[label] for label in digits.labels[rows]]
    parts = {
        row: name
        for part, name in (("train", "train"), ("val", "validation"), ("test", "test"))
        for row in digits.parts[part]
    }
    assert page.values("split") == [parts[row] for row in rows]
    assert page.thumbnails.shape == (300, 32, 32, 3)
    smaller = np.stack([np.asarray(Image.fromarray(each).resize((16, 16))) for each in page.thumbnails]).astype(int)
    assert np.abs(smaller - digits.images[rows].transpose(0, 2, 3, 1)).mean() < 20
    x = features(subject.model, digits.images, np.array(rows), torch.float32).double().numpy()
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    cosine = x @ x.T - 9 * np.eye(300)
    np.testing.assert_allclose(page.similarities, -np.sort(-cosine, axis=1)[:, :NEIGHBOURS], atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(cosine, page.near, 1), page.similarities, atol=1e-5)
    assert page.points.shape == (300, 2)
    assert set(page.values("cluster")) == {str(number) for number in range(1, 11)}
    assert page.sizes == [None] * 300  # they are not files

    order, table = np.argsort(rows), pd.read_csv(tmp_path / "e.csv", dtype={"class": str})
    assert table["file"].tolist() == [page.names[i] for i in order]
    for column in ("class", "split", f"error, {NEIGHBOURS} nearest"):
        assert table[column].fillna("").tolist() == [page.values(column)[i] for i in order]
    assert table["nearest"].tolist() == [page.names[cosine[i].argmax()] for i in order]
    np.testing.assert_allclose(table["similarity"], cosine[order].max(1), atol=1e-5)
    mean = -np.sort(-cosine[order], axis=1)[:, :NEIGHBOURS].mean(1)
    np.testing.assert_allclose(table["mean similarity"], mean, atol=1e-5)


def test_the_vote_of_the_nearest_is_that_of_their_classes(
    digits: Dataset, store: Store, tmp_path: Path, page: Page
) -> None:
    write(subject_of(digits), store, tmp_path / "e.html")
    classes = np.array(page.values("class"))
    for i in range(0, 300, 7):
        weights = np.exp((page.similarities[i] - 1) / 0.1)
        votes = {name: weights[classes[page.near[i]] == name].sum() for name in digits.classes}
        best = max(votes.values())
        predicted = page.values(f"predicted, {NEIGHBOURS} nearest")[i]
        assert votes[predicted] == pytest.approx(best)
        wrong = page.values(f"error, {NEIGHBOURS} nearest")[i] == "wrong"
        assert wrong == (predicted != classes[i])


def test_the_same_seed_gives_the_same_page(digits: Dataset, store: Store, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write(subject_of(digits), store, tmp_path / name, images=60, seed=seed)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() != (tmp_path / "c").read_bytes()


def test_recorded_errors_are_those_of_the_test_images(
    trained: Store, tmp_path: Path, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "large_map", lambda directions, *_: (directions[:, :2], "any places"))  # in no time
    found = find_encoder("t0.2-s0", trained)
    subject = open_subject(found, trained, make_protocol(["knn.k=[5]"]))
    evaluate_encoder(found, subject, trained, ["knn"])
    explore(found, subject, trained, tmp_path / "e.html", transfer=None, images=2000, clusters=3, seed=0)
    right = trained.get(found.run_id or "").metrics["eval/knn_k5_top1"]
    errors = np.array(page.values("error, kNN (k = 5) top-1"))
    test = np.array(page.values("split")) == "test"
    assert set(errors[~test]) == {""}
    assert (errors[test] == "right").mean() == pytest.approx(right)
    predicted = np.array(page.values("predicted, kNN (k = 5) top-1"))
    assert ((predicted == page.values("class"))[test] == (errors[test] == "right")).all()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images without classes, with hostile names, of more pixels than are stored."""
    folder = tmp_path_factory.mktemp("photos")
    draw = np.random.default_rng(0)
    hostile = ["<img src=x onerror=alert(1)>.png", "line\nend.png", os.fsdecode(b"caf\xe9.png")]
    for name in [*(f"{i:02}.png" for i in range(19)), *hostile]:
        Image.fromarray(draw.integers(0, 255, (5, 7, 3), dtype=np.uint8)).resize((140, 100), 0).save(folder / name)
    shutil.copy(folder / "03.png", folder / "copy.png")
    return folder


def test_images_without_classes_have_clusters_and_pictures_of_the_files(
    photos: Path, home: Path, store: Store, tmp_path: Path, page: Page
) -> None:
    config = tiny(data={"dataset": "folder", "dir": str(photos), "side": 16})
    data = open_dataset(config.data, home)
    subject = Subject(build_model(config, data, torch.device("cpu")), config, data, make_protocol([], layer="h"))
    table_file, copies_file = tmp_path / "e.csv", tmp_path / "copies.csv"
    options = {"table": table_file, "copies": copies_file, "transfer": str(photos)}
    assert write(subject, store, tmp_path / "e.html", **options) == "23 images"
    assert list(page.columns) == ["cluster"]  # no image is in a split or in a folder of its own
    assert sorted(page.names) == sorted(printable(str(path)) for path in photos.iterdir())
    assert page.thumbnails.shape == (23, 96, 96, 3)
    by_name = {printable(str(path)): path for path in photos.iterdir()}
    files = [by_name[name] for name in page.names]
    assert page.sizes == [(140, 100, path.stat().st_size) for path in files]
    for file, picture in zip(files, page.thumbnails, strict=True):
        with Image.open(file) as image:
            square = np.asarray(image.crop((20, 0, 120, 100)).resize((96, 96), Image.Resampling.BICUBIC), int)
        assert np.abs(square - picture).mean() < 4
    copies = [page.names.index(str(photos / name)) for name in ("03.png", "copy.png")]
    assert page.near[copies[0], 0] == copies[1]
    assert page.similarities[copies[0], 0] == pytest.approx(1, abs=1e-5)
    table = pd.read_csv(table_file).set_index("file")
    assert set(table.index) == {printable(path.name) for path in photos.iterdir()}  # below the folder
    assert table.loc["03.png", ["nearest", "pixel difference"]].tolist() == ["copy.png", 0]
    assert table.loc["00.png", "pixel difference"] > 30
    assert pd.read_csv(copies_file).values.tolist() == [["03.png", "copy.png", pytest.approx(1), 0]]
    other = subject.__class__(**(vars(subject) | {"data": data.__class__(**(vars(data) | {"digest": "other"}))}))
    explore(found_of(subject), other, store, tmp_path / "e.html", transfer="x", images=99, clusters=2, seed=0)
    assert list(page.columns) == ["cluster"]


def test_subfolders_of_images_without_classes_are_a_colour() -> None:
    (column,) = module._folders(["/p/2024/a.jpg", "/p/2023/c.jpg", "/p/2023/sea/b.jpg", "/p/2024/d.jpg"])
    assert [column.categories[code] for code in column.codes] == ["2024", "2023", "2023/sea", "2024"]
    assert list(module._folders(["/p/a.jpg", "/p/b.jpg"])) == []


def test_folders_are_a_colour_beside_classes_from_a_table(
    photos: Path, home: Path, store: Store, tmp_path: Path, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "large_map", lambda directions, *_: (directions[:, :2], "any places"))
    rows = []
    for number in range(12):
        name = f"{'ab'[number % 2]}/{number}.png"
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photos / f"{number:02}.png", tmp_path / "p" / name)
        rows.append(f"{name},{'xyz'[number % 3]}")
    (tmp_path / "p" / "labels.csv").write_text("file,label\n" + "\n".join(rows))
    places = {"dir": str(tmp_path / "p"), "labels": str(tmp_path / "p/labels.csv")}
    config = tiny(data={"dataset": "folder", "side": 16, **places})
    data = open_dataset(config.data, home)
    subject = Subject(build_model(config, data, torch.device("cpu")), config, data, make_protocol([], layer="h"))
    write(subject, store, tmp_path / "e.html", transfer=str(tmp_path / "p"))
    numbers = [int(Path(name).stem) for name in page.names]
    assert page.values("class") == ["xyz"[number % 3] for number in numbers]
    assert page.values("folder") == ["ab"[number % 2] for number in numbers]


def test_too_few_images_and_collapsed_encoders_have_no_map(digits: Dataset, store: Store, tmp_path: Path) -> None:
    subject = subject_of(digits)
    with pytest.raises(UserError, match="digits has 4 images: expected 10 or more, for a map"):
        write(subject, store, tmp_path / "e.html", images=4)
    for parameter in subject.model.parameters():
        parameter.data.zero_()
    with pytest.raises(BadSettings, match="the encoder has collapsed"):
        write(subject, store, tmp_path / "e.html")
    assert not (tmp_path / "e.html").exists()
