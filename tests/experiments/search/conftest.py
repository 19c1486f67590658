"""Training that takes no time, for tests of the search itself."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest

from experiments.runs.prepare import Prepared
from experiments.search import trial_jobs
from experiments.tracking.store import Record, Store
from experiments.tracking.writing import start_run
from simclr.config import Config
from simclr.progress import SILENT, TRIAL_METRIC, Observer
from simclr.train.loop import Interrupted


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Replaces training: a run logs made-up figures and no weights. The list holds the configs that were trained.

    The accuracy depends on the learning rate (best at 1e-3). kNN is measured after each epoch.
    """
    configs: list[Config] = []

    def train_or_resume(
        prepared: Prepared,
        store: Store,
        *,
        again: bool = False,
        tags: Mapping[str, str],
        parent: str | None = None,
        observer: Observer = SILENT,
    ) -> Record:
        config, steps = prepared.config, prepared.steps
        for record in store.of_key(config.key(), prepared.data.digest):
            if record.finished:
                return record
        configs.append(config)
        own = {"config_key": config.key(), "data_digest": prepared.data.digest, "seed": str(config.seed)}
        tracker = start_run(store, config.run_name(), "pretrain", config.flat(), own | tags, parent=parent)
        with tracker.finishing(Interrupted):
            observer.began(tracker.run_id, steps.total)
            for step in range(steps.per_epoch, steps.total + 1, steps.per_epoch):
                observer.metrics({"val/knn_top1": 0.5}, step)
                if observer.stop() and step < steps.total:
                    raise Interrupted(step)
            accuracy = 0.9 - 0.1 * abs(math.log10(config.optim.lr) + 3)
            tracker.log({"perf/images_per_second": 100.0, TRIAL_METRIC: accuracy}, steps.total)
        return tracker.record()

    monkeypatch.setattr(trial_jobs, "train_or_resume", train_or_resume)
    return configs
