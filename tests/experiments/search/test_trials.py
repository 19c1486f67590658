"""Trials: training, pruning, rejection, failures, and how a search resumes."""

from __future__ import annotations

import json
import re
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Barrier
from typing import Any

import optuna
import pytest
import torch
from filelock import FileLock
from optuna.trial import Trial, TrialState
from PIL import Image

from experiments.runs.prepare import Prepared, prepare
from experiments.search import trial_jobs, trials
from experiments.search.forecast import forecast
from experiments.search.saved import STATE
from experiments.search.space import Parameter
from experiments.search.trial_table import outcome, ranked
from experiments.search.trials import PRUNERS, open_search, reference_accuracy, run_trials
from experiments.tracking import signals
from experiments.tracking.claims import claim_file
from experiments.tracking.images import images_of
from experiments.tracking.store import Record, Store
from experiments.tracking.writing import start_run
from experiments.workers import remote
from simclr import device as devices
from simclr.config import Config
from simclr.errors import BadSettings, RunFailed, UserError
from simclr.evaluate.subject import Subject
from simclr.progress import TRIAL_METRIC, Observer
from simclr.train import budget, memory
from simclr.train.loop import Interrupted, count_steps
from tests.experiments.workers.helpers import Threads
from tests.helpers import tiny

SPACE = [
    Parameter(setting="optim.lr", low=1e-4, high=1e-2, log=True),
    Parameter(setting="train.batch_size", choices=(128, 256)),
]
BRIEF = tiny(train={"epochs": 1, "knn_every": 1})
STOPPED = type("Stopped", (Observer,), {"stop": lambda self: True})()


