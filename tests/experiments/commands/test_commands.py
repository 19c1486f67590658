from __future__ import annotations

import io
import json
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from typer.testing import CliRunner

import cli
from experiments.tracking import Store
from simclr.config import make, to_toml
from tests.helpers import ROOT, TINY, simclr, tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a tiny config file in it."""
    home = tmp_path_factory.mktemp("cli")
    (home / "tiny.toml").write_text(to_toml(tiny(train={"knn_every": 1})))
    return home


@pytest.fixture(scope="module")
def trained(folder: Path) -> subprocess.CompletedProcess[str]:
    return simclr("pretrain", "--config", "tiny.toml", home=folder)


def test_help_is_quick_and_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys, cli\ntry: cli.app(['--help'])\nfinally: print('torch' in sys.modules, 'pydantic' in sys.modules)"
    )
    seconds = []
    for _ in range(5):
        clock = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        seconds.append(time.perf_counter() - clock)
        assert "pretrain" in done.stdout
        assert done.stdout.strip().endswith("False False")
    assert min(seconds) < 0.5  # the others shared the cores with other tests


def test_the_help_of_a_command_lists_what_the_tables_hold() -> None:
    from simclr.augment import AUGMENTATIONS
    from simclr.data.sources import DATASETS

    text = "".join(CliRunner().invoke(cli.app, ["pretrain", "--help"]).output.split())
    for name in (*AUGMENTATIONS, *DATASETS):
        assert name in text


def test_pretrain_leaves_a_tracked_run_with_everything_needed_to_use_it(
    trained: subprocess.CompletedProcess[str], folder: Path
) -> None:
    assert trained.returncode == 0, trained.stderr
    assert "is chance" in trained.stdout
    assert "kNN" in trained.stdout
    store = Store(folder)
    run = store.find("tiny-s0")
    assert run.data.tags["config_key"] == tiny().key()
    assert {"data_digest", "seed", "kind", "device", "precision", "torch"} <= set(run.data.tags)
    assert {"train/loss", "train/contrastive_top1", "train/contrastive_top5", "val/knn_top1"} <= set(run.data.metrics)
    assert run.data.metrics["perf/images_per_second"] > 0
    assert run.data.params["loss.temperature"] == "0.2"
    for artifact in ("model.safetensors", "config.toml", "environment.json", "loss.png", "views.png"):
        assert store.artifact(run.info.run_id, artifact).stat().st_size > 0
    facts = json.loads(store.artifact(run.info.run_id, "environment.json").read_text())
    assert facts["torch"] == version("torch")
    assert facts["precision"] == "float32"
    commit = ["git", "log", "-1", "--format=%H", "--", "cli.py"]  # nothing where this is no checkout
    if subprocess.run(commit, cwd=ROOT, capture_output=True, text=True).stdout:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        assert facts["git_commit"] == head.stdout.strip()
        assert facts["git_dirty"] in ("true", "false")
    assert facts.items() <= run.data.tags.items()
    config = make(tomllib.loads(store.artifact(run.info.run_id, "config.toml").read_text()))
    assert config.key() == tiny().key()
    with safe_open(store.artifact(run.info.run_id, "model.safetensors"), "pt") as file:
        assert "encoder.conv1.weight" in file.keys()  # noqa: SIM118
    assert not list(store.run_folder(run.info.run_id).glob("step-*"))


def test_a_finished_config_is_not_trained_twice_unless_asked(
    trained: subprocess.CompletedProcess[str], folder: Path
) -> None:
    first = Store(folder).find("tiny-s0").info.run_id
    again = simclr("pretrain", "--config", "tiny.toml", "--name", "same-thing", home=folder)
    assert again.returncode == 0
    assert f"run {first[:8]} has trained this config" in again.stdout
    assert len(Store(folder).search()) == 1


def test_eval_reports_trained_untrained_and_chance_and_logs_them(
    trained: subprocess.CompletedProcess[str], folder: Path
) -> None:
    done = simclr("eval", "--knn", "--linear", home=folder)
    assert done.returncode == 0, done.stderr
    words = ("protocol 3", "untrained", "chance", "95 % interval", "pixels (kNN)", "knn_top1", "linear_top5")
    assert all(word in done.stdout for word in words)
    run = Store(folder).find(None)
    logged = run.data.metrics
    assert f"{logged['eval/knn_top1']:.2%}" in done.stdout
    assert f"{logged['ref/untrained/linear_top1']:.2%}" in done.stdout
    assert run.data.tags["protocol"] == "3"
    assert run.data.tags["protocol/eval/knn_top1"] in done.stdout
    assert logged["ref/low/knn_top1"] < logged["eval/knn_top1"] < logged["ref/high/knn_top1"]
    assert logged["eval/linear_top1"] > logged["ref/chance/linear_top1"] + 0.1
    twice = simclr("eval", "--knn", "--linear", home=folder)
    assert twice.stdout == done.stdout


def test_runs_lists_them(trained: subprocess.CompletedProcess[str], folder: Path) -> None:
    done = simclr("runs", home=folder)
    assert "tiny-s0" in done.stdout
    assert "FINISHED" in done.stdout
    assert simclr("eval", "tiny-s0", "--knn", home=folder).returncode == 0
    assert simclr("export", "tiny-s0", "--out", "e.safetensors", home=folder).returncode == 0
    assert simclr("eval", "e.safetensors", "--knn", "--set", "knn.temperature=0.2", home=folder).returncode == 0
    header = simclr("runs", home=folder).stdout.splitlines()[0]
    assert len(set(re.findall(r"test kNN \((3-[0-9a-f]{6})\)", header))) == 2  # each protocol has a column of its own


def test_dry_run_shows_the_plan_and_starts_nothing(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(to_toml(tiny()))
    done = simclr("pretrain", "--config", "tiny.toml", "--dry-run", "--temperature", "0.3", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "temperature = 0.3" in done.stdout
    for word in ("key", "steps       10 (5 an epoch)", "parameters", "time"):
        assert word in done.stdout
    assert Store(tmp_path).search() == []


def test_a_bar_on_a_terminal_of_80_columns_shows_all_but_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setenv("COLUMNS", "80")
    latest = {
        "train/loss": 3.93,
        "train/contrastive_top1": 0.125,
        "val/knn_top1": 0.764,
        "perf/images_per_second": 1082.4,
    }
    with cli.progress_bars() as (bars, advance):
        assert bars is not None
        advance("training", 300, 1000)
        bars.update(bars.task_ids[-1], description=cli._status(latest, 5.54, 30, 100))
    lines = terminal.getvalue()
    assert "epoch 30.0/100 loss 3.93 (chance 5.54) top-1 12% kNN 76.4%" in lines
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with cli.progress_bars() as (bars, advance):
        advance("training", 300, 1000)
    assert bars is None
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]


def test_images_without_labels_train_and_say_what_they_lack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMCLR_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    Path("flat").mkdir()
    for n in range(40):
        Image.new("RGB", (20, 20), (6 * n, 255 - 6 * n, 40)).save(f"flat/{n}.png")
    Path("tiny.toml").write_text(to_toml(tiny(data={"side": 16}, train={"epochs": 1, "batch_size": 8})))
    run = CliRunner().invoke
    done = run(cli.app, ["pretrain", "--config", "tiny.toml", "--dataset", "folder", "--data-dir", "flat"])
    assert done.exit_code == 0, done.output
    done = run(cli.app, ["eval", "--no-labels"])
    assert done.exit_code == 0, done.output
    assert "the newest run: tiny-" in done.stderr
    assert "alignment_h" in done.stdout
    done = run(cli.app, ["eval", "--knn"])
    assert done.exit_code == 2
    assert "--knn needs labels, and 'folder' has 0 classes" in done.stderr


def test_views_draws_a_picture(folder: Path) -> None:
    done = simclr("views", "--config", "tiny.toml", "--out", "grid.png", home=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "grid.png").read_bytes().startswith(b"\x89PNG")


def test_presets_show_command_cost_and_result(folder: Path) -> None:
    done = simclr("presets", home=folder)
    for word in ("shapes", "cifar10", "cifar10-cpu", "command", "cost", "result"):
        assert word in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_saves_says_how_to_go_on_and_does(number: int, tmp_path: Path) -> None:
    (tmp_path / "long.toml").write_text(to_toml(tiny(train={"epochs": 36})))
    command = [sys.executable, "-u", str(ROOT / "cli.py"), "pretrain", "--config", "long.toml"]
    environment = os.environ | {"SIMCLR_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    while "is chance" not in process.stdout.readline():
        assert process.poll() is None
    time.sleep(1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume goes on from there" in errors
    store = Store(tmp_path)
    (run,) = store.search()
    assert run.info.status == "KILLED"
    refused = simclr("pretrain", "--config", "long.toml", home=tmp_path)
    assert refused.returncode == 2
    assert f"run {run.info.run_id[:8]} of this config did not finish: --resume" in refused.stderr
    done = simclr("pretrain", "--config", "long.toml", "--resume", home=tmp_path)
    assert done.returncode == 0, done.stderr
    (run,) = store.search()
    assert run.info.status == "FINISHED"
    steps = store.history(run.info.run_id, "train/loss")["step"]
    assert steps.is_monotonic_increasing
    assert steps.iloc[-1] == 180


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_the_page_is_served_until_it_is_stopped_with_all_its_processes(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused = simclr("ui", "--port", port, home=tmp_path)
    assert refused.returncode == 2
    assert f"can't listen on port {port}" in refused.stderr
    command = [sys.executable, str(ROOT / "cli.py"), "ui", "--port", port]
    environment = os.environ | {"SIMCLR_HOME": str(tmp_path)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE) as process:
        try:
            for _ in range(600):
                with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as page:
                    assert page.read() == b"OK"
                    break
                time.sleep(0.1)
            else:
                pytest.fail("no page in a minute")
        finally:
            process.terminate()
        assert process.wait(timeout=30) == 0
    for _ in range(100):  # its workers end on their own
        with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", int(port))):
            time.sleep(0.1)
            continue
        return
    pytest.fail("something still listens")


def test_a_failed_run_is_marked_failed_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(to_toml(tiny(optim={"name": "sgd", "lr": 1e30, "weight_decay": 0})))
    done = simclr("pretrain", "--config", "tiny.toml", home=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("failed: training diverged")
    (run,) = Store(tmp_path).search()
    assert run.info.status == "FAILED"
    assert "training diverged" in run.data.tags["error"]


class Code:
    def __reduce__(self):  # type: ignore[no-untyped-def]
        return os.system, ("touch ran",)


BAD = {
    "preset": (["--preset", "shaps"], "unknown preset 'shaps': did you mean 'shapes'?"),
    "data set": (["--dataset", "cifar"], "unknown data set 'cifar': did you mean 'cifar10'?"),
    "augmentation": (["--drop", "colour_jitter"], "unknown augmentation 'colour_jitter': did you mean 'color_jitter'?"),
    "backbone": (["--backbone", "resnet17"], "unknown backbone 'resnet17': did you mean 'resnet"),
    "key": (["--set", "loss.temprature=1"], "unknown setting 'loss.temprature': did you mean 'loss.temperature'?"),
    "temperature": (["--temperature", "0"], "loss.temperature = 0.0: expected greater than or equal to 0.01"),
    "batch of one": (["--batch-size", "1"], "train.batch_size = 1: expected greater than or equal to 2"),
    "batch over data": (["--dataset", "digits", "--batch-size", "5000"], "train.batch_size = 5000 is larger than"),
    "no folder": (["--dataset", "folder"], "needs a folder of images: add --data-dir"),
    "missing folder": (["--dataset", "folder", "--data-dir", "nowhere"], "nowhere does not exist"),
    "text files": (["--dataset", "folder", "--data-dir", "texts"], "2 of 2 files can't be read as images"),
    "config file": (["--config", "nowhere.toml"], "can't read the config file nowhere.toml"),
    "device": (["--device", "tpu"], "device 'tpu' can't be used here"),
    "precision": (["--precision", "int8"], 'train.precision = "int8"'),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(
    case: str, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMCLR_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    for name in "ab":
        (tmp_path / "texts" / f"{name}.txt").write_text("not an image")
    arguments, message = BAD[case]
    done = CliRunner().invoke(cli.app, ["pretrain", *arguments])
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_checkpoints_that_cannot_be_used_are_refused_in_one_line(
    trained: subprocess.CompletedProcess[str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMCLR_HOME", str(folder))
    monkeypatch.chdir(tmp_path)
    source = Store(folder).artifact(Store(folder).find("tiny-s0").info.run_id, "model.safetensors")
    whole = source.read_bytes()
    cases = {
        "unreadable": (whole[: len(whole) // 2], "can't be read as safetensors"),
        "code": (pickle.dumps({"model": Code()}), "can't be read as safetensors"),
        "another": (whole.replace(b"width = 0.125", b"width = 0.250"), "of another architecture"),
    }
    for name, (data, message) in cases.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(data)
        done = CliRunner().invoke(cli.app, ["eval", str(path)])
        assert done.exit_code == 2, (name, done.output)
        assert done.stderr.count("\n") == 1, name
        assert message in done.stderr, name
    assert not (tmp_path / "ran").exists()
    torch.save({"model": Code()}, tmp_path / "code.pt")
    done = CliRunner().invoke(cli.app, ["eval", str(tmp_path / "code.pt")])
    assert done.exit_code == 2
    assert "holds objects beyond tensors, which are not loaded" in done.stderr
    assert not (tmp_path / "ran").exists()


def test_the_tiny_config_file_is_the_tiny_config(folder: Path) -> None:
    assert make(tomllib.loads((folder / "tiny.toml").read_text())) == tiny(train={"knn_every": 1})
    assert TINY["name"] == "tiny"


def test_what_goes_on_is_the_newest_run_with_a_checkpoint(tmp_path: Path) -> None:
    from experiments.runs.train import unfinished
    from simclr.weights.checkpoint import save

    store = Store(tmp_path)
    runs = [store.start("r", {"kind": "pretrain", "config_key": "k", "data_digest": "d"}, {}).run_id for _ in range(3)]
    assert unfinished(store, store.of_key("k", "d")) is None
    for run_id, step in zip(runs[:2], (500, 20), strict=True):
        save(store.run_folder(run_id), step, {"step": step})
    assert unfinished(store, store.of_key("k", "d")).info.run_id == runs[1]


@pytest.mark.parametrize(
    "arguments", [["views", "--dataset", "digits", "--out", "v.png"], ["plot", "loss", "tiny-s0", "--out", "loss"]]
)
@pytest.mark.usefixtures("trained")
def test_a_picture_that_can_not_be_written_is_one_line(
    arguments: list[str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMCLR_HOME", str(folder))
    monkeypatch.chdir(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "v.png")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 1
    assert done.stderr.startswith("failed: can't read or write v.png: No space left on device; see to the rights")
    assert done.stderr.count("\n") == 1
