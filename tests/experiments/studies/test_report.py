"""Reports, made from the records of a study that the previous version ran."""

from __future__ import annotations

import copy
import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from experiments.studies.cell import BASELINE
from experiments.studies.report import report, tables
from experiments.studies.results import CellDocument, StudyDocument
from experiments.tracking import local
from experiments.tracking.store import Record, Store
from experiments.tracking.writing import Tracker
from simclr.errors import UserError
from simclr.methods import METHODS
from tests.experiments.studies.helpers import PREVIOUS_RUNS, leave_out_figures, like_the_baseline, write_previous_study

NAMED = "baseline (lr=0.1)"  # the baseline of the recorded study, with its own value of what is varied


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out_figures(monkeypatch)


def change_document(study: Record, change: Callable[[StudyDocument], StudyDocument]) -> None:
    Tracker(study.store, study.id).artifact("plan.json", change(StudyDocument.read(study)).write)


def change_cells(study: Record, **changes: dict[str, object]) -> None:
    """Change fields of the cells, given as {field: {cell: value}}."""

    def change(cell: CellDocument) -> CellDocument:
        return cell.model_copy(update={field: by[cell.cell] for field, by in changes.items() if cell.cell in by})

    change_document(study, lambda document: document.model_copy(update={"cells": list(map(change, document.cells))}))


@pytest.mark.usefixtures("no_figures")
def test_a_study_whose_store_cannot_be_written_is_reported(
    previous: Record, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "can_write", lambda *places: False)
    text, notes = report(previous, Store(store.folder), out=tmp_path / "out")
    assert "72.14" in text
    assert notes[-2] == f"not kept: {store.folder} is not writable"
    assert (tmp_path / "out" / "report.html").exists()
    with pytest.raises(UserError, match=r"has no file 'report\.html'"):
        previous.artifact("report.html")


def test_a_study_of_the_previous_version_is_reported(previous: Record, store: Store, tmp_path: Path) -> None:
    text, notes = report(previous, Store(store.folder), "markdown", tmp_path / "out")
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert {NAMED, "lr=1e+30", "lr=0.01"} <= set(rows)
    assert "55.15" in rows[NAMED]  # kNN is the second table
    assert "72.14" in text
    assert "-6.13" in text
    assert (
        "digits, 359 test images. Baseline: ResNet-18 of width 0.125, 1 epoch with SGD, batches of 256. Seed 0.\n"
        "- Digest of the data: 1e0fa654." in text
    )
    assert "accuracies are measured: 3-07d9ea, 3-69f7a1." in text
    level = "In linear accuracy, chance is 12.8 %, and the untrained network of the baseline reaches 52.6 %."
    assert level in text  # 0.12813 and 0.52646 in the record
    assert "no better than that" not in text
    assert notes[-2] == f"report: {previous.artifact('report.html')}"

    names = {path.name for path in (tmp_path / "out").iterdir()}
    figures = [f"{name}-{metric}" for name in ("differences", "against") for metric in ("linear_top1", "knn_top1")]
    expected = {f"{name}{suffix}" for name in [*figures, "curves-train-loss"] for suffix in (".svg", ".png")}
    expected |= {f"{metric}{suffix}" for metric in ("linear_top1", "knn_top1") for suffix in (".md", ".csv", ".tex")}
    assert names == expected | {"report.html"}
    assert all(previous.artifact(name).read_bytes() == (tmp_path / "out" / name).read_bytes() for name in names)

    page = (tmp_path / "out" / "report.html").read_text()
    assert "Study <b>old</b>" in page
    assert "The largest is -6.1 points, with lr = 0.01; the baseline has 72.1 %." in page
    assert f"http://127.0.0.1:5000/#/experiments/{store.experiment}/runs/" in page
    assert "--vary optim.lr=1e30,0.01" in page  # the command
    assert "simclr report old" in page
    assert "[augment.crop]" in page  # the config
    assert "Linux-x86_64" in page  # the environment
    assert "Runs without results" in page
    assert "training diverged, with a loss of nan" in page


