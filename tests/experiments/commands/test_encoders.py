"""experiments/commands/encoders.py."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from experiments.tracking.store import Store
from simclr import load_encoder
from simclr.model import RESNETS, WideResNet
from tests.experiments.commands.helpers import Run, assert_one_line
from tests.helpers import ROOT


def test_embedded_features_are_those_of_the_exported_encoder(run: Run, images: Path) -> None:
    done = run("embed", "tiny-s0", images / "two", "--out", "f.parquet", "--batch-size", 7)
    assert done.exit_code == 0, done.output
    assert done.stdout == "wrote f.parquet: 40 images, 64 features each\n"
    embedded = json.loads(run("embed", "tiny-s0", images / "two", "--out", "f.parquet", "--json").stdout)
    assert embedded == {"files": ["f.parquet"], "images": 40, "features": 64, "skipped": []}
    done = run("export", "tiny-s0", "--out", "mine")
    assert done.exit_code == 0, done.output
    file, card = "mine/tiny-s0.safetensors", "mine/tiny-s0.md"
    assert done.stdout.startswith(
        f"wrote {file}\nwrote {card}, which says how to load it\nchecked: the file, loaded as"
    )
    assert Path(card).stat().st_size > 0
    exported = json.loads(run("export", "tiny-s0", "--out", "mine", "--json").stdout)
    assert (exported["files"], exported["difference"] <= exported["tolerance"]) == ([file, card], True)
    encoder, table = load_encoder("mine/tiny-s0.safetensors"), pd.read_parquet("f.parquet")
    for row in table.sample(5, random_state=0).itertuples():
        with torch.no_grad(), Image.open(row.file) as image:
            h = encoder(encoder.transform(image).unsqueeze(0))[0]
        np.testing.assert_allclose(row.features, h.numpy(), rtol=1e-4, atol=1e-5)


def test_embed_can_skip_files_that_are_not_images(run: Run, tmp_path: Path) -> None:
    Path("mixed").mkdir()
    Image.new("RGB", (16, 16), "red").save("mixed/a.png")
    Path("mixed/b.png").write_text("not an image")
    assert_one_line(run("embed", "tiny-s0", "mixed", "--out", "f.npz"), 2, "--on-bad-image skip")
    assert_one_line(
        run("embed", "tiny-s0", "mixed", "--out", "f.npz", "--on-bad-image", "skip"),
        2,
        "allow more with --on-bad-image 0.5",
    )
    assert not Path("f.npz").exists()
    done = run("embed", "tiny-s0", "mixed", "--out", "f.npz", "--on-bad-image", "0.5")
    assert done.stdout == "wrote f.npz: 1 image, 64 features each\n"
    assert done.stderr.startswith(f"skipped: {Path('mixed/b.png').resolve()}")


def test_an_imported_encoder_is_a_run_like_others(run: Run, trained: Store) -> None:
    network = WideResNet(*RESNETS["resnet18"], 0.125, "imagenet")
    torch.save({"state_dict": {f"backbone.{k}": v for k, v in network.state_dict().items()}}, "foreign.pth")
    done = run("import", "foreign.pth", "--dataset", "digits", "--side", 32, "--name", "theirs")
    assert done.exit_code == 0, done.output
    record = trained.find("theirs")
    assert done.stdout.splitlines() == [
        f"run theirs ({record.short_id}): resnet18, stem imagenet, width 0.125",
        "images are normalised with 'imagenet': if the encoder was trained with another normalisation, add --normalize",
        "left out: backbone.fc.weight, backbone.fc.bias",
        "next: simclr eval theirs",
    ]
    assert record.params["data.normalize"] == "imagenet"
    evaluated = run("eval", "theirs", "--knn")
    assert evaluated.exit_code == 0, evaluated.output
    assert "knn_top1" in evaluated.stdout
    assert run("compare", "theirs").exit_code == 0


def test_a_stem_that_the_weights_do_not_show_is_a_warning(run: Run) -> None:
    network = WideResNet(*RESNETS["resnet10"], 0.125, "stride2")
    torch.save(network.state_dict(), "plain.pth")
    done = run("import", "plain.pth", "--dataset", "digits")
    assert "warning: the weights fit the stem cifar, but also cifar_no_relu or cifar_pad2 or stride2: if" in done.stderr
    assert "warning" not in run("import", "plain.pth", "--dataset", "digits", "--stem", "stride2").stderr


@pytest.mark.parametrize(
    ("number", "code", "message"), [(torch.nan, 2, "numbers in conv1.weight are not finite"), (0.0, 1, "has collapsed")]
)
def test_an_encoder_that_computes_nothing_is_not_imported(
    number: float, code: int, message: str, run: Run, trained: Store
) -> None:
    network, before = WideResNet(*RESNETS["resnet10"], 0.125, "imagenet"), len(trained.records())
    state = network.state_dict()
    torch.save({name: torch.full_like(value, number) for name, value in state.items() if value.dim()}, "f")
    done = run("import", "f", "--dataset", "digits", "--side", 32)
    assert_one_line(done, code, message)
    assert len(trained.records()) == before


def test_the_python_code_in_the_docs_runs(run: Run, tmp_path: Path) -> None:
    page = ROOT / "docs/guides/import-and-export.md"
    code, load, label, folders = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert all(len(each.splitlines()) <= 15 for each in (code, load, label, folders))
    assert run("export", "tiny-s0", "--out", "shapes-s0.safetensors").exit_code == 0
    for name in ("one", "two"):
        Image.new("RGB", (40, 30), "red").save(tmp_path / f"{name}.jpg")
    scope: dict[str, object] = {}
    exec(code, scope)
    assert torch.isfinite(scope["loss"])  # type: ignore[arg-type]
    for folder, colour in {"a": "red", "b": "blue", "unsorted": "#0000ee"}.items():
        (tmp_path / "photos" / folder).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (16, 16), colour).save(tmp_path / "photos" / folder / f"{number}.png")
    assert run("embed", "tiny-s0", tmp_path / "photos").exit_code == 0
    exec(load, scope := {})
    assert scope["features"].shape[0] == len(scope["table"]["file"]) == 6
    assert run("embed", "tiny-s0", tmp_path / "photos", "--out", "features.csv").exit_code == 0
    assert pd.read_csv("features.csv")["file"].tolist()[:2] == ["a/0.png", "a/1.png"]  # as in a table of labels
    Path("labels.csv").write_text("file,label\na/0.png,red\nb/0.png,blue\nb/gone.png,blue\n")
    exec(label, scope := {})
    suggested = pd.read_csv("suggested.csv", index_col="file")["label"].to_dict()
    blue = dict.fromkeys(("b/1.png", "unsorted/0.png", "unsorted/1.png"), "blue")
    assert suggested == {"a/1.png": "red", **blue}
    exec(folders, scope)
    assert scope["labels"].dropna().to_dict() == {f"{name}/{number}.png": name for name in "ab" for number in (0, 1)}


def test_files_that_a_run_skips_are_skipped_by_embed_too(run: Run, images: Path, tmp_path: Path) -> None:
    shutil.copytree(images / "flat", tmp_path / "photos")
    (tmp_path / "photos/broken.png").write_bytes(b"\x89PNG")
    assert_one_line(run("embed", "tiny-s0", "photos", "--out", "new/f.csv"), 2, "broken.png")
    assert not Path("new").exists()
    small = ["--dataset", "folder", "--set", "data.side=16", "--epochs", 1, "--batch-size", 8, "--name", "skips"]
    given = ["--data-dir", "photos", "--on-bad-image", "skip", "--seed", 2]
    done = run("pretrain", "--config", "tiny.toml", *given, *small)
    assert done.exit_code == 0, done.output
    done = run("embed", "skips-s2", "photos", "--out", "f.csv")
    assert done.exit_code == 0, done.output
    assert "skipped: " in done.stderr
    assert len(pd.read_csv("f.csv")) == 40
    assert_one_line(run("embed", "skips-s2", "photos", "--on-bad-image", "error"), 2, "broken.png")


WRONG = {
    "no folder": (["embed", "tiny-s0", "nowhere"], "nowhere: give the folder or the file that holds your images"),
    "a misspelt folder": (["embed", "tiny-s0", "IMAGES/flap"], "IMAGES/flap: did you mean 'IMAGES/flat'?"),
    "a folder in a file": (["embed", "tiny-s0", ".", "--out", "tiny.toml/f.npz"], "tiny.toml is a file, not a folder"),
    "an export in a file": (["export", "tiny-s0", "--out", "tiny.toml/e"], "tiny.toml is a file, not a folder"),
    "import format": (["import", "nothing.pth", "--format", "tf"], "unknown format 'tf': choose from auto, "),
    "suffix": (
        ["embed", "tiny-s0", "IMAGES/two", "--out", "f.txt"],
        "expected a name ending in .parquet or .npz or .csv",
    ),
    "export format": (["export", "tiny-s0", "--format", "tf"], "unknown export format 'tf'"),
    "cannot hold it": (["export", "tiny-s0", "--format", "torchvision"], "choose from"),
    "no file": (["import", "nothing.pth"], "nothing.pth"),
    "too narrow": (["import", "narrow.pth", "--dataset", "digits"], "model.width = 0.0625"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_request_is_one_line_and_exit_code_2(case: str, run: Run, images: Path) -> None:
    if case == "too narrow":
        narrow = WideResNet(*RESNETS["resnet18"], 0.0625, "imagenet")
        torch.save(narrow.state_dict(), "narrow.pth")
    arguments, message = WRONG[case]
    done = run(*(argument.replace("IMAGES", str(images)) for argument in arguments))
    assert_one_line(done, 2, message.replace("IMAGES", str(images)))
