"""experiments/commands/runs.py."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path

import pytest

from experiments.commands.runs import _moment
from experiments.tracking.store import Store
from experiments.tracking.writing import start_run
from tests.experiments.commands.helpers import assert_one_line, invoke


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with runs of two protocols and a study."""
    store = Store(tmp_path_factory.mktemp("recorded"))
    for name, knn, protocol in (("one", 0.25, "3-aaaaaa"), ("two", 0.5, "3-bbbbbb"), ("three", 0.125, "3-aaaaaa")):
        tracker = start_run(store, name, "pretrain", {})
        tracker.log({"train/loss": 2 * knn, "val/knn_top1": 0.4, "eval/knn_top1": knn, "eval/linear_top1": 0.75})
        tracker.tag_protocols({"knn_top1": protocol, "linear_top1": "3-cccccc"})
        tracker.finish("FINISHED")
    study = start_run(store, "a-study-with-a-name-that-is-longer-than-most-no-color_jitter", "study", {})
    tracker = start_run(store, "few", "pretrain", {}, parent=study.run_id)
    tracker.log({"eval/knn_k9_top1": 0.6, "eval/knn_k9_balanced": 0.5, "eval/knn_k3_top1": 0.2})
    tracker.tag_protocols(dict.fromkeys(("knn_k9_balanced", "knn_k9_top1", "knn_k3_top1"), "3-dddddd"))
    tracker.finish("FINISHED")
    start_run(store, "one", "pretrain", {}, parent=study.run_id).finish("FAILED")
    study.finish("FINISHED")
    return store


