"""experiments/commands/pretrain.py."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from time import monotonic

import pandas as pd
import pytest
from PIL import Image
from typer.testing import Result

from experiments.commands.pretrain import TrainingTerminal
from experiments.runs import estimate as estimating
from experiments.runs.prepare import Prepared
from experiments.tracking.store import Record, Store
from simclr.config import Config
from tests.experiments.commands.helpers import Run, assert_one_line
from tests.helpers import ROOT, tiny


def test_pretrain_shows_progress_and_records_a_run(training: tuple[Store, Result]) -> None:
    store, done = training
    record = store.find("tiny-s0")
    began, *epochs = done.stderr.splitlines()
    end, hint = done.stdout.splitlines()
    assert began == f"run tiny-s0 ({record.short_id}): 10 steps; guessing gives a loss of 6.24"
    assert epochs[-1].startswith("epoch 2.0/2 loss ")
    knn = f"val kNN {record.metrics['val/knn_top1']:.1%} contrastive top-1 "
    assert end.startswith(f"done: tiny-s0: loss {record.metrics['train/loss']:.2f} {knn}")
    assert hint == "next: simclr eval tiny-s0   or   simclr ui"
    assert record.finished
    assert record.metrics["perf/images_per_second"] > 0
    commit = ["git", "log", "-1", "--format=%H", "--", "cli.py"]
    if subprocess.run(commit, cwd=ROOT, capture_output=True, text=True).stdout:  # empty outside a git checkout
        assert record.tags["git_dirty"] in ("true", "false")


def test_a_finished_config_is_not_trained_again(run: Run, trained: Store) -> None:
    done = run("pretrain", "--config", "tiny.toml", "--name", "same-config")
    assert done.exit_code == 0
    record = trained.find("tiny-s0")
    unused = "(so the name same-config-s0 is not used)"
    assert f"run tiny-s0 ({record.short_id}) has already trained this config {unused}: add --again" in done.stderr
    assert [record.name for record in trained.records(kind="pretrain")].count("same-config-s0") == 0
    weights = trained.find("tiny-s0").artifact("model.safetensors")
    weights.rename(weights.with_name("away"))
    done = run("pretrain", "--config", "tiny.toml", "--name", "same-config")
    weights.with_name("away").rename(weights)
    assert done.exit_code == 2
    assert done.stderr.endswith("its weights were deleted: to train it again, add --again to its command\n")


def test_a_run_starts_from_another_which_is_a_baseline_of_its_evaluation(run: Run, trained: Store) -> None:
    done = run("pretrain", "--config", "tiny.toml", "--init", "tiny-s0", "--epochs", 1, "--seed", 5)
    assert done.exit_code == 0, done.output
    record = trained.find("tiny-init=tiny-s0-epochs=1-s5")
    assert record.tags["start"] == "tiny-s0"
    assert record.params["init"].startswith(f"{trained.find('tiny-s0').artifact('model.safetensors')}@")
    own, onward = (
        {row["metric"]: row for row in json.loads(run("eval", name, "--knn", "--json").stdout)["results"]}
        for name in ("tiny-s0", record.name)
    )
    assert onward["knn_top1"]["start"] == own["knn_top1"]["trained"]
    assert own["knn_top1"]["start"] is None
    assert " start " in run("eval", record.name, "--knn").stdout
    done = run("report", record.name, "--out", "report")
    page = next(Path("report").rglob("*.html")).read_text()
    assert "started from tiny-s0" in page
    assert "Before training" in page


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("nothing.pth", ": there is no such file, and no run has that name. "),
        ("nothing-s0", " is neither a file nor a finished run that has one: "),
    ],
)
def test_a_start_that_is_no_file_and_no_run_is_refused(name: str, why: str, run: Run) -> None:
    done = run("pretrain", "--config", "tiny.toml", "--init", name)
    assert_one_line(done, 2, f"init = '{name}'{why}")


def test_a_dry_run_shows_the_cost_and_starts_no_run(run: Run, trained: Store) -> None:
    before = len(trained.records())
    done = run("pretrain", "--config", "tiny.toml", "--dry-run", "--temperature", "0.3")
    assert done.exit_code == 0, done.output
    assert "temperature = 0.3" in done.stdout
    rows = dict(line.split(maxsplit=1) for line in done.stdout.splitlines()[-7:])
    assert list(rows) == ["key", "images", "steps", "parameters", "device", "memory", "time"]
    assert rows["steps"] == "10 (5 per epoch)"
    assert rows["memory"].endswith(" MiB, no micro-batches (predicted)")
    assert rows["time"].endswith(" s per step, measured)")
    assert len(trained.records()) == before


def test_a_dry_run_says_where_bfloat16_is_no_faster(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"bf16": 2.0, "fp32": 1.5}
    monkeypatch.setattr(estimating, "timed_steps", lambda config, *_, **options: seconds[config.train.precision])
    done = run("pretrain", "--config", "tiny.toml", "--dry-run", "--precision", "bf16")
    last = done.stdout.splitlines()[-1]
    assert last == "precision   bf16 is currently no faster than fp32 on this CPU (2.000 and 1.500 s per step)"


def test_a_stopped_run_says_how_to_resume_it(run: Run, trained: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["pretrain", "--config", "tiny.toml", "--name", "stopped", "--seed", 1]
    with monkeypatch.context() as patch:
        patch.setattr(TrainingTerminal, "stop", lambda self: bool(self.latest))
        patch.setattr("sys.argv", ["cli.py", *map(str, command), "--again"])
        done = run(*command)
    assert done.exit_code == 130
    *_, last = done.stderr.splitlines()
    assert last.startswith("stopped after step ")
    assert last.endswith(f": resume it with `simclr {' '.join(map(str, command))} --resume`")
    (record,) = [record for record in trained.records() if record.name == "stopped-s1"]
    assert record.status == "KILLED"
    assert_one_line(run(*command), 2, f"run {record.short_id} of this config did not finish: add --resume")
    assert run(*command, "--resume").exit_code == 0
    assert trained.get(record.id).finished


def test_a_run_that_diverges_fails_with_its_reason(run: Run, trained: Store) -> None:
    sgd = ["--set", "optim.name=sgd", "--set", "optim.weight_decay=0", "--lr", "1e30"]
    assert_one_line(run("pretrain", "--config", "tiny.toml", *sgd, "--name", "diverged"), 1, "training diverged")
    (record,) = [record for record in trained.records() if record.name == "diverged-s0"]
    assert record.status == "FAILED"
    assert "training diverged" in record.tags["error"]


def test_a_time_budget_says_what_it_chose(run: Run, trained: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    tagged: list[dict[str, str]] = []

    def choose(config: Config, time: object, *arguments: object, **options: object) -> tuple[Config, str]:
        return config.model_copy(update={"train": config.train.model_copy(update={"epochs": 1})}), "a-request"

    def train(prepared: Prepared, store: Store, *, tags: dict[str, str], **options: object) -> Record:
        assert prepared.config.train.epochs == 1
        tagged.append(tags)
        return trained.find("tiny-s0")

    monkeypatch.setattr("experiments.configs.time_budget.choose_config", choose)
    monkeypatch.setattr("experiments.runs.train.train", train)
    done = run("pretrain", "--config", "tiny.toml", "--hours", 1)
    assert done.exit_code == 0, done.output
    assert done.stderr.startswith(
        "chosen for the time budget: resnet18 of width 0.125, stride2 stem, images of 16 px, 1 epoch, batches of 256\n"
    )
    assert tagged == [{"request": "a-request"}]


def test_images_without_labels_can_be_trained_on_and_evaluated(run: Run, images: Path) -> None:
    small = ["--dataset", "folder", "--set", "data.side=16", "--epochs", 1, "--batch-size", 8]
    done = run("pretrain", "--config", "tiny.toml", "--data-dir", images / "flat", *small, "--name", "unlabelled")
    assert done.exit_code == 0, done.output
    following = ("eval unlabelled-s0 --no-labels", "explore unlabelled-s0", "neighbours unlabelled-s0 PHOTO")
    assert done.stdout.splitlines()[-1] == "next: " + "   or   ".join(f"simclr {each}" for each in following)
    assert " (chance 6.7%)" in done.stdout
    done = run("eval", "--no-labels")
    assert done.exit_code == 0, done.output
    assert done.stderr.startswith("using unlabelled-s0 (")
    assert "; images: 40 without labels), layer h Compare " in done.stdout.replace("\n", " ")
    found = "finds the other view of the same image among 15 views of 8 images (chance 6.7 %, untrained"
    assert found in done.stdout.replace("\n", " ")
    assert "An effective rank is at most 64 for h and " in done.stdout.replace("\n", " ")
    assert "alignment_h" in done.stdout
    Image.new("RGB", (20, 20)).save(images / "flat" / "new.png")
    done = run("eval", "--no-labels")
    (images / "flat" / "new.png").unlink()
    assert done.exit_code == 0, done.output
    assert "the images of flat have changed since this encoder was trained on them (40 then, 41 now)" in done.stderr
    assert_one_line(run("eval", "unlabelled-s0", "--knn"), 2, "--knn needs labels")


def test_plain_eval_of_images_without_labels_is_what_messages_suggest(run: Run, images: Path) -> None:
    small = ["--dataset", "folder", "--set", "data.side=16", "--epochs", 1, "--batch-size", 8, "--name", "plain"]
    done = run("pretrain", "--config", "tiny.toml", "--data-dir", images / "two", "--unlabelled", "--seed", 1, *small)
    assert done.exit_code == 0, done.output
    assert_one_line(run("compare", "plain-s1"), 2, "run `simclr eval plain-s1`")
    asked, plain = run("eval", "plain-s1", "--no-labels"), run("eval", "plain-s1")
    assert plain.exit_code == 0, plain.output
    assert plain.stdout == asked.stdout
    said = (
        "two has no labels, so only what needs no labels is measured, as with --no-labels. For accuracies, add "
        "--labels TABLE\n"
    )
    assert said in plain.stderr
    assert said not in asked.stderr
    assert run("eval", "tiny-s0", "--knn").exit_code == 0
    compared = " ".join(run("compare", "plain-s1", "tiny-s0").stdout.split())
    assert "evaluate each on the same other images: `simclr eval RUN --transfer FOLDER`" in compared
    one = run("eval", "tiny-s0", "--transfer", images / "one")
    assert one.exit_code == 0, one.output
    assert "one has only one class, so only what needs no labels is measured" in one.stderr
    assert_one_line(run("eval", "plain-s1", "--set", "data.val_fraction=0.3", "--knn"), 2, "leave it out")


def test_the_folders_of_unlabelled_images_are_no_classes_wherever_they_are_looked_at(
    run: Run, images: Path, tmp_path: Path
) -> None:
    small = ["--dataset", "folder", "--set", "data.side=16", "--epochs", 1, "--batch-size", 8, "--name", "plain"]
    done = run("pretrain", "--config", "tiny.toml", "--data-dir", images / "two", "--unlabelled", "--seed", 1, *small)
    assert done.exit_code == 0, done.output
    moved, photo = tmp_path / "moved", images / "flat/0.png"
    shutil.copytree(images / "two", moved)
    for looked in (
        ["explore", "plain-s1", moved],
        ["explore", "plain-s1", "--data-dir", moved],
        ["neighbours", "plain-s1", photo, "--among", moved],
        ["neighbours", "plain-s1", photo, "--data-dir", moved],
    ):
        done = run(*looked)
        assert done.exit_code == 0, done.output
        assert "40 images, without labels" in done.stderr, looked
    for labelled in (
        ["explore", "plain-s1", moved, "--set", "data.unlabelled=false"],
        ["eval", "plain-s1", "--knn", "--transfer", moved],  # to be judged by labels
        ["eval", "plain-s1", "--knn", "--transfer", images / "two"],
    ):
        done = run(*labelled)
        assert done.exit_code == 0, done.output
        assert "2 classes from folder names" in done.stderr, labelled


def test_photos_that_were_trained_on_without_labels_can_be_labelled_afterwards(
    run: Run, images: Path, tmp_path: Path
) -> None:
    shutil.copytree(images / "two", tmp_path / "copy")
    names = sorted(path.relative_to(images / "two").as_posix() for path in (images / "two").rglob("*.png"))
    rows = [f"{name},{'ab'[number % 2]}" for number, name in enumerate(names[:30])]
    Path("labels.csv").write_text("\n".join(["file,label", *rows]))
    Path("blank.csv").write_text("\n".join(["file,about", *(f"{name}," for name in names)]))
    small = ["--dataset", "folder", "--set", "data.side=16", "--epochs", 1, "--batch-size", 8, "--name", "later"]
    done = run("pretrain", "--config", "tiny.toml", "--data-dir", images / "two", "--unlabelled", *small)
    assert done.exit_code == 0, done.output
    seen = "was trained on images of {} without labels, so it may have seen test images"
    places = {(): "two", ("--transfer", images / "two"): "two", ("--data-dir", tmp_path / "copy"): "copy"}
    for place, name in (places | {("--transfer", tmp_path / "copy"): "copy"}).items():
        done = run("eval", "later-s0", "--knn", "--labels", "labels.csv", *place)
        assert done.exit_code == 0, done.output
        assert "30 images, 2 classes from labels.csv: a, b; 24 train, 3 validation, 3 test" in done.stderr
        assert seen.format(name) in done.stderr
    done = run("eval", "later-s0", "--knn", "--labels", "labels.csv", "--set", "data.val_fraction=0.3")
    assert done.exit_code == 0, done.output
    assert "12 train, 9 validation, 9 test" in done.stderr
    done = run("explore", "later-s0", images / "two", "--labels", "labels.csv")
    assert "30 images, 2 classes from labels.csv" in done.stderr
    assert seen.format("two") not in done.stderr  # nothing is measured
    done = run("eval", "later-s0", "--knn", "--set", "data.unlabelled=false")  # they were sorted into folders
    assert "2 classes from folder names" in done.stderr
    for command in (["eval", "later-s0", "--no-labels"], ["explore", "later-s0", images / "two"]):
        assert_one_line(run(*command, "--labels", "blank.csv"), 2, "gives no image of two a label")
    Path("others.csv").write_text(
        "\n".join(["file,label", *(f"{number}.png,{'ab'[number % 2]}" for number in range(40))])
    )
    others = run("eval", "later-s0", "--knn", "--data-dir", images / "flat", "--labels", "others.csv")
    assert_one_line(others, 2, "differ from those that this encoder was trained on")


def test_figures_of_other_labels_are_left_out_when_a_run_is_evaluated_with_new_ones(
    run: Run, trained: Store, images: Path
) -> None:
    for name, count in {"many.csv": 40, "few.csv": 24}.items():
        rows = [f"{number}.png,{'ab'[number % 2]}" for number in range(count)]
        Path(name).write_text("\n".join(["file,label", *rows]))
    small = ["--dataset", "folder", "--set", "data.side=16", "--epochs", 1, "--batch-size", 8, "--seed", 7]
    for command in (
        ["pretrain", "--config", "tiny.toml", "--data-dir", images / "flat", *small, "--name", "relabelled"],
        ["eval", "relabelled-s7", "--no-labels"],
        ["eval", "relabelled-s7", "--knn", "--linear", "--labels", "many.csv"],
    ):
        done = run(*command)
        assert done.exit_code == 0, done.output
    before = trained.find("relabelled-s7").protocols
    (old,) = (metric for metric in before if metric.startswith("knn_") and metric.endswith("_top1"))
    assert "linear_top1" in before
    said = "earlier results of relabelled-s7 are for other labels or test images, and are left out from now on: "
    done = run("eval", "relabelled-s7", "--knn", "--labels", "few.csv")
    assert said in _flat(done.stderr)
    assert old in done.stderr
    record = trained.find("relabelled-s7")
    (new,) = (metric for metric in record.protocols if metric.startswith("knn_") and metric.endswith("_top1"))
    assert new != old
    assert "linear_top1" not in record.protocols
    assert record.protocols["contrastive_h_top1"] == before["contrastive_h_top1"]  # which needs no labels
    kept = set(pd.read_csv(record.artifact("evaluations.csv"))["metric"])
    assert kept == set(record.protocols)
    (row,) = (row for row in json.loads(run("runs", "--json").stdout) if row["name"] == "relabelled-s7")
    assert row["linear"] is None
    assert row["knn_protocol"] == record.protocols[new]
    page = run("report", "relabelled-s7", "--out", "report")
    assert "Accuracies are for the labels in few.csv (24 images with labels)." in _flat(page.output)
    html = next(Path("report").rglob("*.html")).read_text()
    assert "few.csv (24 images with labels)" in html
    assert re.search(r"With only \d+ test images, this says little\.", html)
    done = run("export", "relabelled-s7", "--out", "card/encoder.safetensors")
    assert done.exit_code == 0, done.output
    card = next(Path("card").glob("*.md")).read_text()
    assert "few.csv (24 images with labels)" in card
    assert "linear_top1" not in card
    again = run("eval", "relabelled-s7", "--linear", "--labels", "few.csv")
    assert said not in _flat(again.stderr)
    assert {new, "linear_top1"} <= trained.find("relabelled-s7").protocols.keys()


def test_labels_that_come_later_are_refused_only_if_a_start_may_have_read_them(
    run: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMCLR_HOME", str(tmp_path / "home"))
    names = sorted(path.relative_to(images / "two").as_posix() for path in (images / "two").rglob("*.png"))
    Path("labels.csv").write_text(
        "\n".join(["file,label", *(f"{name},{name[-5]}" for name in names if name[-5] < "3")])
    )
    small = ["--dataset", "folder", "--data-dir", images / "two", "--set", "data.side=16", "--epochs", 1]

    def train(name: str, *options: str) -> None:
        done = run("pretrain", "--config", "tiny.toml", *small, "--batch-size", 8, "--name", name, *options)
        assert done.exit_code == 0, done.output

    train("first", "--unlabelled")
    train("reader", "--method", "supcon", "--init", "first-s0")
    for name, start in {"more": "first", "after": "reader", "last": "after"}.items():
        train(name, "--unlabelled", "--init", f"{start}-s0")
    labelled = ("--knn", "--labels", "labels.csv")
    note = "without labels, so it may have seen test images, but none of their labels"
    (tmp_path / "home").rename(tmp_path / "moved")
    monkeypatch.setenv("SIMCLR_HOME", str(tmp_path / "moved"))
    done = run("eval", "more-s0", *labelled)
    assert done.exit_code == 0, done.output
    assert note in done.stderr
    assert " start " in done.stdout  # whose weights have moved with the home
    config = Store(tmp_path / "moved").find("more-s0").artifact("config.toml")
    onward = run("pretrain", "--config", config, "--seed", 3)
    assert onward.exit_code == 0, onward.output
    assert "training starts from the weights of " in onward.stderr
    done = run("eval", "last-s0", *labelled)
    assert_one_line(done, 2, "started from reader-s0, which was trained on labels")
    assert "--transfer FOLDER" in done.stderr
    assert run("eval", "last-s0", "--knn", "--transfer", "digits").exit_code == 0
    by_folder = run("eval", "last-s0", "--knn", "--set", "data.unlabelled=false")
    assert by_folder.exit_code == 0, by_folder.output  # reader-s0 held the same images out
    train("divided", "--method", "supcon", "--set", "data.split_seed=1")  # which holds out others
    train("onto", "--unlabelled", "--init", "divided-s0")
    by_folder = run("eval", "onto-s0", "--knn", "--set", "data.unlabelled=false")
    assert_one_line(by_folder, 2, "started from divided-s0, which was trained on labels")
    told = _flat(run("delete", "first-s0", "--yes").stderr)
    assert "Runs that started from these weights: more-s3, more-s0, reader-s0. They are kept" in told
    done = run("eval", "more-s0", *labelled)
    assert done.exit_code == 0, done.output
    assert note in done.stderr
    assert done.stderr.count("No such file") == 0
    assert 'the column "start" is left out, because the training started from ' in _flat(done.stderr)
    assert " start " not in done.stdout
    run("delete", "reader-s0", "--yes")
    assert_one_line(run("eval", "last-s0", *labelled), 2, "started from reader-s0, which was trained on labels")


def _flat(text: str) -> str:
    return " ".join(text.split())


def test_images_whose_labels_were_trained_on_are_refused_in_a_changed_copy_too(
    run: Run, images: Path, tmp_path: Path
) -> None:
    small = ["--dataset", "folder", "--set", "data.side=16", "--epochs", 1, "--batch-size", 8, "--name", "told"]
    done = run("pretrain", "--config", "tiny.toml", "--data-dir", images / "two", "--method", "supervised", *small)
    assert done.exit_code == 0, done.output
    shutil.copytree(images / "two", tmp_path / "copy")
    (tmp_path / "copy/a/0.png").rename(tmp_path / "copy/b/moved.png")
    refused = run("eval", "told-s0", "--knn", "--transfer", tmp_path / "copy")
    assert_one_line(refused, 2, "has images that this encoder was trained on")


def test_where_there_is_no_terminal_a_long_run_is_reported_in_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = TrainingTerminal(tiny(method="byol", train={"epochs": 100}))
    terminal.began("a-run", 3000)
    assert "hidden layers: add --set model.head_batch_norm=hidden" in capsys.readouterr().err
    for step in range(1000, 3001):  # it was resumed
        terminal.metrics({"train/loss": 3.0, "val/knn_top1": 0.5}, step)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch")]
    assert 10 < len(lines) < 20
    assert lines[-1] == "epoch 100.0/100 loss 3.00 val kNN 50.0%"


def test_a_figure_of_before_is_not_shown_as_a_new_one_and_the_time_left_is_that_of_the_mean_speed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    terminal = TrainingTerminal(tiny(train={"epochs": 10, "batch_size": 10}))
    terminal.began("a-run", 200)
    for step, speed in ((10, 10.0), (20, 1.0), (30, 10.0)):
        measured = {"val/knn_top1": 0.5} if step == 10 else {}
        terminal.metrics({"train/loss": 3.0, "perf/images_per_second": speed, **measured}, step)
    first, second, third = capsys.readouterr().err.splitlines()[1:]
    assert first == "epoch 0.5/10 loss 3.00 val kNN 50.0% 10 img/s, about 3 min left"
    assert second == "epoch 1.0/10 loss 3.00 1 img/s, about 16 min left"  # 180 steps of 5.5 s
    assert third == "epoch 1.5/10 loss 3.00 10 img/s, about 11 min left"  # 170 steps of 4 s


def test_a_run_that_will_exceed_its_time_says_so_once(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = TrainingTerminal(tiny(train={"epochs": 10, "batch_size": 10}), ends=monotonic() + 100)
    terminal.began("a-run", 1000)
    for step in range(0, 1000, 10):  # 1 s per step
        terminal.metrics({"train/loss": 3.0, "perf/images_per_second": 10.0}, step + 10)
    lines = capsys.readouterr().err.splitlines()[1:]
    assert lines[0] == "epoch 0.1/10 loss 3.00 10 img/s, about 16 min left"
    assert [line for line in lines if "slower" in line] == [
        "this machine has become slower since its speed was measured: training takes about 16 min more, and ends about "
        "14 min after the time budget"
    ]


def test_a_bar_fits_a_terminal_of_80_columns_except_for_the_speed() -> None:
    terminal = TrainingTerminal(tiny(train={"epochs": 100, "batch_size": 128}))
    terminal.step, terminal.steps = 300, 1000
    terminal.latest = {
        "train/loss": 3.93,
        "train/contrastive_top1": 0.125,
        "val/knn_top1": 0.764,
        "perf/images_per_second": 1082.4,
    }
    shown = "epoch 30.0/100 loss 3.93 val kNN 76.4% contrastive top-1 12.5%"
    assert terminal.status() == f"{shown} 1082 img/s"
    bar = "━━━━━━ 00:10 "
    assert len(bar + shown) <= 80


WRONG = {
    "preset": (["--preset", "shaps"], "unknown preset 'shaps': did you mean 'shapes'?"),
    "data set": (["--dataset", "cifar"], "unknown data set 'cifar': did you mean 'cifar10'?"),
    "augmentation": (["--drop", "colour_jitter"], "unknown augmentation 'colour_jitter': did you mean 'color_jitter'?"),
    "backbone": (["--backbone", "resnet17"], "unknown backbone 'resnet17': did you mean 'resnet"),
    "setting": (["--set", "loss.temprature=1"], "unknown setting 'loss.temprature': did you mean 'loss.temperature'?"),
    "temperature": (["--temperature", "0"], "loss.temperature = 0.0: expected at least 0.01"),
    "batch of one": (["--batch-size", "1"], "train.batch_size = 1: expected at least 2"),
    "batch over data": (["--dataset", "digits", "--batch-size", "5000"], "train.batch_size = 5000 is larger than"),
    "no folder": (["--dataset", "folder"], "--data-dir"),
    "missing folder": (["--dataset", "folder", "--data-dir", "nowhere"], "nowhere"),
    "text files": (["--dataset", "folder", "--data-dir", "texts"], "ignored 2 files that can't be images"),
    "resume and again": (["--resume", "--again", "--dry-run"], "leave out one of them"),
    "twice": (["--drop", "flip", "--drop", "flip"], "--drop flip is given twice"),
    "hours and epochs": (["--hours", "1", "--set", "train.epochs=3"], "--hours sets a time budget, which determines"),
    "built-in data": (["--data-dir", "."], "is built in and reads no folder: leave out --data-dir, or add"),
    "no number": (["--epochs", "many"], "--epochs 'many': expected an integer\n"),
    "no such option": (["--epohs", "1"], "unknown option '--epohs': did you mean '--epochs'?\n"),
    "preset as an argument": (["shapes"], "did you mean --preset shapes? See simclr pretrain --help\n"),
    "setting in two words": (["--set", "loss.temperature", "0.1"], "did you mean --set loss.temperature=0.1? See"),
    "path with a space": (["--data-dir", "my", "photos"], "got unexpected extra argument (photos)"),
    "two augmentations": (
        ["--drop", "flip,blur"],
        "names several augmentations: repeat the option, such as --drop flip --d",
    ),
    "no value": (["--epochs"], "option '--epochs' requires an argument: see simclr pretrain --help\n"),
    "bad images": (["--on-bad-image", "skp"], "--on-bad-image 'skp': expected error, skip or a share"),
    "bad images, no number": (["--on-bad-image", "²"], "--on-bad-image '²': expected error, skip or a share"),
    "config file": (["--config", "nowhere.toml"], "can't read the config file nowhere.toml"),
    "device": (["--device", "tpu"], "device 'tpu' is not available here: use --device auto or --device cpu\n"),
    "precision": (["--precision", "int8"], 'train.precision = "int8"'),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_request_is_one_line_and_exit_code_2(case: str, run: Run) -> None:
    Path("texts").mkdir()
    for name in "ab":
        Path("texts", f"{name}.txt").write_text("not an image")
    options, message = WRONG[case]
    assert_one_line(run("pretrain", *options), 2, message)