@pytest.mark.usefixtures("no_figures")
def test_losses_of_different_temperatures_are_not_compared_by_their_height(store: Store, tmp_path: Path) -> None:
    runs = copy.deepcopy(PREVIOUS_RUNS)
    runs["elsewhere"]["params"]["loss.temperature"] = "0.5"
    report(write_previous_study(store, runs), store, out=tmp_path)
    assert "The scale of the loss depends on loss.temperature, so" in (tmp_path / "report.html").read_text()


def test_a_baseline_that_is_no_better_than_untrained_is_told(store: Store) -> None:
    runs = copy.deepcopy(PREVIOUS_RUNS)
    runs["baseline"]["metrics"]["ref/untrained/linear_top1"] = [[0, 0.73]]  # it reaches 72.1 %
    told = " ".join(" ".join(report(write_previous_study(store, runs), store)[1]).split())
    assert "reaches 73.0 %. The trained baseline is no better than that, so" in told


def test_a_baseline_that_is_better_than_untrained_with_some_seeds_only_is_told(store: Store) -> None:
    runs = copy.deepcopy(PREVIOUS_RUNS)
    runs["second"] = like_the_baseline(BASELINE, 1, 0.8)
    for name in ("baseline", "second"):
        runs[name]["metrics"]["ref/untrained/linear_top1"] = [[0, 0.73]]
    told = " ".join(" ".join(report(write_previous_study(store, runs), store)[1]).split())
    assert "With some seeds, the trained baseline is no better than that, so" in told


@pytest.mark.usefixtures("no_figures")
def test_the_csv_format_has_all_metrics_in_one_table(previous: Record, store: Store) -> None:
    text, notes = report(previous, store, "csv")
    rows = pd.read_csv(io.StringIO(text))
    assert list(zip(rows["cell"], rows["metric"], rows["n"], strict=True)) == [
        (cell, metric, 0 if cell == "lr=1e+30" else 1)
        for metric in ("linear_top1", "knn_top1")
        for cell in (BASELINE, "lr=1e+30", "lr=0.01")
    ]
    assert rows["mean"].dtype == rows["difference"].dtype == float
    assert rows["seed_0"].equals(rows["mean"])  # the only seed
    assert rows["optim.lr"].tolist() == [0.1, 1e30, 0.01] * 2
    assert rows["mcnemar_seed_0"].dtype == float
    assert rows["mcnemar_seed_0"].notna().tolist() == [False, False, True] * 2
    assert notes[-2].startswith("report: ")


@pytest.mark.usefixtures("no_figures")
def test_the_csv_format_says_with_which_cell_the_paper_compares_and_what_it_found(
    previous: Record, store: Store
) -> None:
    change_cells(previous, paper={"lr=0.01": -1.5}, direction={"lr=1e+30": "lower"})
    rows = pd.read_csv(io.StringIO(report(previous, store, "csv")[0])).head(3).set_index("cell")
    assert rows["compared_with"].fillna("").tolist() == ["", BASELINE, BASELINE]
    assert rows["expected"].fillna("").tolist() == ["", "lower", "-1.5"]
    assert rows.loc["lr=0.01", "compared_difference"] == rows.loc["lr=0.01", "difference"]
    change_cells(previous, against={BASELINE: "lr=0.01", "lr=0.01": None}, paper={BASELINE: 1.5, "lr=0.01": None})
    rows = pd.read_csv(io.StringIO(report(previous, store, "csv")[0])).head(3).set_index("cell")
    assert (rows.loc[BASELINE, "compared_with"], rows.loc[BASELINE, "expected"]) == ("lr=0.01", "1.5")
    assert rows.loc[BASELINE, "compared_difference"] == pytest.approx(-rows.loc["lr=0.01", "difference"])
    assert rows.loc["lr=0.01", ["compared_with", "expected"]].isna().all()