@pytest.fixture(autouse=True)
def home(recorded: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMCLR_HOME", str(recorded.folder))


def rows_of(*options: object) -> list[str]:
    """The rows of the table."""
    done = invoke("runs", *options)
    assert done.exit_code == 0, done.output
    return done.stdout.partition("---\n")[2].splitlines()


def test_the_table_fits_80_columns_and_marks_figures_that_cannot_be_compared() -> None:
    lines = invoke("runs").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert re.split("  +", lines[0]) == ["name", "id", "kind", "status", "started", "loss", "kNN", "linear"]
    text = "\n".join(lines)
    assert re.search(r"\nthree +\w{8} +pretrain +done +\d\d[:-]\d\d +0\.25 +12\.5%² +75\.0%\n", text)
    assert re.search(r"\ntwo +\w{8} +pretrain .* 50\.0%³ +75\.0%\n", text)
    assert re.search(r"\nfew +\w{8} +pretrain .* 60\.0%¹\n", text)
    assert "can't be compared" in text
    assert "on validation" not in text


def test_what_was_measured_on_validation_only_is_shown_and_says_so(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMCLR_HOME", str(store.folder))
    tracker = start_run(store, "judged", "pretrain", {})
    tracker.log({"eval/val/linear_top1": 0.7, "eval/val/knn_k9_top1": 0.5})
    tracker.tag_protocols({"val/linear_top1": "3-eeeeee", "val/knn_k9_top1": "3-ffffff"})
    tracker.finish("FINISHED")
    assert re.search(
        r"\njudged +\w{8} +pretrain .* 50\.0%\* +70\.0%\*\n\* on validation images\n$", invoke("runs").stdout
    )
    (row,) = json.loads(invoke("runs", "--json").stdout)
    assert (row["linear"], row["linear_on"]) == (70.0, "val")
    tracker.log({"eval/linear_top1": 0.6})
    tracker.tag_protocols({"linear_top1": "3-gggggg"})
    tracker.flush()
    (row,) = json.loads(invoke("runs", "--json").stdout)
    assert (row["linear"], row["linear_on"], row["knn_on"]) == (60.0, "test", "val")
    trained = start_run(store, "trained", "pretrain", {})
    trained.log({"val/knn_top1": 0.4})
    trained.finish("FINISHED")
    shown = invoke("runs").stdout  # its kNN is that of training, which has another protocol
    assert re.search(r"\ntrained +\w{8} +pretrain +done .* 40\.0%\*¹\n", shown)
    assert re.search(r"\njudged +\w{8} +pretrain .* 50\.0%\*² +60\.0%\n", shown)


def test_a_trial_has_the_accuracy_by_which_its_search_ranks_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMCLR_HOME", str(store.folder))
    trial = start_run(store, "searched", "pretrain", {})
    trial.log({"val/linear_top1": 0.7})
    judged = start_run(store, "judged", "pretrain", {})
    judged.log({"val/linear_top1": 0.7, "eval/val/linear_top1": 0.8})
    judged.tag_protocols({"val/linear_top1": "3-eeeeee"})
    for tracker in (trial, judged):
        tracker.finish("FINISHED")
    shown = invoke("runs", "--sort", "name").stdout
    assert re.search(r"\njudged .* 80\.0%\*¹\nsearched .* 70\.0%\*²\n", shown)
    _, row = json.loads(invoke("runs", "--sort", "name", "--json").stdout)
    assert (row["linear"], row["linear_on"], row["linear_protocol"]) == (70.0, "val", "val/linear_top1")


def test_a_long_name_need_not_be_typed(recorded: Store) -> None:
    """Its row has the id, however many lines the name takes."""
    (study,) = recorded.records(kind="study")
    assert re.search(rf"^\S+ +{study.short_id} +study +done ", invoke("runs").stdout, re.MULTILINE)


def test_a_run_that_was_stopped_can_be_resumed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMCLR_HOME", str(store.folder))
    study = start_run(store, "s", "study", {})
    start_run(store, "cell", "pretrain", {}, parent=study.run_id).finish("KILLED")
    study.finish("KILLED")
    shown = invoke("runs").stdout
    assert re.search(r"\ns +\w{8} +study +stopped ", shown)
    assert "run the same command again" in shown
    assert "--resume" not in shown  # which ablate and search don't have
    start_run(store, "alone", "pretrain", {}).finish("KILLED")
    assert "run its command again with --resume" in invoke("runs").stdout


def test_a_run_of_another_day_has_a_date() -> None:
    now = datetime(2026, 3, 2, 0, 1)
    assert _moment(datetime(2026, 3, 2, 0, 0), now) == "00:00"
    assert _moment(datetime(2026, 3, 1, 23, 59), now) == "03-01"
    assert _moment(datetime(2025, 3, 2, 0, 0), now) == "2025-03-02"


def test_with_one_protocol_there_are_no_marks() -> None:
    shown = invoke("runs", "--kind", "study").stdout
    assert "¹" not in shown
    assert "compared" not in shown


@pytest.mark.parametrize(
    ("column", "order"),
    [
        ("knn", ["few", "two", "one", "three"]),
        ("loss", ["three", "one", "two", "one"]),
        ("name", ["few", "one", "one", "three"]),
        ("started", ["one", "few", "three", "two"]),
    ],
)
def test_runs_are_sorted_and_limited(column: str, order: list[str]) -> None:
    rows = rows_of("--kind", "pretrain", "--sort", column, "--limit", 4)
    assert [row.split()[0] for row in rows if row[0] != " "][:4] == order


def test_the_runs_of_a_study() -> None:
    study = "a-study-with-a-name-that-is-longer-than-most-no-color_jitter"
    rows = json.loads(invoke("runs", "--study", study, "--json").stdout)
    assert [row["name"] for row in rows] == ["one", "few", study]
    assert rows[0]["parent"] == rows[2]["id"]
    assert (rows[1]["knn"], rows[1]["knn_protocol"], rows[1]["linear"]) == (60.0, "3-dddddd", None)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", rows[0]["started"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--study", "a-stuy"], "unknown study or search 'a-stuy'"),
        (["--kind", "pretran"], "unknown kind 'pretran': did you mean 'pretrain'?"),
        (["--sort", "los"], "unknown column 'los': did you mean 'loss'?"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_code_2(options: list[str], message: str) -> None:
    assert_one_line(invoke("runs", *options), 2, message)


def test_without_runs_the_first_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMCLR_HOME", str(tmp_path))
    assert f"no run in {tmp_path}, which SIMCLR_HOME names: train one with `simclr pretrain`" in invoke("runs").stdout
    monkeypatch.delenv("SIMCLR_HOME")
    monkeypatch.chdir(tmp_path)
    assert "/simclr-runs: train one with `simclr pretrain --preset shapes`" in invoke("runs").stdout
    assert json.loads(invoke("runs", "--json").stdout) == []
    assert_one_line(invoke("runs", "--study", "a"), 2, "there are no studies or searches yet")
    assert_one_line(invoke("compare", "a", "b"), 2, "Runs are kept in simclr-runs in the current folder")
    assert not list(tmp_path.iterdir())  # commands that only read leave nothing behind


def test_a_kind_of_which_there_is_no_run_is_named() -> None:
    assert invoke("runs", "--kind", "search").stdout == "no run of the kind search\n"
