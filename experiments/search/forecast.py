"""What a search will take, from a few training steps and one evaluation of the config that it starts from."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from time import perf_counter
from typing import NamedTuple

from experiments.runs.estimate import estimate
from experiments.runs.prepare import Prepared
from experiments.search.identity import check_same, prepare_search
from experiments.search.saved import confirmation_of, saved_identity, trials_ended
from experiments.search.space import Parameter
from experiments.search.trial_jobs import PROBE
from experiments.studies.cell import BASELINE, Cell
from experiments.studies.forecast import evaluation_seconds
from experiments.studies.results import StudyDocument
from experiments.tracking.store import Store
from simclr.build import build_model
from simclr.config import Config
from simclr.evaluate.protocol import Protocol
from simclr.evaluate.subject import Subject
from simclr.progress import SILENT, Observer


class SearchForecast(NamedTuple):
    """The time that a search takes, if its trials take as long as the starting config.

    A trial that is stopped early takes less. One with a larger network or batch can take more.
    """

    varied: list[str]  # the settings, in the order of the space
    trials: int  # that are asked for
    trials_done: int
    trial_seconds: float  # of training and evaluating one; 0 if nothing is left
    runs: int  # with fresh seeds, of the best trials and of the start; 0 if they are done
    run_seconds: float
    seconds: float  # in all, of what is left


def forecast(
    name: str,
    full: Config,
    parameters: Sequence[Parameter],
    store: Store,
    *,
    trials: int,
    top: int,
    seeds: int,
    hours: float | None,
    proxy: Sequence[str] = (),
    objectives: str = "accuracy",
    observer: Observer = SILENT,
) -> SearchForecast:
    """Predict the time of a search whose `top` trials and start are trained again with `seeds` fresh seeds.

    Raises UserError, before anything is timed, if another search has this name, if its config can't run, if its images
    have no labels, or if a value of its space is invalid.
    """
    recorded, done = saved_identity(name, store), trials_ended(name, store)
    asked = prepare_search(full, parameters, store, proxy=proxy, objectives=objectives, observer=observer)
    check_same(name, recorded, asked, store)
    whole, prepared = asked.whole, asked.baseline
    left = max(0, trials - done)
    runs = (1 + top) * seeds
    if not left and (confirmation := confirmation_of(name, store)) is not None:
        confirmed = StudyDocument.read(confirmation)
        runs -= min(1 + top, len(confirmed.cells)) * min(seeds, len(confirmed.seeds))
    varied = list(dict.fromkeys(parameter.setting for parameter in asked.fitted))
    if not left and not runs:
        return SearchForecast(varied, trials, done, 0.0, 0, 0.0, 0.0)
    observer.say("timing your config")
    training = estimate(prepared).seconds
    trial = training + _probe_seconds(prepared, observer)
    run = 0.0
    if runs:
        training = training if whole is prepared else estimate(whole).seconds
        run = training + evaluation_seconds(Cell(BASELINE, full, on="val"), whole, observer)
    start = 0.0 if done else trial  # it is trained before the first trial, and the hours begin after it
    seconds = start + min(left * trial, inf if hours is None else 3600 * hours + trial)
    return SearchForecast(varied, trials, done, trial, runs, run, seconds + runs * run)


def _probe_seconds(prepared: Prepared, observer: Observer) -> float:
    """How long the evaluation of a trial takes, measured on an untrained network."""
    model = build_model(prepared.config, prepared.data, prepared.device)
    subject = Subject(model, prepared.config, prepared.data, Protocol(), observer)
    start = perf_counter()
    PROBE.validation_accuracy(subject)
    return perf_counter() - start