@pytest.mark.usefixtures("no_figures")
def test_the_latex_format_is_a_table_for_each_metric_with_nothing_in_bold_that_is_not_shown(
    previous: Record, store: Store
) -> None:
    text, notes = report(previous, store, "latex")
    lines = [line.strip() for line in text.splitlines()]
    assert re.fullmatch(r"% Digest of the data: [0-9a-f]{8}\.", lines[1])
    assert (lines[2], lines[-1]) == (r"\begin{table}", r"\end{table}")
    linear, knn = (line for line in lines if line.startswith(r"\caption{Data: digits, 359 test images. Baseline: "))
    baseline = "Baseline: ResNet-18 of width 0.125, 1 epoch with SGD, batches of 256. Seed 0. "
    assert f"{baseline}Linear accuracy in percent: " in linear
    assert "kNN accuracy in percent" in knn
    assert linear.endswith("paired by seed. There are no intervals and no $p$ with fewer than 3 seeds.}")
    assert r"\label{tab:old-linear-top1}" in lines
    baseline, _ = (line for line in lines if line.startswith("Baseline"))
    assert baseline == r"Baseline (lr = 0.1) & $72.1$ & -- \\"
    assert r"\toprule" in lines
    assert r"lr = 1e+30 & -- & -- \\" in lines
    assert notes[-2].startswith("report: ")


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("width", [80, 200])
def test_a_terminal_gets_few_columns_and_lines(
    width: int, previous: Record, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    text, notes = report(previous, store)
    assert "images/s" not in text
    assert "McNemar, by seed" not in text
    assert ("seconds" in text) == (width == 200)
    assert "p (Holm)" not in text  # one seed has none
    finding, use, *_, page, following = notes
    assert " ".join(finding.split()).startswith("One seed can't tell any difference in linear accuracy from luck.")
    assert use == "The test set of this data has been used for 4 evaluations of 2 runs."
    assert (page, following) == (
        f"report: {previous.artifact('report.html')}",
        "next: simclr compare old --format latex   or   simclr ui",
    )
    assert "paired by seed" not in "".join([text, *notes])  # that is on the page
    page = previous.artifact("report.html").read_text()
    assert "Seconds are the training time" in page.partition("How to read the tables")[2]
    assert "paired t test" not in page


@pytest.mark.usefixtures("no_figures")
def test_a_study_that_still_runs_says_so_first_and_is_not_advised_to_run(previous: Record, store: Store) -> None:
    text, notes = report(previous, store)
    assert not text.startswith("Unfinished")  # all cells of its only seed have ended, one by diverging
    assert "--seeds 3 or more" in " ".join(notes[0].split())
    change_document(previous, lambda document: document.model_copy(update={"seeds": (0, 1, 2)}))
    text, notes = report(previous, store)
    assert text.startswith("Unfinished: 3 of 9 runs are done.\n")
    assert "--seeds 3" not in " ".join(" ".join(notes).split())
    page = previous.artifact("report.html").read_text()
    assert '<p class="finding">Unfinished: 3 of 9 runs are done.</p>' in page
    assert "--seeds 3" not in page
    found = json.loads(report(previous, store, "json")[0])
    assert found["unfinished"] == "Unfinished: 3 of 9 runs are done."
    assert (found["study"], found["on"], found["seeds"], found["margin"]) == ("old", "test", [0], 1.0)
    assert found["files"] == [str(previous.artifact("report.html"))]
    first = found["rows"][0]
    assert (first["cell"], first["finding"], first["verdict"]) == (BASELINE, None, None)
    assert first["seed_0"] == pytest.approx(72.14, abs=0.01)
    assert first["optim.lr"] == 0.1


@pytest.mark.usefixtures("no_figures")
def test_metrics_that_were_not_measured_are_counted(previous: Record, store: Store) -> None:
    (run,) = [run for run in store.records(parent=previous.id, cell=BASELINE) if run.finished]
    Tracker(store, run.id).tag_protocols({"linear_top1": "3-cccccc"})
    text, notes = report(previous, store)
    assert "not measured under the study's protocol: 1. Run the study's command again" in " ".join(notes[2].split())
    assert not text.startswith("Unfinished")
    Tracker(store, run.id).tag_protocols({"knn_top1": "3-cccccc"})  # so that the run has no result at all
    text, notes = report(previous, store)
    assert "not measured under the study's protocol: 2." in " ".join(" ".join(notes).split())
    assert text.startswith("Unfinished: 2 of 3 runs are done.")
    assert "72.14" not in text


@pytest.mark.usefixtures("no_figures")
def test_cells_evaluated_on_images_of_another_size_are_named(previous: Record, store: Store) -> None:
    change_cells(previous, protocols={"lr=1e+30": {"linear_top1": "3-other", "knn_top1": "3-other"}})
    assert "images of another size than the baseline: lr=1e+30." in " ".join(report(previous, store)[1])


@pytest.mark.usefixtures("no_figures")
def test_an_expected_difference_is_a_direction_for_knn(previous: Record, store: Store) -> None:
    change_cells(previous, paper={"lr=0.01": -3.0}, source={"lr=0.01": "Table 9"})
    rows = csv.DictReader(io.StringIO(report(previous, store, "csv")[0]))
    found = {row["metric"]: (row["expected"], row["source"]) for row in rows if row["cell"] == "lr=0.01"}
    assert found == {"linear_top1": ("-3.0", "Table 9"), "knn_top1": ("lower", "Table 9")}


@pytest.mark.usefixtures("no_figures")
def test_pairs_of_augmentations_are_drawn_as_a_matrix(previous: Record, store: Store, tmp_path: Path) -> None:
    pairs = {BASELINE: ("crop", "crop"), "lr=1e+30": ("crop", "flip"), "lr=0.01": ("flip", "flip")}
    change_cells(previous, pair=pairs)
    change_document(previous, lambda document: document.model_copy(update={"x": None, "lines": {}}))
    report(previous, store, out=tmp_path)
    for metric in ("linear_top1", "knn_top1"):
        assert "<svg" in (tmp_path / f"pairs-{metric}.svg").read_text()
    assert not list(tmp_path.glob("against-*"))


def test_a_study_without_a_finished_cell_has_no_report(previous: Record, store: Store) -> None:
    change_cells(previous, protocols={cell: {} for cell in (BASELINE, "lr=1e+30", "lr=0.01")})
    with pytest.raises(UserError, match="no cell of study 'old' has finished: run `simclr ablate` again"):
        report(previous, store)


def test_a_folder_that_cannot_be_made_is_an_error(previous: Record, store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"can't write to .*file/out: .*\. Choose another --out"):
        report(previous, store, out=tmp_path / "file" / "out")


def test_cells_that_were_trained_on_labels_are_named(
    previous: Record, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (study,) = store.studies_among(["old"])
    found = []
    for reads_labels in (False, True):
        monkeypatch.setattr(METHODS["simclr"], "reads_labels", reads_labels)
        text, notes = tables(study, store)
        found.append("Trained on labels: " in " ".join(" ".join([text, *notes]).split()))
    assert found == [False, True]


def test_the_tables_of_a_study_are_printed_without_writing_anything(previous: Record, store: Store) -> None:
    (study,) = store.studies_among(["old"])
    text, notes = tables(study, store)
    assert "72.14" in text
    assert "report: " not in str(notes)  # there is no page yet
    assert "report.html" not in str(list(previous.artifact("plan.json").parent.iterdir()))


def test_studies_and_runs_are_not_compared_with_each_other(previous: Record, store: Store) -> None:
    assert store.studies_among(["elsewhere-s0"]) == []
    with pytest.raises(UserError, match=r"^'old' is a study: compare it by itself, or name its runs"):
        store.studies_among(["old", "elsewhere-s0"])
