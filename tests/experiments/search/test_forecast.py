"""What a search is predicted to take."""

from __future__ import annotations

import optuna
import pytest
from optuna.trial import TrialState

from experiments.search.forecast import forecast
from experiments.search.space import Parameter
from experiments.search.trials import open_search, reference_accuracy, run_trials
from experiments.studies.cell import BASELINE
from experiments.studies.results import PLAN_FILE, CellDocument, StudyDocument
from experiments.tracking.deleting import CONFIRMS
from experiments.tracking.store import Store
from experiments.tracking.writing import start_run
from simclr.errors import UserError
from tests.helpers import tiny

SPACE = [
    Parameter(setting="optim.lr", low=1e-4, high=1e-2, log=True),
    Parameter(setting="byol.momentum", choices=(0.9,)),
]
BRIEF = tiny(train={"epochs": 1, "knn_every": 1})


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training steps take a tenth of a second, and evaluations nothing."""
    monkeypatch.setattr("experiments.runs.estimate.timed_steps", lambda *_, **__: 0.1)
    monkeypatch.setattr("experiments.search.forecast.perf_counter", lambda: 0.0)
    monkeypatch.setattr("experiments.studies.forecast.perf_counter", lambda: 0.0)


@pytest.mark.usefixtures("steady")
def test_the_time_is_that_of_all_trainings_that_are_left(store: Store) -> None:
    found = forecast("s", BRIEF, SPACE, store, trials=3, top=1, seeds=2, hours=None)
    assert found.varied == ["optim.lr"]  # SimCLR has no momentum
    assert found.trial_seconds == found.run_seconds > 0
    assert found.seconds == pytest.approx((1 + 3 + 4) * found.run_seconds)  # with the start
    limited = forecast("s", BRIEF, SPACE, store, trials=1000, top=1, seeds=0, hours=0.001)
    assert limited.seconds == pytest.approx(3.6 + 2 * found.trial_seconds)  # the start, and a last trial that begins
    with open_search("s", BRIEF, SPACE, store) as search:
        reference_accuracy(search)
        run_trials(search, 2)
    search.study.add_trial(optuna.trial.create_trial(state=TrialState.FAIL))  # one that Ctrl-C stopped
    later = forecast("s", BRIEF, SPACE, store, trials=3, top=1, seeds=0, hours=None)
    assert (later.trials_done, later.seconds) == (2, pytest.approx(found.trial_seconds))
    confirmation = start_run(store, "s-trial-1", "study", {}, {CONFIRMS: "s"})
    none = {"settings": {}, "layer": "h", "paper": None, "direction": None, "source": None, "pair": None}
    cells = [CellDocument(cell=name, protocols={}, **none) for name in (BASELINE, "trial 1")]
    document = StudyDocument(x=None, log=False, lines={}, command="", seeds=(1, 2), cells=cells)
    confirmation.artifact(PLAN_FILE, document.write)
    confirmation.finish("FINISHED")
    runs_left = {
        (top, seeds): forecast("s", BRIEF, SPACE, store, trials=2, top=top, seeds=seeds, hours=None).runs
        for top, seeds in ((1, 2), (1, 1), (1, 3), (2, 2))
    }
    assert runs_left == {(1, 2): 0, (1, 1): 0, (1, 3): 2, (2, 2): 2}


@pytest.mark.usefixtures("steady")
def test_trials_with_a_proxy_are_shorter_than_the_runs_that_confirm_them(store: Store) -> None:
    full = tiny(train={"epochs": 4, "knn_every": 1})
    found = forecast("s", full, SPACE, store, trials=3, top=1, seeds=2, hours=None, proxy=["train.epochs=2"])
    assert found.run_seconds == pytest.approx(2 * found.trial_seconds)


def test_what_can_not_be_searched_is_refused_before_anything_is_timed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.runs.estimate.timed_steps", lambda *_, **__: pytest.fail("it was timed"))
    with pytest.raises(UserError, match="lr"):
        forecast(
            "s", BRIEF, [Parameter(setting="optim.lr", choices=(-1.0,))], store, trials=3, top=1, seeds=0, hours=None
        )
