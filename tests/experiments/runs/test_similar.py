"""Searching for similar images: against NumPy, without the query itself, with the pictures that are on the disk."""

from __future__ import annotations

import re
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from analysis import image_grids
from analysis.matches import Query
from experiments.runs.encoders import FoundEncoder
from experiments.runs.similar import Bank, Found, Similar, bank_in, bank_of, search, write_found
from simclr.build import build_model
from simclr.data.dataset import Dataset, open_dataset
from simclr.data.formats import list_images
from simclr.errors import BadSettings, UserError
from simclr.evaluate.protocol import make_protocol
from simclr.evaluate.subject import Subject, features, model_fingerprint
from simclr.progress import SILENT
from simclr.weights.encoder import Encoder, embed_files
from simclr.weights.features import write_features
from tests.helpers import subject_of, tiny


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of wide pictures, of which one is a copy of another, and one can't be read."""
    folder = tmp_path_factory.mktemp("photos")
    draw = np.random.default_rng(0)
    for number in range(12):
        path = folder / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (20, 60, 3), dtype=np.uint8)).resize((300, 100)).save(path)
    shutil.copy(folder / "a/04.png", folder / "a/copy of 04.png")
    (folder / "a/03 broken.png").write_text("not an image")
    return folder


@pytest.fixture(scope="module")
def subject(photos: Path, home: Path) -> Subject:
    config = tiny(data={"dataset": "folder", "dir": str(photos), "side": 16, "on_bad_image": "skip"})
    data = open_dataset(config.data, home)
    return Subject(build_model(config, data, torch.device("cpu")), config, data, make_protocol([], layer="h"))


@pytest.fixture(scope="module")
def bank(subject: Subject) -> Bank:
    return bank_of(subject)


def encoder_of(subject: Subject) -> FoundEncoder:
    return FoundEncoder(subject.config, subject.model.state_dict(), "", Path("model.safetensors"), None)


def test_every_image_of_a_folder_is_searched_by_its_path(subject: Subject, bank: Bank, photos: Path) -> None:
    files = bank.files.names
    assert len(files) == len(set(files)) == 13 == len(subject.data.labels)
    for row, (file, label) in enumerate(zip(files, bank.classes, strict=True)):
        assert Path(file).parent == photos / label
        with Image.open(file) as image:
            square = image.crop((100, 0, 200, 100)).resize((16, 16), Image.Resampling.BICUBIC)
        assert np.abs(np.asarray(square, int).transpose(2, 0, 1) - subject.data.images[row]).mean() < 2


def test_similar_images_are_those_of_the_highest_cosine(subject: Subject, bank: Bank, photos: Path) -> None:
    queries = [photos / "b/01.png", photos / "a/00.png"]
    x = features(subject.model, subject.data.images, np.arange(13), torch.float32).double().numpy()
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    for query, similar in search(bank, queries, 5):
        row = bank.files.names.index(query)
        cosine = x @ x[row]
        found = [bank.files.names.index(each.file) for each in similar]
        assert row not in found
        assert len(set(found)) == 5
        np.testing.assert_allclose([each.similarity for each in similar], cosine[found], atol=1e-5)
        np.testing.assert_allclose(cosine[found], sorted(np.delete(cosine, row), reverse=True)[:5], atol=1e-5)
        assert [each.label for each in similar] == [Path(each.file).parent.name for each in similar]