class Messages(Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def say(self, text: str) -> None:
        self.texts.append(text)


def test_a_search_resumes_and_trains_nothing_twice(store: Store, trained: list[Config]) -> None:
    with open_search("s", BRIEF, SPACE, store) as search:
        reference_accuracy(search)
        run_trials(search, 3)
    assert len(search.study.trials) == 3
    assert trained[0].key() == BRIEF.key()
    assert len(trained) == 3  # the first trial is the start
    with open_search("s", BRIEF, SPACE, store) as resumed:
        run_trials(resumed, 3)
        assert len(trained) == 3
        run_trials(resumed, 4)
    assert resumed.tracker.run_id == search.tracker.run_id
    assert resumed.tracker.record().finished
    rates = {trial.params["optim.lr"] for trial in resumed.study.trials}
    assert len(rates) == 4  # the sampler does not repeat itself after a restart
    best = ranked(resumed.study)[0]
    record = store.get(best.user_attrs["run"])
    assert record.metrics[TRIAL_METRIC] == best.values[0]
    assert (record.parent, record.tags["search"]) == (search.tracker.run_id, "s")
    assert float(record.params["optim.lr"]) == best.params["optim.lr"]


def test_a_trial_is_trained_and_evaluated_without_the_test_images(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Subject, "test", property(lambda _: pytest.fail("the test images were used")))
    devices, load = [], trial_jobs.load_subject

    def spy(found, data, protocol, device, observer):  # type: ignore[no-untyped-def]
        devices.append(device)
        return load(found, data, protocol, device, observer)

    monkeypatch.setattr(trial_jobs, "load_subject", spy)
    said = Messages()
    with open_search("s", BRIEF, SPACE, store) as search:
        accuracy = reference_accuracy(search)
        run_trials(search, 1, observer=said)
        run_trials(search, 9, hours=0)
    (trial,) = search.study.trials  # none starts after the time is up
    assert devices == [torch.device("cpu")]  # the trial reuses the run of the start, and its accuracy
    assert trial.values == [accuracy]
    assert 0.1 < accuracy <= 1
    assert trial.user_attrs["seconds"] > 0
    assert said.texts[0] == "trial 0: optim.lr=0.001, train.batch_size=256"
    assert said.texts[1] == "  trial 0 is your config"
    assert f"{accuracy:.1%} on validation after" in said.texts[2]


def test_the_trial_of_the_config_says_which_of_its_settings_were_drawn(store: Store) -> None:
    space = [*SPACE[:1], Parameter(setting="train.batch_size", choices=(64, 128))]  # the config has 256
    said = Messages()
    with open_search("s", BRIEF, space, store) as search:
        trial, _ = trials._ask(search, said)
        assert trial.user_attrs["drawn"] == ["train.batch_size"]
        trials._ask(search, said)
    note = (
        "  trial 0 is as close to your config as the search space allows: train.batch_size was drawn at random, "
        "because the space doesn't contain your value"
    )
    assert said.texts[1:] == [note, said.texts[2]]
    with open_search("s", BRIEF, space, store) as search:  # both trials were stopped
        again, _ = trials._ask(search, said)
        assert (again.number, again.user_attrs["drawn"]) == (2, ["train.batch_size"])


def test_a_stopped_trial_resumes_from_its_checkpoint(store: Store) -> None:
    config = tiny(data={"limit": 600}, train={"epochs": 2})
    told = "of trial 0, with 0 of 1 trials done$"
    with pytest.raises(Interrupted, match=told), open_search("s", config, SPACE[:1], store) as search:
        run_trials(search, 1, observer=STOPPED)
    assert search.tracker.record().status == "KILLED"
    (interrupted,) = search.study.trials
    with open_search("s", config, SPACE[:1], store) as resumed:
        run_trials(resumed, 1)
    (trial,) = ranked(resumed.study)
    assert trial.params == interrupted.params
    assert trial.user_attrs["goes on from"] == interrupted.number
    (record,) = store.records(kind="pretrain")
    assert record.finished
    assert not store.records(kind="trial")  # it is this search's own run, so it needs no copy


def test_a_trial_that_another_process_trains_comes_last(store: Store, trained: list[Config]) -> None:
    with open_search("s", BRIEF, SPACE[:1], store) as search:
        path = claim_file(store, BRIEF.key(), search.baseline.data.digest)
        path.parent.mkdir(exist_ok=True)
        elsewhere = FileLock(path)
        elsewhere.acquire()

        class Watch(Messages):
            def stop(self) -> bool:
                elsewhere.release()
                return False

        watch = Watch()
        run_trials(search, 3, observer=watch)
    assert [config.key() for config in trained].index(BRIEF.key()) == 2
    assert len(search.study.trials) == len(ranked(search.study)) == 3
    assert "  another process is about to train this config: other trials come first" in watch.texts


def test_one_process_at_a_time_has_a_search_open(store: Store) -> None:
    second = open_search("s", BRIEF, SPACE, store)
    with (
        open_search("s", BRIEF, SPACE, store),
        pytest.raises(UserError, match="another process is running the search"),
        second,
    ):
        pass


@pytest.mark.parametrize(
    ("config", "space", "options", "cause"),
    [
        (BRIEF, SPACE[:1], {}, "the space is another one: parameters only in the search: train.batch_size"),
        (
            BRIEF,
            [
                Parameter(setting="optim.lr", low=1e-3, high=1e-2),
                *SPACE[1:],
                Parameter(setting="optim.momentum", choices=(0.5,)),
            ],
            {},
            "the space is another one: only in this command: optim.momentum; with other values: optim.lr",
        ),
        (BRIEF, SPACE[::-1], {}, "the space is another one: in another order"),
        (BRIEF.model_copy(update={"seed": 3}), SPACE, {}, "the config differs: seed was 0 and is 3 now"),
        (tiny(train={"epochs": 2}), SPACE, {}, "the config differs: train.epochs was 1 and is 2 now"),
        (BRIEF, SPACE, {"proxy": ["data.limit=500"]}, "--proxy was not given and now is"),
        (BRIEF, SPACE, {"objectives": "accuracy,time"}, "--objectives was accuracy and is accuracy,time now"),
    ],
    ids=["smaller space", "other space", "order", "seed", "epochs", "proxy", "objectives"],
)
def test_a_name_belongs_to_one_search(
    store: Store,
    config: Config,
    space: list[Parameter],
    options: dict[str, Any],
    cause: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A command that asks for another one is refused with the cause, by the plan as well, before anything is timed."""
    with open_search("s", BRIEF, SPACE, store):
        pass
    expected = rf"search 's' already exists, .* \({re.escape(cause)}\): .* choose another --name"
    other = open_search("s", config, space, store, **options)
    with pytest.raises(UserError, match=expected), other:
        pass
    monkeypatch.setattr("experiments.search.forecast.estimate", lambda *_: pytest.fail("it was timed"))
    with pytest.raises(UserError, match=expected):
        forecast("s", config, space, store, trials=3, top=1, seeds=0, hours=None, **options)


def test_a_search_is_not_continued_with_other_images_or_another_proxy(store: Store) -> None:
    with open_search("s", BRIEF, SPACE, store, proxy=["data.limit=500"]) as search:
        pass
    for proxy, cause in (
        (["data.limit=400"], "--proxy has other settings now"),
        ([], "--proxy was given and now is not"),
    ):
        other = open_search("s", BRIEF, SPACE, store, proxy=proxy)
        with pytest.raises(UserError, match=cause), other:
            pass
    identity = search.study.user_attrs["identity"]
    images = dict.fromkeys(identity["configs"], "0123456789abcdef")
    search.study.set_user_attr("identity", identity | {"configs": images})
    again = open_search("s", BRIEF, SPACE, store, proxy=["data.limit=500"])
    with pytest.raises(UserError, match="the images differ: their digest was 01234567 and is"), again:
        pass


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Memory of 100 bytes, of which a config needs its hidden width times its network's. Lists what was predicted."""
    names: list[str] = []

    def predict(config: Config, micro_batch: int) -> dict[str, int]:
        names.append(config.name)
        return {"activations": round(config.model.hidden_dim * config.model.width)}

    monkeypatch.setattr(memory, "predict", predict)
    monkeypatch.setattr(budget, "predict", predict)
    monkeypatch.setattr(budget, "memory_budget", lambda *_: budget.MemoryBudget(106, {}))  # usable: 100
    return names


def test_trials_that_need_too_much_memory_are_rejected_and_predicted_once(
    store: Store, trained: list[Config], predicted: list[str]
) -> None:
    space = [Parameter(setting="model.hidden_dim", choices=(64, 2**15))]  # a layer from 2**15 to 2**15 takes 4 GiB
    said = Messages()
    start = tiny(model={"hidden_dim": 64, "out_dim": 2**15}, train={"epochs": 1}, memory="8GiB")
    with open_search("s", start, space, store) as search:
        predicted.clear()
        run_trials(search, 8, observer=said)
    started = [text for text in said.texts if "=" in text]
    assert {text.partition(": ")[2] for text in started} == {"model.hidden_dim=64"}
    assert sum("% on validation after" in text for text in said.texts) == len(started)
    rejected = [trial for trial in search.study.trials if "turned away" in trial.user_attrs]
    assert rejected
    assert len(rejected) + len(started) == 8
    assert sum(": rejected, it needs " in text for text in said.texts) == len(rejected)
    assert all(trial.constraints["memory"] > 0 and trial.state is TrialState.PRUNED for trial in rejected)
    assert f", {len(rejected)} rejected ({len(rejected)} for up to " in outcome(search.study, 0.5)[0]
    assert len(predicted) == 8


def test_a_trial_must_fit_with_the_proxy_settings_and_without(
    store: Store, trained: list[Config], predicted: list[str]
) -> None:
    full = tiny(model={"width": 1.0, "hidden_dim": 64}, train={"epochs": 1})
    space = [Parameter(setting="model.hidden_dim", choices=(16, 400))]  # with a width of 0.125 both would fit
    with open_search("s", full, space, store, proxy=["model.width=0.125"]) as search:
        search.study.enqueue_trial({"model.hidden_dim": "16"})
        search.study.enqueue_trial({"model.hidden_dim": "400"})
        run_trials(search, 3)
    rejected = {trial.params["model.hidden_dim"]: "turned away" in trial.user_attrs for trial in search.study.trials}
    assert rejected == {"16": False, "400": True}


def test_a_full_config_that_does_not_fit_is_refused(store: Store, predicted: list[str]) -> None:
    full = tiny(model={"width": 1.0, "hidden_dim": 400})
    search = open_search("s", full, SPACE, store, proxy=["model.width=0.125"])
    with pytest.raises(UserError, match="tiny needs "), search:
        pass
    assert not store.records()


def test_settings_that_cannot_be_used_are_rejected(store: Store, trained: list[Config]) -> None:
    space = [Parameter(setting="model.backbone", choices=("resnet10", "alexnet"))]
    with open_search("s", tiny(model={"stem": "imagenet", "width": 1}), space, store) as search:
        search.study.enqueue_trial({"model.backbone": '"alexnet"'})
        run_trials(search, 1)
    assert search.study.trials[0].user_attrs["turned away"].startswith("backbone 'alexnet' can't process 16 px images")


def test_a_pruned_trial_stops_and_its_run_is_killed(
    store: Store, trained: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trial, "should_prune", lambda trial: trial.number == 1)
    said = Messages()
    with open_search("s", tiny(train={"epochs": 2, "knn_every": 1}), SPACE, store) as search:
        run_trials(search, 2, observer=said)
    assert [trial.state for trial in search.study.trials] == [TrialState.COMPLETE, TrialState.PRUNED]
    assert sorted(record.status for record in store.records(kind="pretrain")) == ["FINISHED", "KILLED"]
    assert search.study.trials[1].intermediate_values == {1: 0.5}  # the last epoch is not reported
    assert said.texts[-1] == "  pruned at kNN 50.00%"


def test_a_trial_on_a_cluster_is_pruned_by_what_its_run_records(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trial 0 ends by itself, and trial 1 only when it is asked to stop."""

    def train(prepared: Prepared, store: Store, *, observer: Observer, tags: Any, **_: object) -> Record:
        config, steps = prepared.config, prepared.steps
        tracker = start_run(store, config.run_name(), "pretrain", config.flat(), tags)
        with tracker.finishing(Interrupted):
            observer.began(tracker.run_id, steps.total)
            while config.optim.lr != tiny().optim.lr and not observer.stop():
                tracker.log({"val/knn_top1": 0.5}, steps.per_epoch)
                observer.metrics({"train/loss": 1.0}, steps.per_epoch)
                tracker.flush()
            if observer.stop():
                raise Interrupted(steps.per_epoch)
            tracker.log({"train/loss": 1.0, "perf/images_per_second": 100.0, TRIAL_METRIC: 0.5}, steps.total)
        return tracker.record()

    monkeypatch.setattr(trial_jobs, "train_or_resume", train)
    monkeypatch.setattr(remote, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(signals, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(Trial, "should_prune", lambda trial: trial.number == 1)
    config = tiny(train={"epochs": 2, "knn_every": 1})
    with open_search("s", config, SPACE, store, parallel=True) as search, Threads() as engine:
        run_trials(search, 2, pool=remote.Remote(engine))
    assert [trial.state for trial in search.study.trials] == [TrialState.COMPLETE, TrialState.PRUNED]
    assert search.study.trials[1].intermediate_values == {1: 0.5}


@pytest.mark.parametrize("parallel", [False, True])
def test_trials_in_parallel_count_as_bad_until_they_end(parallel: bool, store: Store) -> None:
    with open_search("s", BRIEF, SPACE, store, parallel=parallel) as search:
        assert isinstance(search.study.sampler, optuna.samplers.TPESampler)
        assert search.study.sampler._constant_liar is parallel


@pytest.mark.parametrize("name", ["median", "hyperband"])
def test_each_pruner_prunes_a_trial_that_is_far_behind(name: str) -> None:
    study = optuna.create_study(direction="maximize", pruner=PRUNERS[name]())
    pruned = set()
    for number in range(40):
        trial = study.ask()
        for epoch in range(1, 28):
            trial.report(0.9 if number % 4 else 0.1, epoch)
            if trial.should_prune():
                pruned.add(number)
                break
        study.tell(trial, None if number in pruned else 0.5, state=TrialState.PRUNED if number in pruned else None)
    assert pruned
    assert all(number % 4 == 0 for number in pruned)


def test_the_pruner_can_be_chosen_and_two_objectives_have_none(
    store: Store, trained: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_search("one", BRIEF, SPACE, store, pruner="hyperband") as search:
        assert isinstance(search.study.pruner, optuna.pruners.HyperbandPruner)
    monkeypatch.setattr(Trial, "should_prune", lambda trial: True)
    config = tiny(train={"epochs": 2, "knn_every": 1})
    with open_search("two", config, SPACE, store, objectives="accuracy,time") as search:
        run_trials(search, 2)
    completed = ranked(search.study)
    assert len(completed) == 2
    for trial in completed:
        batch = int(trial.params["train.batch_size"])
        steps = count_steps(tiny(train={"epochs": 2, "batch_size": batch}), search.baseline.data).total
        assert trial.values[1] == pytest.approx(steps * batch / 100)  # at 100 images per second


def test_a_config_that_was_trained_elsewhere_is_copied_to_the_search(store: Store, trained: list[Config]) -> None:
    with open_search("first", BRIEF, SPACE, store) as search:
        run_trials(search, 1)
    with open_search("second", BRIEF, SPACE, store) as search:
        run_trials(search, 1)
    (copy,) = store.records(parent=search.tracker.run_id)
    (original,) = store.records(kind="pretrain")
    assert (copy.kind, copy.tags["search"], copy.tags["copied_from"]) == ("trial", "second", original.id)
    assert copy.metrics == original.metrics
    assert len(trained) == 1
    name, counts = images_of(search.tracker.record())
    assert (name, counts["pretrain"]) == (BRIEF.data.dataset, len(search.full.data.parts["pretrain"]))


def fail_once(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """The next training raises an error."""
    train = trial_jobs.train_or_resume

    def failing(*_: object, **__: object) -> None:
        monkeypatch.setattr(trial_jobs, "train_or_resume", train)
        raise error

    monkeypatch.setattr(trial_jobs, "train_or_resume", failing)


def test_a_trial_whose_settings_fail_is_recorded_and_the_search_continues(
    store: Store, trained: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_once(monkeypatch, BadSettings("training diverged"))
    said = Messages()
    with open_search("s", BRIEF, SPACE, store) as search:
        run_trials(search, 2, observer=said)
    assert len(ranked(search.study)) == 1
    assert search.study.trials[0].user_attrs["error"] == "training diverged"
    assert said.texts[2] == "  failed: training diverged"


def test_any_other_failure_ends_the_search_and_leaves_the_trial_open(
    store: Store, trained: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_once(monkeypatch, RunFailed("no space left"))
    with pytest.raises(RunFailed, match="no space left"), open_search("s", BRIEF, SPACE, store) as search:
        run_trials(search, 2)
    assert search.tracker.record().status == "FAILED"
    (failed,) = search.study.trials
    with open_search("s", BRIEF, SPACE, store) as resumed:
        run_trials(resumed, 2)
    completed = ranked(resumed.study)
    assert len(completed) == 2
    assert failed.params in [trial.params for trial in completed]


def test_images_without_labels_are_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for n in range(8):
        Image.new("RGB", (16, 16), (n * 30, 0, 0)).save(tmp_path / "photos" / f"{n}.png")
    config = tiny(data={"dataset": "folder", "dir": str(tmp_path / "photos"), "side": 16}, train={"batch_size": 4})
    with (
        pytest.raises(UserError, match="search compares accuracies, so it needs labels"),
        open_search("s", config, SPACE[:1], store),
    ):
        pass
    assert not store.records()


def test_unknown_choices_are_refused(store: Store) -> None:
    search = open_search("s", BRIEF, SPACE, store, objectives="time")
    with pytest.raises(UserError, match="unknown objectives 'time'"), search:
        pass
    search = open_search("s", BRIEF, SPACE, store, pruner="medium")
    with pytest.raises(UserError, match="unknown pruner 'medium': did you mean 'median'"), search:
        pass


def test_a_locked_database_and_another_version_of_optuna_are_explained(store: Store) -> None:
    with open_search("s", BRIEF, SPACE, store):
        pass
    with closing(sqlite3.connect(store.folder / STATE, timeout=0)) as database:
        database.execute("BEGIN EXCLUSIVE")
        search = open_search("s", BRIEF, SPACE, store)
        with pytest.raises(UserError, match=r"can't use the search database .*search\.db: .*locked"), search:
            pass
        database.rollback()
        database.execute("UPDATE version_info SET schema_version = 1")
        database.execute("UPDATE alembic_version SET version_num = 'v0.9.0.a'")
        database.commit()
    search = open_search("s", BRIEF, SPACE, store)
    with pytest.raises(UserError, match=r"search\.db was written by a different version of Optuna"), search:
        pass


def test_a_search_of_the_first_version_resumes(store: Store, trained: list[Config]) -> None:
    """The attributes, tags and constraint are written here as that version wrote them."""
    digest = prepare(BRIEF, store.folder).data.digest
    run = start_run(store, "s", "search", BRIEF.flat(), {"search": "s"})
    run.finish("KILLED")
    study = optuna.create_study(
        storage=f"sqlite:///{(store.folder / 'search.db').as_posix()}", study_name="s", directions=["maximize"]
    )
    identity = {
        "configs": {BRIEF.key(): digest},
        "space": '[{"setting": "optim.lr", "choices": [], "low": 0.0001, "high": 0.01, "log": true, "when": {}}, '
        '{"setting": "train.batch_size", "choices": [128, 256], "low": null, "high": null, "log": false, "when": {}}]',
        "objectives": "accuracy",
    }
    study.set_user_attr("identity", identity)
    for number in range(4):
        trial = study.ask()
        rate = trial.suggest_float("optim.lr", 1e-4, 1e-2, log=True)
        batch = json.loads(trial.suggest_categorical("train.batch_size", ["128", "256"]))
        trial.set_user_attr("settings", {"optim.lr": rate, "train.batch_size": batch})
        trial.set_constraint("memory", 19.5 if number == 1 else -700.0)
        trial.set_user_attr("cost", 0.1)
        if number == 0:
            for name, value in {"run": "a" * 32, "seconds": 9.5, "wall": 10.0}.items():
                trial.set_user_attr(name, value)
            study.tell(trial, 0.75)
        elif number == 1:
            trial.set_user_attr("turned away", "needs 90 MiB, 20 MiB too much")
            study.tell(trial, state=TrialState.PRUNED)
        elif number == 2:
            trial.set_user_attr("error", "training diverged")
            trial.set_user_attr("wall", 10.0)
            study.tell(trial, state=TrialState.PRUNED)
    with open_search("s", BRIEF, SPACE, store) as search:
        assert search.tracker.run_id == run.run_id
        run_trials(search, 4)
        lines = outcome(search.study, 0.5)
    assert lines[0] == "4 trials: 2 completed, 1 rejected (1 for up to 20 MiB too much memory), 0 pruned, 1 failed"
    assert lines[1] == "trial 2 failed: training diverged"
    (config,) = trained
    assert config.optim.lr == search.study.trials[3].params["optim.lr"]  # the trial that was running
    assert search.study.trials[4].user_attrs["goes on from"] == 3


def test_a_search_that_tried_batches_larger_than_the_data_set_goes_on_in_its_space(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(data={"limit": 200}, train={"epochs": 1, "batch_size": 128})
    with monkeypatch.context() as earlier:
        earlier.setattr("experiments.search.identity.fitting", lambda parameters, images, observer: parameters)
        with open_search("s", config, SPACE, store):
            pass
    with open_search("s", config, SPACE, store) as search:
        assert search.parameters == SPACE
    with open_search("new", config, SPACE, store) as search:
        assert [parameter.choices for parameter in search.parameters] == [(), (128,)]


def test_a_search_is_only_continued_in_its_precision(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(fast: bool) -> str:
        with monkeypatch.context() as machine:
            machine.setattr(devices, "has_fast_bf16", lambda device: fast)
            with open_search("s", config, SPACE, store) as search:
                return search.tracker.run_id

    config = BRIEF.in_precision("auto")
    run = start(fast=False)
    assert start(fast=False) == run
    with pytest.raises(UserError, match="the search trains in fp32, and this command in bf16"):
        start(fast=True)
    study = optuna.load_study(storage=f"sqlite:///{(store.folder / STATE).as_posix()}", study_name="s")
    identity, data = study.user_attrs["identity"], prepare(config, store.folder).data
    study.set_user_attr("identity", identity | {"configs": {config.key("auto"): data.digest}})  # of an earlier version
    own = {"config_key": config.key("auto"), "precision": "float32", "search": "s", "trial": "baseline"}
    start_run(store, "baseline", "pretrain", {}, own | {"data_digest": data.digest}, parent=run)
    with pytest.raises(UserError, match="the search trains in another precision, and this command in"):
        start(fast=True)
    assert start(fast=False) == run
    assert study.user_attrs["identity"] == identity  # from now on it names its precision


def test_first_searches_of_a_home_can_start_at_once(store: Store) -> None:
    """They create Optuna's database, which only one of them may do."""
    together = Barrier(4)

    def start(name: str) -> int:
        together.wait()
        with open_search(name, BRIEF, SPACE, store) as search:
            return len(search.study.trials)

    with ThreadPoolExecutor(together.parties) as pool:
        assert list(pool.map(start, "abcd")) == [1, 1, 1, 1]  # each has its start


@pytest.mark.parametrize("name", ["q?x", "a%20b", "{x}"])
def test_the_home_can_have_any_name(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path / name)
    with open_search("s", BRIEF, SPACE, store):
        pass
    assert (store.folder / STATE).is_file()
    assert list(tmp_path.iterdir()) == [store.folder]


def test_a_home_whose_path_is_too_long_is_refused_first(store: Store) -> None:
    store.folder = store.folder / ("x" * 250) / ("y" * 250)
    search = open_search("s", BRIEF, SPACE, store)
    with pytest.raises(UserError, match=r"SQLite opens up to 500\. Set SIMCLR_HOME to a shorter one"), search:
        pass
