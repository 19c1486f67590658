"""What follows a search: train the best trials again with fresh seeds, and report the selection."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from analysis.trials import outcome, pictures, ranked, trials
from experiments.configs.resolve import changed
from experiments.search.trials import Search, validation_accuracy
from experiments.studies.plan import BASELINE, Cell, StudyPlan
from experiments.tracking import Store
from simclr.config import to_toml
from simclr.data.dataset import open_dataset
from simclr.errors import UserError
from simclr.progress import SILENT, Observer

COLUMNS = ["in the search", "fresh seeds"]


def record(found: Search, start: float, store: Store) -> str:
    """Keep a search's trials, pictures and best config with its parent run; a summary in a few lines."""
    study, tracker = found.study, found.tracker
    table = trials(study, found.objectives.split(","))
    tracker.artifact("trials.csv", lambda path: table.to_csv(path, index=False))
    if best := ranked(study):
        config = changed(found.full, best[0].user_attrs["settings"]).model_copy(update={"name": f"{found.name}-best"})
        tracker.artifact("best.toml", lambda path: path.write_text(to_toml(config), encoding="utf-8"))
    for name, draw in pictures(study).items():
        tracker.artifact(f"{name}.png", draw)
    return "\n".join([*outcome(study, start), f"all of it: {store.artifact(tracker.run_id, 'trials.csv').parent}"])


def confirmation(found: Search, top: int) -> StudyPlan:
    """A study of the best trials at full size, beside the config that the search started from.

    Raises UserError where no trial but that config's own ran to its end.
    """
    cells: dict[str, Cell] = {}
    for trial in ranked(found.study):
        settings = trial.user_attrs["settings"]
        config = changed(found.full, settings)
        if config.key() != found.full.key():
            cells.setdefault(config.key(), Cell(f"trial {trial.number}", config, settings))
    if not cells:
        raise UserError("no trial but the start ran to its end: allow more --memory, --trials or --max-hours")
    return StudyPlan([Cell(BASELINE, found.full), *list(cells.values())[:top]])


def selection(
    found: Search, plan: StudyPlan, start: float, seeds: Sequence[int], store: Store, observer: Observer = SILENT
) -> pd.DataFrame:
    """Accuracy on validation of each cell of the confirmation: in the search, and the mean over fresh seeds."""
    by_cell = {f"trial {trial.number}": trial.values[0] for trial in ranked(found.study)} | {BASELINE: start}
    digest = open_dataset(found.full.data, store.folder, observer).digest
    rows = []
    for cell in plan.cells:
        runs = [store.of_key(cell.of_seed(seed).key(), digest) for seed in seeds]
        finished = [[run.info.run_id for run in of_seed if run.info.status == "FINISHED"][:1] for of_seed in runs]
        fresh = [validation_accuracy(run_id, cell.config, store, observer) for (run_id,) in filter(None, finished)]
        mean = float(np.mean(fresh)) if fresh else nan
        rows.append({"cell": cell.name, "in the search": by_cell[cell.name], "fresh seeds": mean, "n": len(fresh)})
    return pd.DataFrame(rows)


def notes(found: Search, table: pd.DataFrame) -> list[str]:
    """How to read `selection`: what of the best trial's gain was selection; of a proxy, whether it ranks configs as
    the full size does."""
    chosen = table[table["cell"] != BASELINE]
    searched, fresh = (chosen[column].to_numpy() for column in COLUMNS)
    if found.baseline.key() == found.full.key():
        gain, kept = (100 * float(chosen.iloc[0][column] - table.iloc[0][column]) for column in COLUMNS)
        return [
            "accuracies on validation; a trial was chosen for its figure in the search, not for those of fresh seeds",
            f"{chosen.iloc[0]['cell']} beside the baseline: {gain:+.2f} points in the search, {kept:+.2f} with fresh "
            f"seeds; {gain - kept:+.2f} was selection",
        ]
    ranks = f"{spearmanr(searched, fresh).statistic:.2f}" if len(chosen) > 2 else "needs --top 3"
    return [
        "accuracies on validation, in the search of the proxy, with fresh seeds of the full size",
        f"rank correlation (Spearman) of the two over {len(chosen)} trials: {ranks}",
    ]
