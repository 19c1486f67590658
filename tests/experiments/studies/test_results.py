"""Results of a study, read from runs that the tests write by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.studies.cell import BASELINE
from experiments.studies.results import CellDocument, StudyDocument, read_results
from experiments.tracking.store import Record, Store
from experiments.tracking.writing import Tracker, copy_run, start_run
from simclr.errors import UserError
from tests.experiments.studies.helpers import PREVIOUS_RUNS

PROTOCOLS = {"linear_top1": "3-aaaaaa", "knn_top1": "3-bbbbbb"}
LABELS = np.arange(10) % 3


@pytest.fixture
def study(store: Store) -> Record:
    """A study with the cells baseline, other, and z, which evaluates another layer. It has no runs."""
    layers = {BASELINE: "h", "other": "h", "z": "z"}
    cells = [
        CellDocument(
            cell=name, settings={}, layer=layer, paper=None, direction=None, source=None, pair=None, protocols=PROTOCOLS
        )
        for name, layer in layers.items()
    ]
    tracker = start_run(store, "made", "study", {})
    document = StudyDocument(x=None, log=False, lines={}, command="simclr ablate", cells=cells)
    tracker.artifact("plan.json", document.write)
    return tracker.record()


def add_run(
    study: Record,
    cell: str,
    metrics: dict[str, float],
    *,
    kind: str = "pretrain",
    status: str = "FINISHED",
    parent: str | None = None,
    **tags: str,
) -> Record:
    """Add a run of seed 0 with evaluated metrics, each with predictions that are correct that often."""
    store, params = study.store, {"train.batch_size": 20}
    tracker = start_run(store, cell, kind, params, {"cell": cell, "seed": "0"} | tags, parent=parent or study.id)
    for step in (1, 2, 3):
        tracker.log({"train/loss": 1.0, "perf/images_per_second": 10.0 * step}, step)
    for metric, value in metrics.items():
        add_metric(tracker, metric, value)
    tracker.finish(status)
    return tracker.record()


def add_metric(tracker: Tracker, metric: str, value: float, protocol: str | None = None) -> None:
    predicted = np.where(np.arange(10) < round(10 * value), LABELS, LABELS + 1)
    tracker.log({f"eval/{metric}": value})
    tracker.tag_protocols({metric: protocol or PROTOCOLS[metric.removeprefix("z/")]})
    name = f"{metric.replace('/', '-')}-predictions.npz"
    tracker.artifact(name, lambda path: np.savez(path, predicted=predicted, labels=LABELS))


def test_a_plan_file_of_the_previous_version_is_read_and_written_with_the_same_content(tmp_path: Path) -> None:
    text = PREVIOUS_RUNS["study"]["files"]["plan.json"]
    document = StudyDocument.model_validate_json(text)
    assert [cell.cell for cell in document.cells] == [BASELINE, "lr=1e+30", "lr=0.01"]
    assert document.lines == {"": {BASELINE: 0.1, "lr=1e+30": 1e30, "lr=0.01": 0.01}}
    document.write(tmp_path / "plan.json")
    written = (tmp_path / "plan.json").read_text()
    assert json.loads(written) == json.loads(text)
    assert list(json.loads(written)) == list(json.loads(text))
    assert list(json.loads(written)["cells"][0]) == list(json.loads(text)["cells"][0])


def test_a_study_without_a_plan_file_is_an_error(store: Store) -> None:
    with pytest.raises(UserError, match=r"has no file 'plan\.json'"):
        read_results(start_run(store, "empty", "study", {}).record(), store)


def test_results_have_a_row_for_each_cell_and_seed(study: Record, store: Store) -> None:
    first = add_run(study, BASELINE, {"linear_top1": 0.7, "knn_top1": 0.5})
    second = add_run(study, "other", {"linear_top1": 0.8}, seed="1")
    results = read_results(study, store)
    table = results.table.set_index(["cell", "seed"])
    assert table.loc[(BASELINE, 0), ["status", "linear_top1", "knn_top1"]].tolist() == ["FINISHED", 0.7, 0.5]
    assert table.loc[("other", 1), "linear_top1"] == 0.8
    assert np.isnan(table.loc[("other", 1), "knn_top1"])
    assert table.loc[(BASELINE, 0), ["images_per_second", "seconds"]].tolist() == [20.0, 3.0]
    assert results.correct["linear_top1"][BASELINE, 0].mean() == 0.7
    assert results.runs == {(BASELINE, 0): first, ("other", 1): second}


def test_a_metric_counts_only_under_the_protocol_of_the_study(study: Record, store: Store) -> None:
    run = add_run(study, BASELINE, {"linear_top1": 0.7, "knn_top1": 0.5})
    Tracker(store, run.id).tag_protocols({"linear_top1": "3-cccccc"})
    results = read_results(study, store)
    assert results.table["linear_top1"].isna().all()
    assert results.table["knn_top1"].tolist() == [0.5]
    assert results.correct["linear_top1"] == {}


def test_a_finished_run_without_metrics_is_not_evaluated(study: Record, store: Store) -> None:
    add_run(study, BASELINE, {})
    add_run(study, BASELINE, {"knn_top1": 0.5}, seed="7")
    results = read_results(study, store)
    assert results.table["status"].tolist() == ["NOT EVALUATED", "FINISHED"]
    assert results.seeds() == [7]  # what a report names


def test_the_newest_run_with_results_replaces_older_ones(study: Record, store: Store) -> None:
    add_run(study, BASELINE, {}, status="FAILED", error="first")
    add_run(study, BASELINE, {"linear_top1": 0.6})
    newest = add_run(study, BASELINE, {"linear_top1": 0.7})
    add_run(study, BASELINE, {}, kind="cell", status="FAILED", error="last")
    results = read_results(study, store)
    assert results.table[["status", "linear_top1"]].to_numpy().tolist() == [["FINISHED", 0.7]]
    assert results.runs == {(BASELINE, 0): newest}


def test_a_failed_run_has_its_error_until_one_succeeds(study: Record, store: Store) -> None:
    add_run(study, BASELINE, {}, status="FAILED", error="first")
    add_run(study, BASELINE, {}, kind="cell", status="FAILED", error="second")
    (row,) = read_results(study, store).table.to_dict("records")
    assert (row["status"], row["error"]) == ("FAILED", "second")


def test_a_copy_has_the_results_of_its_original(study: Record, store: Store) -> None:
    elsewhere = start_run(store, "elsewhere", "study", {}).run_id
    original = add_run(study, BASELINE, {"linear_top1": 0.7}, parent=elsewhere)
    copy_run(store, original, "cell", {"cell": "other"}, parent=study.id)
    results = read_results(study, store)
    assert results.table["linear_top1"].tolist() == [0.7]
    assert results.runs == {("other", 0): original}


def test_a_cell_of_another_layer_reads_the_metrics_of_that_layer(study: Record, store: Store) -> None:
    run = add_run(study, BASELINE, {"linear_top1": 0.7, "z/linear_top1": 0.6})
    copy_run(store, run, "cell", {"cell": "z"}, parent=study.id)
    table = read_results(study, store).table.set_index("cell")
    assert table["linear_top1"].to_dict() == {BASELINE: 0.7, "z": 0.6}
