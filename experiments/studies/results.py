"""Read the records of a study."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from experiments.runs.evaluate import predictions, prefix
from experiments.studies.plan import EVALUATE, PARENT
from experiments.tracking import PROTOCOL_TAG, Run, Store


def document_of(study: str, store: Store) -> dict[str, Any]:
    """The plan in a study's record: its cells (the baseline first), numeric axis and command."""
    document: dict[str, Any] = json.loads(store.artifact(study, "plan.json").read_text(encoding="utf-8"))
    return document


def children(study: str, store: Store) -> list[Run]:
    """The runs under a study, newest first."""
    return store.search(f"tags.`{PARENT}` = '{study}'")


class Records(NamedTuple):
    """All that a report is made of: a row a cell and seed, and which test images each got right, by metric."""

    table: pd.DataFrame
    correct: dict[str, dict[tuple[str, int], Any]]
    runs: dict[tuple[str, int], Run]  # that were trained: of a copy, the run that it is of


def records(study: str, store: Store) -> Records:
    """Read a study's records: of the runs of one cell and seed the finished one that was judged, else the newest.

    A figure counts where it was found under the study's own protocol.
    """
    cells = {cell["cell"]: cell for cell in document_of(study, store)["cells"]}
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    correct: dict[str, dict[tuple[str, int], Any]] = {metric: {} for metric in EVALUATE.values()}
    runs: dict[tuple[str, int], Run] = {}
    for child in reversed(children(study, store)):  # the oldest first: what is newer stands over it
        cell, place = cells[child.data.tags["cell"]], (child.data.tags["cell"], int(child.data.tags["seed"]))
        source = child.data.tags.get("copied_from")
        run = child if source is None else store.client.get_run(source)
        before, figures = prefix(cell["layer"]), {}
        for metric, protocol in cell["protocols"].items():
            if run.data.tags.get(f"{PROTOCOL_TAG}{before}{metric}") == protocol:
                figures[metric] = run.data.metrics[f"eval/{before}{metric}"]
                predicted, labels = predictions(store, run.info.run_id, before + metric)
                correct[metric][place] = predicted == labels
        if place in rows and rows[place]["status"] == "FINISHED" and not figures:
            continue
        speed = store.history(run.info.run_id, "perf/images_per_second")["value"].median()
        steps = store.history(run.info.run_id, "train/loss")["step"].max()
        if run.data.tags["kind"] == "pretrain":
            runs[place] = run
        rows[place] = {
            "cell": place[0],
            "seed": place[1],
            "status": "NOT JUDGED" if child.info.status == "FINISHED" and not figures else child.info.status,
            "error": child.data.tags.get("error"),
            "images_per_second": speed,
            "seconds": steps * int(run.data.params["train.batch_size"]) / speed,
            **{metric: figures.get(metric, np.nan) for metric in EVALUATE.values()},
        }
    return Records(pd.DataFrame(rows.values()), correct, runs)
