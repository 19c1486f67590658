"""experiments/commands/evaluate.py and compare.py."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from experiments.runs.evaluate import references
from experiments.tracking import local
from experiments.tracking.store import Store
from experiments.tracking.writing import start_run
from simclr.errors import UserError
from simclr.evaluate.evaluations import EVALUATIONS
from simclr.model import RESNETS, WideResNet
from simclr.weights.start import cached_weights
from tests.experiments.commands.helpers import Run, assert_one_line


@pytest.fixture
def exported(run: Run, tmp_path: Path) -> Path:
    """The encoder of tiny-s0 in a file of its own."""
    assert run("export", "tiny-s0", "--out", "e.safetensors").exit_code == 0
    return tmp_path / "e.safetensors"


def table_of(output: str) -> dict[str, list[str]]:
    """The cells of each row of the table of results, by metric."""
    _, rows = re.split(r"\n-[- ]+\n", output)
    return {line.split()[0]: line.split()[1:] for line in rows.splitlines()}


def test_eval_shows_and_records_accuracies_next_to_their_baselines(run: Run, trained: Store) -> None:
    done = run("eval", "tiny-s0")
    assert done.exit_code == 0, done.output
    record = trained.find("tiny-s0")
    *first, header = done.stdout.partition("\n---")[0].splitlines()
    digest = record.tags["data_digest"][:8]
    title = f"run tiny-s0 ({record.short_id}) on digits (digest {digest}; images: 1,294 train, 144 val, 359 test)"
    legend = "Compare values only if they have the same protocol: the same images, split, layer and settings."
    legend += " kNN and the linear classifier use the labels of the 1,438 train and val images."
    assert " ".join(first) == f"{title}, layer h {legend} pixels is kNN on the raw pixels."
    assert re.split("  +", header.strip()) == [
        "trained",
        "95% interval",
        "untrained",
        "pixels",
        "chance",
        "protocol",
    ]
    assert list(table_of(done.stdout)) == ["knn_top1", "linear_top1", "linear_top5"]
    assert max(map(len, done.stdout.splitlines())) <= 80
    metrics, kept = record.metrics, references(record)["linear_top1"]
    trained_accuracy, low, _, high, untrained, _, chance, protocol = table_of(done.stdout)["linear_top1"]
    assert trained_accuracy == f"{metrics['eval/linear_top1']:.2%}"
    assert (low, high) == tuple(f"{100 * kept[end]:.1f}" for end in ("low", "high"))
    assert untrained == f"{kept['untrained']:.2%}"
    assert chance == f"{kept['chance']:.2%}"
    assert protocol == record.protocols["linear_top1"]
    assert kept["low"] < metrics["eval/linear_top1"] < kept["high"]
    assert metrics["eval/linear_top1"] > kept["chance"] + 0.1
    assert run("eval", "tiny-s0").stdout == done.stdout
    result = json.loads(run("eval", "tiny-s0", "--json").stdout)
    (figures,) = (row for row in result["results"] if row["metric"] == "linear_top1")
    assert figures["trained"] == pytest.approx(100 * metrics["eval/linear_top1"])
    assert figures["pixels"] == pytest.approx(100 * kept["pixels"])
    assert (result["run"], result["id"], figures["protocol"]) == ("tiny-s0", record.id, protocol)


def test_a_stock_encoder_is_judged_by_the_same_protocol(
    run: Run, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub/checkpoints/resnet18-f37072fd.pth"
    assert_one_line(run("eval", "tiny-s0", "--stock", "resnet18"), 2, f"are not in {cached.parent}, and this program")
    start = run("pretrain", "--config", "tiny.toml", "--init", "resnet18")
    assert_one_line(start, 2, f"are not in {cached.parent}, and this program")
    network = WideResNet(*RESNETS["resnet18"], 0.125, "imagenet")
    cached.parent.mkdir(parents=True)
    torch.save(network.state_dict(), cached)
    assert run("import", cached, "--dataset", "digits", "--name", "stock").exit_code == 0
    alone = table_of(run("eval", "stock", "--knn").stdout)
    for name in ("resnet18", cached):
        done = run("eval", "tiny-s0", "--knn", "--stock", name)
        assert done.exit_code == 0, done.output
        _, _, _, _, untrained, stock, *_ = table_of(done.stdout)["knn_top1"]
        assert stock == alone["knn_top1"][0] != untrained
        assert "stock is the encoder that --stock names" in " ".join(done.stdout.split())
    assert "stock" not in run("eval", "tiny-s0", "--knn").stdout
    refused = {
        ("resnet10",): "unknown file or network of torchvision 'resnet10'",
        (cached, "--layer", "z"): "--stock has no layer 'z'",
        (exported,): "was written by this suite",
    }
    for options, message in refused.items():
        assert_one_line(run("eval", "tiny-s0", "--knn", "--stock", *options), 2, message)


def test_only_networks_of_torchvision_are_suggested_as_stock_encoders() -> None:
    with pytest.raises(UserError, match="unknown file or network of torchvision 'vit_tiny_4'") as caught:
        cached_weights("vit_tiny_4")
    assert "vit_tiny_8" not in str(caught.value)


def test_every_evaluation_has_an_option(run: Run) -> None:
    shown = run("eval", "--help").stdout
    for name in EVALUATIONS:
        assert f"  --{name} " in shown


def test_an_exported_encoder_is_evaluated_like_its_run(run: Run, exported: Path) -> None:
    of_run, of_file = (run("eval", name, "--knn") for name in ("tiny-s0", exported))
    assert of_run.exit_code == of_file.exit_code == 0
    assert table_of(of_run.stdout) == table_of(of_file.stdout)


def test_classifiers_that_are_trained_with_sgd_have_intervals(run: Run) -> None:
    short = ["finetune.epochs=1", "finetune.seeds=2", "finetune.lr=[0.05]", "finetune.min_steps=2"]
    settings = [word for setting in (*short, "linear_sgd.epochs=1") for word in ("--set", setting)]
    done = run("eval", "tiny-s0", "--finetune", "0.5,1.0", "--linear-sgd", *settings)
    assert done.exit_code == 0, done.output
    assert "Fine-tuning is a mean over 2 seeds." in " ".join(done.stdout.split())
    rows = table_of(done.stdout)
    for metric in ("finetune_50pct_top1", "finetune_100pct_top1", "linear_sgd_top1"):
        accuracy, low, _, high, *baselines, _ = (cell.rstrip("%") for cell in rows[metric])
        assert float(low) <= float(accuracy) <= float(high)
        assert float(low) < float(high)
        assert all(0 <= float(baseline) <= 100 for baseline in baselines)
        # Fine-tuning has fewer labels than kNN on the raw pixels, which is no baseline of it.
        assert len(baselines) == (2 if metric.startswith("finetune") else 3)
    assert rows["finetune_50pct_std"][0].endswith("%")
    assert "finetune_100pct_lr" not in rows  # what was chosen is in --json


def test_layers_that_a_file_does_not_have_are_left_out(run: Run, exported: Path) -> None:
    assert_one_line(run("eval", exported, "--knn", "--layer", "z"), 2, "unknown layer 'z'")
    done = run("eval", exported, "--no-labels")
    assert done.exit_code == 0, done.output
    assert "alignment_h" in done.stdout
    assert "alignment_z" not in done.stdout


def test_an_encoder_can_be_evaluated_on_a_folder_without_labels(run: Run, images: Path) -> None:
    done = run("eval", "tiny-s0", "--no-labels", "--transfer", images / "flat")
    assert done.exit_code == 0, done.output
    assert "effective_rank_h" in done.stdout
    assert "alignment_z" in done.stdout


def test_compare_tests_an_evaluated_file_against_a_run(run: Run, exported: Path) -> None:
    of_file = run("eval", exported, "--knn").stdout.split()[1]
    assert run("eval", "tiny-s0", "--knn").exit_code == 0
    done = run("compare", of_file, "tiny-s0")
    assert done.exit_code == 0, done.output
    assert "(McNemar)" in done.stdout
    done = run("compare", "tiny-s0", "--format", "csv")
    assert pd.read_csv(io.StringIO(done.stdout))["kNN top-1"].dtype == float
    compared = json.loads(run("compare", of_file, "tiny-s0", "--json").stdout)
    assert [each["run"] for each in compared["runs"]] == [of_file, "tiny-s0"]
    (first, second) = ({row["metric"]: row["value"] for row in each["results"]} for each in compared["runs"])
    assert first["knn_top1"] == second["knn_top1"] > 1
    assert compared["tests"][0]["only A right"] == 0


def test_lost_or_damaged_predictions_are_an_error(run: Run, trained: Store) -> None:
    assert run("eval", "tiny-s0", "--knn").exit_code == 0
    file = trained.find("tiny-s0").artifact("knn_top1-predictions.npz")
    whole = file.read_bytes()
    flipped = bytes(byte ^ (position == len(whole) // 3) * 255 for position, byte in enumerate(whole))
    try:
        for damaged in (b"", whole[:100], flipped):
            file.write_bytes(damaged)
            assert_one_line(run("compare", "tiny-s0", "tiny-s0"), 2, "is damaged")
        file.unlink()
        assert_one_line(run("compare", "tiny-s0", "tiny-s0"), 2, "has no file 'knn_top1-predictions.npz'")
    finally:
        file.write_bytes(whole)


class Code:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


def test_weights_that_cannot_be_used_are_refused_and_never_run(run: Run, trained: Store) -> None:
    whole = trained.find("tiny-s0").artifact("model.safetensors").read_bytes()
    cases = {
        "half.safetensors": (whole[: len(whole) // 2], "can't be read as safetensors"),
        "code.safetensors": (pickle.dumps({"model": Code()}), "can't be read as safetensors"),
        "other.safetensors": (whole.replace(b"width = 0.125", b"width = 0.250"), "different architecture"),
    }
    for name, (content, message) in cases.items():
        Path(name).write_bytes(content)
        assert_one_line(run("eval", name), 2, message)
    torch.save({"model": Code()}, "code.pt")
    assert_one_line(run("eval", "code.pt"), 2, "Python objects")
    assert not Path("ran").exists()


WRONG = {
    "no such run": (["eval", "nothing"], "no run has the name 'nothing'"),
    "run as an option": (["eval", "--run", "tiny-s0"], "--run is an argument, not an option: write the value"),
    "evaluation as an argument": (["eval", "knn", "tiny-s0"], "did you mean --knn? See simclr eval --help"),
    "list without brackets": (["eval", "--set", "knn.k=20,200"], 'knn.k = "20,200": expected a list, such as [20,200]'),
    "metric last": (["plot", "tiny-s0", "loss"], "the metric comes first: simclr plot loss tiny-s0"),
    "no metric": (["plot", "tiny-s0"], "the metric comes first, and then the runs: simclr plot loss tiny-s0"),
    "only a metric": (["plot", "train/loss"], "the metric comes first, and then the runs: simclr plot train/loss RUN"),
    "no such file": (["eval", "no/such.pt"], "there is no file no/such.pt, and no run has that name"),
    "two folders": (
        ["eval", "tiny-s0", "--transfer", "IMAGES/two", "--data-dir", "IMAGES/one"],
        "leave out --data-dir",
    ),
    "built-in data": (["eval", "tiny-s0", "--data-dir", "IMAGES/two"], "'digits' is built in and reads no folder"),
    "no such layer": (["eval", "tiny-s0", "--layer", "g"], "unknown layer 'g'"),
    "pixels as a layer": (["eval", "tiny-s0", "--layer", "pixels"], "unknown layer 'pixels'"),
    "no such setting": (["eval", "tiny-s0", "--set", "knn.kk=3"], "did you mean 'knn.k'"),
    "layer without labels": (["eval", "tiny-s0", "--no-labels", "--layer", "z"], "--layer z"),
    "fractions": (["eval", "tiny-s0", "--finetune", "0.1,ten"], "--finetune '0.1,ten': expected fractions such as"),
    "fraction above one": (
        ["eval", "tiny-s0", "--finetune", "10"],
        "--finetune '10': expected fractions, so write 0.1 for 10 %",
    ),
    "crop": (["eval", "tiny-s0", "--set", "finetune.crop=[1,0.08]"], "finetune.crop"),
    "too large a k": (["eval", "tiny-s0", "--knn", "--set", "knn.k=5000"], "knn.k"),
    "no labels": (["eval", "tiny-s0", "--linear", "--transfer", "IMAGES/flat"], "--linear needs labels"),
    "one class": (["eval", "tiny-s0", "--knn", "--transfer", "IMAGES/one"], "--knn needs labels"),
    "no such data": (["eval", "tiny-s0", "--transfer", "cifar11"], "did you mean 'cifar1"),
    "its own images": (["eval", "tiny-s0", "--transfer", "digits"], "'digits' has"),
    "bad images": (["eval", "tiny-s0", "--on-bad-image", "skp"], "--on-bad-image 'skp': expected error, skip or"),
    "scaled for SGD": (
        ["eval", "tiny-s0", "--linear-sgd", "--set", "features=whitened"],
        "has no effect on --linear-sgd",
    ),
    "scaling": (["eval", "tiny-s0", "--set", "features=white"], "did you mean 'whitened'"),
    "no snapshots": (["eval", "tiny-s0", "--snapshots"], "kept no snapshots: to keep some, train it with --set"),
    "no run to measure": (["measures", "nothing"], "no run has the name 'nothing'"),
    "not evaluated": (["compare", "fresh-s1"], "has not been evaluated"),
    "table format": (["compare", "tiny-s0", "--format", "html"], "unknown format 'html'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_request_is_one_line_and_exit_code_2(case: str, run: Run, trained: Store, images: Path) -> None:
    if case == "not evaluated":
        start_run(trained, "fresh-s1", "pretrain", {}).finish("FINISHED")
    arguments, message = WRONG[case]
    assert_one_line(run(*(argument.replace("IMAGES", str(images)) for argument in arguments)), 2, message)


def test_warnings_about_images_are_in_the_json_too(run: Run, images: Path, tmp_path: Path) -> None:
    shutil.copytree(images / "two", tmp_path / "three")
    shutil.copytree(
        images / "one" / "a", tmp_path / "three" / "bb", ignore=lambda *_: [f"{i}.png" for i in range(2, 8)]
    )
    done = run("eval", "tiny-s0", "--knn", "--transfer", tmp_path / "three", "--set", "data.val_fraction=0.2", "--json")
    warning = "1 of 3 classes has fewer than 5 images: 'bb' (2)"
    assert any(text.startswith(warning) for text in json.loads(done.stdout)["warnings"])
    assert done.stderr.count(f"warning: {warning}") == 1


def test_with_few_images_k_is_capped_and_named(run: Run, trained: Store, images: Path) -> None:
    done = run("eval", "tiny-s0", "--knn", "--transfer", images / "two")
    assert done.exit_code == 0, done.output
    assert done.stderr.startswith("40 images, 2 classes from folder names: a, b; 32 train, 4 validation, 4 test\n")
    assert "knn_k36_top1" in done.stdout


def test_a_home_that_cannot_be_written_is_listed_and_evaluated_from(
    run: Run, trained: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "copy"
    shutil.copytree(trained.folder, home)
    monkeypatch.setenv("SIMCLR_HOME", str(home))
    monkeypatch.setattr(local, "can_write", lambda *places: False)

    def times() -> dict[Path, int]:  # SQLite's index of its log is no content
        return {path: path.stat().st_mtime_ns for path in home.rglob("*") if path.name != "mlflow.db-shm"}

    before = times()
    assert "tiny-s0" in run("runs").stdout
    done = run("eval", "tiny-s0", "--knn")
    assert done.exit_code == 0, done.output
    assert "knn_top1" in done.stdout
    assert f"these results were not recorded, because {home} is not writable" in " ".join(done.stderr.split())
    weights = Store(home).find("tiny-s0").artifact("model.safetensors")
    assert run("eval", weights, "--knn").stdout.startswith("the file on digits")
    assert times() == before


def test_a_network_that_was_fine_tuned_from_the_first_layer_of_the_head_can_teach_another(
    run: Run, trained: Store
) -> None:
    short = ["finetune.epochs=1", "finetune.seeds=1", "finetune.lr=[0.05]", "finetune.min_steps=2"]
    settings = [word for setting in short for word in ("--set", setting)]
    assert_one_line(run("eval", "tiny-s0", "--knn", "--keep"), 2, "--keep keeps one fine-tuned network")
    student = ["pretrain", "--config", "tiny.toml", "--method", "distill", "--set", "distill.teacher=tiny-s0"]
    student += ["--set", "model.out_dim=10", "--epochs", "1", "--name", "student"]
    assert_one_line(run(*student), 2, "has no file 'fine-tuned.safetensors'")
    for layer in ("h", "head.1"):
        done = run("eval", "tiny-s0", "--finetune", "0.5", "--layer", layer, "--keep", *settings)
        assert done.exit_code == 0, done.output
    protocols = trained.find("tiny-s0").protocols
    assert protocols["finetune_50pct_top1"] != protocols["head.1/finetune_50pct_top1"]
    done = run(*student)
    assert done.exit_code == 0, done.output
    assert "trained on labels" in done.stderr
    record = trained.find("student-s0")
    assert re.fullmatch(r".*/fine-tuned\.safetensors@[0-9a-f]{16}", record.params["distill.teacher"])
    assert record.metrics["train/agreement"] > 0


def test_means_over_draws_and_queries_have_intervals_and_chance_of_their_own(run: Run, trained: Store) -> None:
    settings = ["--set", "few_shot.draws=5", "--set", "features=standardised"]
    done = run("eval", "tiny-s0", "--few-shot", "--retrieval", *settings, "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["features"] == "standardised"
    rows = {row["metric"]: row for row in result["results"]}
    for metric in ("few_shot_5_top1", "retrieval_map"):
        row = rows[metric]
        assert row["chance"] < row["low"] < row["trained"] < row["high"] < 100
        assert row["pixels"] is None  # of kNN with all labels, which says nothing here
    kept = references(trained.find("tiny-s0"))["standardised/few_shot_5_top1"]
    assert 100 * kept["low"] == pytest.approx(rows["few_shot_5_top1"]["low"])
    assert "standardised features" in run("eval", "tiny-s0", "--knn", "--set", "features=standardised").stdout


def test_snapshots_are_shown_by_epoch_and_drawn(run: Run, tmp_path: Path) -> None:
    done = run("pretrain", "--config", "tiny.toml", "--set", "train.keep_every=1", "--name", "kept", "--seed", "3")
    assert done.exit_code == 0, done.output
    done = run("eval", "kept-s3", "--snapshots", "--knn")
    assert done.exit_code == 0, done.output
    assert [line.split()[0] for line in done.stdout.splitlines()[3:6]] == ["0", "1", "2"]
    assert "snapshots.png" in "".join(done.stdout.split())
    assert run("plot", "snapshots/knn_top1", "kept-s3", "--out", "s.png").exit_code == 0
    points = pd.read_csv(tmp_path / "s.csv")
    assert points["epoch"].tolist() == [1, 2]
    rows = json.loads(run("eval", "kept-s3", "--snapshots", "--knn", "--json").stdout)["snapshots"]
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert rows[1]["value"] == pytest.approx(100 * points["value"][0], abs=1e-3)
    assert rows[2]["low"] < rows[2]["value"] < rows[2]["high"]


def test_measures_say_what_they_need(run: Run) -> None:
    assert run("eval", "tiny-s0", "--linear", "--spectrum", "--set", "linear.l2_values=2").exit_code == 0
    assert_one_line(run("measures"), 2, "ranking needs at least 5 encoders that differ in more")
