"""The commands that judge, draw, import and export encoders."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from PIL import Image
from typer.testing import CliRunner

import cli
from experiments.runs import train
from experiments.tracking import Store
from simclr import load_encoder
from simclr.model import RESNETS, WideResNet
from tests.helpers import ROOT, tiny


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one trained run, and folders of images."""
    home = tmp_path_factory.mktemp("encoders")
    train.train(tiny(train={"epochs": 1}), Store(home))
    for label in ("a", "b"):
        (home / "images" / label).mkdir(parents=True)
        for n in range(30):
            pixels = np.random.default_rng(n).integers(0, 255, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(home / "images" / label / f"{n}.png")
    (home / "flat").mkdir()
    for n in range(12):
        Image.new("RGB", (16, 16), (20 * n, 0, 255 - 20 * n)).save(home / "flat" / f"{n}.png")
    return home


@pytest.fixture
def run(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Runs a command in an empty folder; its result."""
    monkeypatch.setenv("SIMCLR_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(cli.app, [str(a) for a in arguments])


def test_every_picture_and_file_is_written_where_it_was_asked_for(run, home: Path, tmp_path: Path) -> None:
    commands = [
        (["tsne", "tiny-s0", "--images", 100, "--perplexity", 5, "--out", "map"], ["map.png", "map.svg", "map.csv"]),
        (["neighbours", "tiny-s0", home / "flat" / "3.png", home / "flat" / "4.png", "--count", 3], ["neighbours.png"]),
        (["embed", "tiny-s0", home / "images", "--out", "f.npz", "--batch-size", 7], ["f.npz"]),
        (["export", "tiny-s0", "--out", "mine"], ["mine/tiny-safetensors.safetensors", "mine/tiny-safetensors.md"]),
    ]
    for command, files in commands:
        done = run(*command)
        assert done.exit_code == 0, done.output
        for file in files:
            assert (tmp_path / file).stat().st_size > 0
            assert Path(file).name in done.output or file.endswith((".svg", ".csv"))


def test_embedded_features_are_those_of_the_python_door(run, home: Path, tmp_path: Path) -> None:
    assert run("embed", "tiny-s0", home / "images", "--out", "f.parquet").exit_code == 0
    assert run("export", "tiny-s0", "--out", "e.safetensors").exit_code == 0
    encoder, table = load_encoder("e.safetensors"), pd.read_parquet("f.parquet")
    assert len(table) == 60
    for row in table.sample(5, random_state=0).itertuples():
        with torch.no_grad(), Image.open(row.file) as image:
            h = encoder(encoder.transform(image).unsqueeze(0))[0]
        np.testing.assert_allclose(row.features, h.numpy(), rtol=1e-4, atol=1e-5)


def test_an_exported_encoder_is_judged_like_its_run(run) -> None:
    assert run("export", "tiny-s0", "--out", "e.safetensors").exit_code == 0
    of_run, of_file = (run("eval", name, "--knn") for name in ("tiny-s0", "e.safetensors"))
    assert of_run.exit_code == of_file.exit_code == 0
    lines = [line.split() for done in (of_run, of_file) for line in done.stdout.splitlines()]
    figures = [line[:5] for line in lines if line and line[0] == "knn_top1"]
    assert figures[0] == figures[1]


def test_classifiers_trained_by_sgd_are_judged_with_intervals(run) -> None:
    short = ["finetune.epochs=1", "finetune.seeds=2", "finetune.lr=[0.05]", "finetune.min_steps=2"]
    short += ["linear_sgd.epochs=1"]
    settings = [word for text in short for word in ("--set", text)]
    done = run("eval", "tiny-s0", "--finetune", "0.5,1.0", "--linear-sgd", *settings)
    assert done.exit_code == 0, done.output
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    for metric in ("finetune_50pct_top1", "finetune_100pct_top1", "linear_sgd_top1"):
        trained, low, _, high, untrained, pixels, chance = [
            float(word.rstrip("%")) if word != "to" else 0 for word in lines[metric].split()[1:8]
        ]
        assert low <= trained <= high
        assert low < high
        assert all(0 <= figure <= 100 for figure in (untrained, pixels, chance))
    assert "finetune_50pct_std" in lines
    assert float(lines["finetune_100pct_lr"].split()[1]) == 0.05


def test_a_file_that_was_judged_can_be_compared(run) -> None:
    assert run("export", "tiny-s0", "--out", "e.safetensors").exit_code == 0
    judged = run("eval", "e.safetensors", "--knn")
    run_id = judged.stdout.split()[1]
    assert run("eval", "tiny-s0", "--knn").exit_code == 0
    done = run("compare", run_id, "tiny-s0")
    assert done.exit_code == 0, done.output
    assert "p (McNemar)" in done.output


def test_an_encoder_without_a_head_has_no_z(run) -> None:
    assert run("export", "tiny-s0", "--out", "e.safetensors").exit_code == 0
    refused = run("eval", "e.safetensors", "--knn", "--layer", "z")
    assert refused.exit_code == 2
    assert "unknown layer 'z'" in refused.stderr
    bare = run("eval", "e.safetensors", "--no-labels")
    assert bare.exit_code == 0, bare.output
    assert "alignment_h" in bare.stdout
    assert "alignment_z" not in bare.stdout


def test_lost_or_damaged_predictions_are_said_and_not_left_out(run, home: Path) -> None:
    assert run("eval", "tiny-s0", "--knn").exit_code == 0
    store = Store(home)
    kept = store.artifact(store.find("tiny-s0").info.run_id, "knn_top1-predictions.npz")
    whole = kept.read_bytes()
    flipped = bytes(byte ^ (position == len(whole) // 3) * 255 for position, byte in enumerate(whole))
    try:
        for bad in (b"", whole[:100], flipped):
            kept.write_bytes(bad)
            done = run("compare", "tiny-s0", "tiny-s0")
            assert done.exit_code == 2
            assert "is damaged: judge run" in done.stderr
        kept.unlink()
        assert "has no artifact" in run("compare", "tiny-s0", "tiny-s0").stderr
    finally:
        kept.write_bytes(whole)


def test_an_import_is_a_run_like_others(run, home: Path) -> None:
    network = torchvision.models.resnet18()
    torch.save({"state_dict": {f"backbone.{k}": v for k, v in network.state_dict().items()}}, "foreign.pth")
    done = run("import", "foreign.pth", "--dataset", "digits", "--side", 32, "--name", "theirs")
    assert done.exit_code == 0, done.output
    assert "resnet18, stem imagenet, width 1" in done.output
    assert "left out: backbone.fc.weight, backbone.fc.bias" in done.output
    judged = run("eval", "theirs", "--knn")
    assert judged.exit_code == 0, judged.output
    assert "knn_top1" in judged.output
    assert Store(home).find("theirs").data.params["data.normalize"] == "imagenet"
    compared = run("compare", "theirs", "theirs", "--format", "csv")
    assert compared.exit_code == 0, compared.output


BAD = {
    "no such run": (["eval", "nothing"], "no run is called 'nothing'"),
    "no such layer": (["eval", "tiny-s0", "--layer", "g"], "unknown layer 'g'"),
    "no such setting": (["eval", "tiny-s0", "--set", "knn.kk=3"], "did you mean 'knn.k'"),
    "layer without labels": (["eval", "tiny-s0", "--no-labels", "--layer", "z"], "leave --layer z out"),
    "fractions": (["eval", "tiny-s0", "--finetune", "0.1,ten"], "finetune.fractions"),
    "fraction above one": (["eval", "tiny-s0", "--finetune", "10"], "finetune.fractions.0 = 10"),
    "too large a k": (["eval", "tiny-s0", "--knn", "--set", "knn.k=5000"], "knn.k"),
    "fewer images than k": (
        ["eval", "tiny-s0", "--knn", "--transfer", "HOME/images"],
        "or judge by simclr eval RUN --knn --set",
    ),
    "no labels": (["eval", "tiny-s0", "--linear", "--transfer", "HOME/flat"], "--linear needs labels"),
    "one class": (["eval", "tiny-s0", "--knn", "--transfer", "HOME/one"], "--knn needs labels"),
    "no such data": (["eval", "tiny-s0", "--transfer", "cifar11"], "did you mean 'cifar1"),
    "pixels": (["eval", "tiny-s0", "--layer", "pixels"], "unknown layer 'pixels'"),
    "its own images": (["eval", "tiny-s0", "--transfer", "digits"], "is this encoder's own data set"),
    "crop": (["eval", "tiny-s0", "--set", "finetune.crop=[1,0.08]"], "finetune.crop"),
    "no such part": (["tsne", "tiny-s0", "--part", "all"], "unknown part 'all'"),
    "perplexity": (["tsne", "tiny-s0", "--images", "20"], "perplexity 30 with 20 images"),
    "no folder to draw in": (["tsne", "tiny-s0", "--out", "no/such"], "can't draw to no/such"),
    "a folder to draw to": (["tsne", "tiny-s0", "--out", "."], "can't draw to .: expected a file"),
    "a folder of curves": (["plot", "loss", "tiny-s0", "--out", "."], "can't draw to .: expected a file"),
    "too narrow": (["import", "HOME/narrow.pth", "--dataset", "digits"], "model.width = 0.0625"),
    "no image": (["neighbours", "tiny-s0", "HOME/mlflow.db"], "mlflow.db"),
    "no folder": (["embed", "tiny-s0", "nowhere"], "there is no folder nowhere"),
    "suffix": (["embed", "tiny-s0", "HOME/images", "--out", "f.csv"], "suffix"),
    "export format": (["export", "tiny-s0", "--format", "tf"], "unknown export format 'tf'"),
    "cannot hold it": (["export", "tiny-s0", "--format", "torchvision"], "choose from"),
    "no file": (["import", "nothing.pth"], "nothing.pth"),
    "not evaluated": (["compare", "fresh-s1"], "has not been evaluated"),
    "table format": (["compare", "tiny-s0", "--format", "html"], "unknown format 'html'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(case: str, run, home: Path) -> None:
    (home / "one" / "only").mkdir(parents=True, exist_ok=True)
    for n in range(8):
        Image.new("RGB", (16, 16), (30 * n, 0, 0)).save(home / "one" / "only" / f"{n}.png")
    if case == "not evaluated" and not Store(home).search("attributes.run_name = 'fresh-s1'"):
        train.train(tiny(name="fresh", seed=1, train={"epochs": 1}), Store(home))
    narrow = WideResNet(*RESNETS["resnet18"], 0.0625)
    narrow.set_stem("imagenet")
    torch.save(narrow.state_dict(), home / "narrow.pth")
    arguments, message = BAD[case]
    done = run(*(argument.replace("HOME", str(home)) for argument in arguments))
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_an_unlabelled_folder_is_judged_without_labels(run, home: Path) -> None:
    done = run("eval", "tiny-s0", "--no-labels", "--transfer", home / "flat")
    assert done.exit_code == 0, done.output
    assert "effective_rank_h" in done.output
    assert "alignment_z" in done.output


def test_the_python_in_the_readme_runs(run, home: Path, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(code.splitlines()) <= 15
    assert run("export", "tiny-s0", "--out", "shapes-safetensors.safetensors").exit_code == 0
    for name in ("one", "two"):
        Image.new("RGB", (40, 30), "red").save(tmp_path / f"{name}.jpg")
    scope: dict[str, object] = {}
    exec(code, scope)
    assert torch.isfinite(scope["loss"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "command", [["tsne", "tiny-s0"], ["neighbours", "tiny-s0", "HOME/flat/3.png"], ["embed", "tiny-s0", "HOME/flat"]]
)
def test_out_of_memory_is_a_sentence(command: list[str], run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **named: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr("simclr.model.SimCLR.normalize", full)
    done = run(*(argument.replace("HOME", str(home)) for argument in command))
    assert done.exit_code == 1
    assert done.stderr.startswith("failed: out of memory: ")
    assert "--device cpu" in done.stderr