def test_the_query_is_left_out_under_any_name_and_its_copy_is_not(bank: Bank, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to(photos / "a/04.png")
    queries = [photos / "a/04.png", photos / "a/../a/04.png", tmp_path / "link.png"]
    for _, similar in search(bank, queries, 50):
        files = [each.file for each in similar]
        assert len(files) == 12
        assert str(photos / "a/04.png") not in files
        assert files[0] == str(photos / "a/copy of 04.png")
        assert similar[0].similarity == pytest.approx(1, abs=1e-5)
        assert similar[0].similarity <= 1


def test_similarities_are_at_most_1_and_no_label_is_none(bank: Bank, photos: Path, monkeypatch) -> None:
    rounded = torch.tensor([[1 + 2e-7, 0.5]]), torch.tensor([[1, 2]])
    monkeypatch.setattr("experiments.runs.similar.nearest", lambda *_: rounded)
    ((_, similar),) = search(bank._replace(classes=["", "", "b", *bank.classes[3:]]), [photos / "b/05.png"], 2)
    assert [(each.similarity, each.label) for each in similar] == [(1.0, None), (0.5, "b")]


def test_an_image_of_the_same_pixels_is_the_query_itself_where_there_are_no_files(
    digits: Dataset, tmp_path: Path
) -> None:
    row = int(digits.parts["pretrain"][5])
    Image.fromarray(digits.images[row].transpose(1, 2, 0)).save(tmp_path / "query.png")
    bank = bank_of(subject_of(digits), "pretrain")
    ((_, similar),) = search(bank, [tmp_path / "query.png"], 3)
    assert len(similar) == 3
    assert similar[0].similarity < 1
    for file, _, label in similar:
        name, _, number = file.partition(" ")
        assert name == "train"
        assert np.array_equal(read_back(bank, file), digits.images[int(number)].transpose(1, 2, 0))
        assert label == digits.classes[digits.labels[int(number)]]


def read_back(bank: Bank, name: str) -> np.ndarray:
    """The pixels of a file of the bank."""
    return np.asarray(Image.open(BytesIO(bank.files.read(name))))


def test_features_of_a_file_give_the_same_answer_as_the_folder(
    subject: Subject, bank: Bank, photos: Path, tmp_path: Path
) -> None:
    found = encoder_of(subject)
    encoder = Encoder(found.config, found.weights)
    files, _ = list_images(photos, tmp_path, SILENT)
    write_features(tmp_path / "f.parquet", embed_files(encoder, files, skipped=[]), model_fingerprint(encoder.model))
    query = [photos / "b/05.png"]
    ((_, expected),) = search(bank, query, 4)
    ((_, similar),) = search(bank_in(tmp_path / "f.parquet", found, "cpu"), query, 4)
    assert [each.file for each in similar] == [each.file for each in expected]
    np.testing.assert_allclose([each.similarity for each in similar], [each.similarity for each in expected], atol=1e-5)


def test_features_of_another_encoder_are_refused(subject: Subject, photos: Path, tmp_path: Path) -> None:
    path, files = tmp_path / "f.parquet", [str(photos / "a/00.png")]
    for encoder, whose in (("another", "of another encoder"), ("", "without a note of their encoder")):
        write_features(path, iter([(files, np.ones((1, subject.model.features), np.float32))]), encoder)
        with pytest.raises(UserError, match=f"holds features {whose}: write it again with `simclr embed"):
            bank_in(path, encoder_of(subject), "cpu")


def test_a_table_has_every_name_rank_and_similarity(tmp_path: Path, bank: Bank) -> None:
    found = [Found("q.png", [Similar("a\nb.png", 0.5, "cat"), Similar("caf\udce9.png", 0.25, "")])]
    write_found(found, bank, tmp_path / "out.csv", "a-run")
    table = pd.read_csv(tmp_path / "out.csv", keep_default_na=False)
    assert table.to_numpy().tolist() == [
        ["q.png", 1, r"a\nb.png", 0.5, "cat"],
        ["q.png", 2, r"caf\udce9.png", 0.25, ""],
    ]


def test_pictures_show_whole_images_in_their_own_resolution(
    bank: Bank, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Query] = []
    monkeypatch.setattr(image_grids, "neighbours", lambda queries, path: (drawn.extend(queries), path.touch()))
    write_found(search(bank, [photos / "a/00.png"], 2), bank, tmp_path / "out.png", "a-run")
    (query,) = drawn
    for file, picture in [(query.file, query.picture), *((each.file, each.picture) for each in query.matches)]:
        assert picture.shape == (53, 160, 3)
        with Image.open(file) as image:
            assert np.abs(np.asarray(image.resize((160, 53), Image.Resampling.BICUBIC), int) - picture).mean() < 2


def test_a_page_has_every_name_and_picture(bank: Bank, photos: Path, tmp_path: Path) -> None:
    found = search(bank, [photos / "a/00.png", photos / "b/01.png"], 2)
    hostile = [found[0], Found(found[1].query, [found[1].similar[0]._replace(label="<script>alert(1)</script>")])]
    write_found(hostile, bank, tmp_path / "out.html", "a-run")
    page = (tmp_path / "out.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 2 + 2 + 1
    assert "<script" not in page
    assert not re.search(r'src="(?!data:)', page)
    assert "by the encoder of a-run</h1>" in page
    words = page.replace("<wbr>", "")
    for query, similar in found[:1]:
        for name in [query, *(each.file for each in similar)]:
            assert f'<a href="{Path(name).as_uri()}">{Path(name).relative_to(photos)}</a>' in words


def test_names_in_a_table_are_those_below_the_folder(bank: Bank, photos: Path, tmp_path: Path) -> None:
    write_found(search(bank, [photos / "a/00.png"], 2), bank, tmp_path / "out.csv", "a-run")
    table = pd.read_csv(tmp_path / "out.csv")
    assert set(table["query"]) == {"a/00.png"}
    assert all((photos / name).is_file() and not Path(name).is_absolute() for name in table["file"])


def test_files_that_are_gone_can_still_be_listed(subject: Subject, bank: Bank, photos: Path, tmp_path: Path) -> None:
    found = [Found(str(photos / "a/00.png"), [Similar("gone.png", 0.5, "")])]
    with pytest.raises(UserError, match=r"1 of 1 files can't be read.*gone\.png.*--out FILE\.csv"):
        write_found(found, bank, tmp_path / "out.html", "a-run")
    write_found(found, bank, tmp_path / "out.csv", "a-run")
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def test_a_collapsed_encoder_finds_nothing(digits: Dataset) -> None:
    subject = subject_of(digits)
    for parameter in subject.model.parameters():
        parameter.data.zero_()
    with pytest.raises(BadSettings, match="the encoder has collapsed"):
        bank_of(subject)


def test_a_query_that_is_not_an_image_is_named(bank: Bank, tmp_path: Path) -> None:
    (tmp_path / "note.png").write_text("text")
    with pytest.raises(UserError, match=r"note\.png"):
        search(bank, [tmp_path / "note.png"], 3)


def test_a_query_needs_other_images(bank: Bank, photos: Path) -> None:
    alone = bank._replace(files=bank.files._replace(names=bank.files.names[:1]), features=bank.features[:1])
    with pytest.raises(UserError, match=r"there is no image to compare .* with: search more images"):
        search(alone, [Path(alone.files.names[0])], 3)
