"""experiments/commands/pictures.py."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from experiments.tracking.store import Store
from tests.experiments.commands.helpers import Run, assert_one_line

PICTURES = {
    "views": (["views", "--config", "tiny.toml", "--out", "grid.png"], ["grid.png"]),
    "plot": (["plot", "loss", "tiny-s0", "--smooth", "3"], ["curves.png", "curves.svg", "curves.csv"]),
    "tsne": (
        ["tsne", "tiny-s0", "--images", "100", "--perplexity", "5", "--thumbnails", "--out", "map"],
        ["map.png", "map.svg", "map.csv"],
    ),
    "neighbours": (
        ["neighbours", "tiny-s0", "IMAGES/flat/3.png", "IMAGES/flat/4.png", "--count", "3"],
        ["neighbours.png"],
    ),
    "neighbours in a folder": (
        ["neighbours", "tiny-s0", "IMAGES/flat/3.png", "--among", "IMAGES/two", "--out", "similar.pdf"],
        ["similar.pdf"],
    ),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_written_where_it_was_asked_for(name: str, run: Run, images: Path) -> None:
    arguments, files = PICTURES[name]
    done = run(*(argument.replace("IMAGES", str(images)) for argument in arguments))
    assert done.exit_code == 0, done.output
    assert done.stdout.endswith(f"wrote {', '.join(files)}\n")
    assert all(Path(file).stat().st_size > 0 for file in files)
    assert Path(files[0]).read_bytes().startswith((b"\x89PNG", b"%PDF"))


def test_similar_images_are_printed_and_written_with_their_names(run: Run, images: Path) -> None:
    search = ["neighbours", "tiny-s0", images / "flat/3.png", "--count", 3, "--among", images / "flat"]
    done = run(*search, "--out", "similar.csv")
    assert done.exit_code == 0, done.output
    table = pd.read_csv("similar.csv")
    assert list(table["rank"]) == [1, 2, 3]
    lines = done.stdout.splitlines()
    found = lines[lines.index(str(images / "flat/3.png")) + 1 : -1]
    assert found == [f"  {row.similarity:.4f}  {images / 'flat' / row.file}" for row in table.itertuples()]
    result = json.loads(run(*search, "--json").stdout)
    (match,) = result["matches"]
    assert (result["folder"], match["query"]) == (str(images / "flat"), "3.png")
    rows = zip(table["file"], table["similarity"], strict=True)
    assert match["similar"] == [{"file": file, "similarity": near, "class": None} for file, near in rows]
    assert run("embed", "tiny-s0", images / "flat").exit_code == 0
    features = [*search[:-1], "features.parquet", "--out", "again.csv"]
    for option in (["--on-bad-image", "skip"], ["--recheck"], ["--layer", "z"]):
        assert_one_line(run(*features, *option), 2, f"{option[0]} has no effect on features.parquet, which holds feat")
    again = run(*features)
    assert again.exit_code == 0, again.output
    assert pd.read_csv("again.csv")["file"].tolist() == table["file"].tolist()
    page = run(*search, "--out", "similar.html")
    assert page.exit_code == 0, page.output
    assert all(file in Path("similar.html").read_text() for file in table["file"])


def test_images_are_explored_in_one_page(run: Run, images: Path) -> None:
    done = run("explore", "tiny-s0", "--images", 60, "--clusters", 3)
    assert done.exit_code == 0, done.output
    wanted = r"60 of 1,797 images, 0\.\d MB: open it in a browser\nwrote explore\.html\n"
    assert re.fullmatch(wanted, done.stdout)
    assert "digits, seen by tiny-s0" in Path("explore.html").read_text()
    done = run("explore", "tiny-s0", images / "flat", "--out", "flat/page.html", "--table", "table.csv")
    assert done.exit_code == 0, done.output
    assert all(str(images / "flat" / name) in Path("flat/page.html").read_text() for name in ("0.png", "39.png"))
    assert set(pd.read_csv("table.csv")["file"]) == {path.name for path in (images / "flat").iterdir()}
    assert_one_line(run("explore", "tiny-s0", "--table", "table.txt"), 2, "expected a file that ends in .csv")


def test_a_runs_own_folder_can_be_searched_and_explored_as_it_is_now(run: Run, images: Path) -> None:
    shutil.copytree(images / "two", "own")
    own = ["--config", "tiny.toml", "--dataset", "folder", "--batch-size", 16, "--epochs", 1]
    done = run("pretrain", *own, "--data-dir", "own", "--name", "own", "--again")
    assert done.exit_code == 0, done.output
    shutil.copy(images / "flat/0.png", "own/b/new.png")
    done = run("neighbours", "own-s0", images / "flat/0.png", "--among", "own", "--out", "similar.csv")
    assert done.exit_code == 0, done.output
    assert pd.read_csv("similar.csv")["file"][0] == "b/new.png"  # below the folder
    for command in (["neighbours", "own-s0", images / "flat/0.png"], ["explore", "own-s0"]):
        assert_one_line(run(*command), 2, "restore the earlier files")
    done = run("explore", "own-s0", "own")
    assert done.exit_code == 0, done.output
    page = Path("explore.html").read_text()
    assert str(Path("own/b/new.png").resolve()) in page
    assert '"name": "split"' not in page  # which images it was trained on is not known any more


def test_images_beside_folders_are_searched_and_explored_and_not_evaluated_on(run: Run, images: Path) -> None:
    shutil.copytree(images / "two", "mixed")
    shutil.copy(images / "flat/0.png", "mixed/loose.png")
    done = run("neighbours", "tiny-s0", images / "flat/0.png", "--among", "mixed", "--out", "similar.csv")
    assert done.exit_code == 0, done.output
    assert "mixed is read without classes, because" in done.stderr
    assert pd.read_csv("similar.csv")["file"][0] == "loose.png"
    assert run("explore", "tiny-s0", "mixed").exit_code == 0
    page = Path("explore.html").read_text()
    assert str(Path("mixed/loose.png").resolve()) in page
    assert '"name": "folder"' in page
    assert_one_line(run("eval", "tiny-s0", "--transfer", "mixed"), 2, "mixed has images (such as loose.png) beside")


def test_maps_and_neighbours_are_kept_with_the_run(run: Run, trained: Store, images: Path) -> None:
    for name, kept in {
        "tsne": [f"tsne{suffix}" for suffix in (".png", ".svg", ".csv")],
        "neighbours": ["neighbours.png"],
    }.items():
        arguments, files = PICTURES[name]
        assert run(*(argument.replace("IMAGES", str(images)) for argument in arguments)).exit_code == 0
        for file, artifact in zip(files, kept, strict=True):
            assert trained.find("tiny-s0").artifact(artifact).read_bytes() == Path(file).read_bytes()


QUERY = "IMAGES/flat/0.png"
WRONG = {
    "a file to draw in": (["tsne", "tiny-s0", "--out", "tiny.toml/t"], "tiny.toml is a file, not a folder"),
    "a folder to draw to": (["tsne", "tiny-s0", "--out", "."], ". is a folder: expected the name of a file"),
    "a folder of curves": (["plot", "loss", "tiny-s0", "--out", "."], ". is a folder: expected the name of a file"),
    "suffix of curves": (["plot", "loss", "tiny-s0", "--out", "c.pdf"], "can't draw to c.pdf: the files get"),
    "suffix of a picture": (["views", "--out", "v.gif"], "can't draw to v.gif: expected a file that ends in .png or"),
    "no such metric": (["plot", "los", "tiny-s0"], "has no curve 'los': did you mean 'loss'? choose from "),
    "no image to look for": (["neighbours", "tiny-s0", "nowhere.png"], "there is no file nowhere.png: expected"),
    "an image that only the folder has": (
        ["neighbours", "tiny-s0", "39.png", "--among", "IMAGES/flat"],
        "there is no file 39.png: did you mean 'IMAGES/flat/39.png'?",
    ),
    "a misspelt image": (["neighbours", "tiny-s0", "tinny.toml"], "no file tinny.toml: did you mean 'tiny.toml'?"),
    "a misspelt folder": (["explore", "tiny-s0", "IMAGES/flap"], "'IMAGES/flap': did you mean 'IMAGES/flat'?"),
    "no image, and no others": (["neighbours", "tiny-s0", "nowhere.png", "--among", "nowhere"], "there is no file now"),
    "features as a table": (
        ["neighbours", "tiny-s0", QUERY, "--among", "features.csv"],
        "features.csv is a table of features: expected the .parquet file that `simclr embed` writes",
    ),
    "no file of this kind": (
        ["neighbours", "a", "a.png", "--out", "a.txt"],
        "expected a file that ends in .html or .csv",
    ),
    "no such images": (["neighbours", "tiny-s0", QUERY, "--among", "nowhere"], "unknown data set or folder"),
    "settings of no other images": (
        ["neighbours", "tiny-s0", QUERY, "--set", "data.side=8"],
        "data.side=8 is for images other than the run's own",
    ),
    "no page": (["explore", "tiny-s0", "--out", "e.png"], "can't write to e.png: expected a file that ends in .html"),
    "no folder to explore": (["explore", "tiny-s0", "nowhere"], "unknown data set or folder 'nowhere'"),
    "settings of no folder": (
        ["explore", "tiny-s0", "--set", "data.side=8"],
        "data.side=8 is for images other than",
    ),
    "a folder to look for": (["neighbours", "tiny-s0", "."], ". is a folder: expected image files"),
    "built-in data": (["neighbours", "tiny-s0", QUERY, "--data-dir", "."], "'digits' is built in and reads no"),
    "no such part": (["tsne", "tiny-s0", "--part", "all"], "unknown part 'all'"),
    "settings of other images": (
        ["tsne", "tiny-s0", "--transfer", "shapes", "--set", "data.label_column=a"],
        "data.label_column is not a setting of the data set 'shapes'",
    ),
    "settings of own images": (
        ["tsne", "tiny-s0", "--set", "data.side=8"],
        "data.side=8 is for images other than",
    ),
    "perplexity": (["tsne", "tiny-s0", "--images", "20"], "perplexity"),
    "no image": (["neighbours", "tiny-s0", "tiny.toml"], "tiny.toml"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_request_is_one_line_and_exit_code_2(case: str, run: Run, images: Path) -> None:
    arguments, message = WRONG[case]
    Path("features.csv").write_text("file,0,1\na.png,0.5,0.25\n")
    done = run(*(argument.replace("IMAGES", str(images)) for argument in arguments))
    assert_one_line(done, 2, message.replace("IMAGES", str(images)))


@pytest.mark.parametrize("name", ["views", "plot"])
def test_a_full_disk_is_one_line_and_exit_code_1(name: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device", "v.png")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    before = set(Path().iterdir())
    assert_one_line(run(*PICTURES[name][0]), 1, "No space left on device. Free some space, or choose another place")
    assert set(Path().iterdir()) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["tsne", "tiny-s0"],
        ["neighbours", "tiny-s0", "IMAGES/flat/3.png"],
        ["embed", "tiny-s0", "IMAGES/flat"],
        ["explore", "tiny-s0"],
    ],
    ids=["tsne", "neighbours", "embed", "explore"],
)
def test_out_of_memory_is_one_line_with_a_remedy(
    arguments: list[str], run: Run, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr("simclr.model.Network.normalize", fail)
    done = run(*(argument.replace("IMAGES", str(images)) for argument in arguments))
    assert_one_line(done, 1, "failed: out of memory: ")
    assert "--device cpu" in done.stderr


def test_a_share_of_the_files_may_be_skipped(run: Run, tmp_path: Path, images: Path) -> None:
    """The share is an option's text, and a number among the settings."""
    shutil.copytree(images / "flat", "some")
    for number in range(15):
        Path(f"some/broken{number}.png").write_text("not an image")
    views = ("views", "--dataset", "folder", "--data-dir", "some", "--set", "data.side=16")
    assert_one_line(run(*views, "--on-bad-image", "skip"), 2, "allow more with --on-bad-image 0.28")
    done = run(*views, "--on-bad-image", "0.28")
    assert done.exit_code == 0, done.output
    assert "15 of 55 files can't be read as images" in done.stderr
