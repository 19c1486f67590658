"""What the name of a search stands for: a config, its images, a space and objectives. Says how a command differs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from experiments.configs.resolve import changed
from experiments.runs.prepare import Prepared, check_labels, prepare
from experiments.search.space import Parameter, check_space, fitting, used
from experiments.studies.cell import BASELINE
from experiments.studies.differences import setting_differences
from experiments.studies.plan import STUDY_EVALUATIONS
from experiments.tracking.store import Store
from simclr.build import build_model
from simclr.config import Config
from simclr.data.dataset import short_identity
from simclr.device import PRECISIONS
from simclr.errors import UserError, first_few
from simclr.evaluate.evaluations import check
from simclr.evaluate.protocol import Protocol
from simclr.evaluate.subject import Subject
from simclr.progress import SILENT, Observer
from simclr.settings import parse_setting

Identity = dict[str, Any]  # as Optuna's study holds it: the images by config key, the space as JSON, and the objectives


class Asked(NamedTuple):
    """What a command asks a search for."""

    whole: Prepared  # the config that it starts from
    baseline: Prepared  # with the proxy settings
    parameters: list[Parameter]  # those that the config uses
    fitted: list[Parameter]  # without batches that are larger than the data set
    objectives: str

    def spaces(self) -> dict[str, list[Parameter]]:
        """The spaces that a search may have, as they are recorded.

        Earlier versions also tried batches that are larger than the data set. Their searches go on in the same space.
        """
        both = self.fitted, self.parameters
        return {json.dumps([each.model_dump(mode="json") for each in space]): space for space in both}

    def identities(self, name: str, store: Store) -> list[Identity]:
        """All that may be recorded of this search, first what this version records."""
        pair = self.whole, self.baseline
        configs = [{each.config.key(): each.data.identity for each in pair}]
        # Earlier versions wrote "auto" into the keys. What it stood for must be what it stands for here.
        if all(run.is_of(self.baseline.config) for run in store.records(kind="pretrain", search=name, trial=BASELINE)):
            configs += [{each.config.key(each.config.train.precision): each.data.identity for each in pair}]
        return [
            {"configs": keys, "space": space, "objectives": self.objectives}
            for space in self.spaces()
            for keys in configs
        ]


def with_proxy(full: Config, proxy: Sequence[str]) -> Config:
    """The config of a search's trials, which have the `proxy` settings (section.key=value)."""
    return changed(full, dict(map(parse_setting, proxy)))


def prepare_search(
    full: Config,
    parameters: Sequence[Parameter],
    store: Store,
    *,
    proxy: Sequence[str] = (),
    objectives: str = "accuracy",
    observer: Observer = SILENT,
    space_observer: Observer = SILENT,
) -> Asked:
    """What a command asks for, ready to train. `space_observer` is told what of the space is left out.

    Raises UserError if a config can't run, if its images have no labels, or if a value of the space is invalid.
    """
    cheap = with_proxy(full, proxy)
    check_space(parameters := used(parameters, cheap, space_observer), cheap)
    whole = prepare_labelled(full, store, observer)
    baseline = whole if cheap == full else prepare_labelled(cheap, store, observer)
    fitted = fitting(parameters, len(baseline.data.parts["pretrain"]), space_observer)
    return Asked(whole, baseline, parameters, fitted, objectives)


def prepare_labelled(config: Config, store: Store, observer: Observer) -> Prepared:
    """A config that is ready to train. Raises UserError also if its images have no labels to evaluate with."""
    prepared = prepare(config, store.folder, observer)
    check_labels(config, prepared.data, "search")
    model = build_model(config, prepared.data, torch.device("cpu"))
    check(Subject(model, config, prepared.data, Protocol()), STUDY_EVALUATIONS)
    return prepared


def check_same(name: str, recorded: Identity | None, asked: Asked, store: Store) -> None:
    """Raises UserError, which says what differs, if a search with this name is recorded that is not what is asked."""
    if recorded is not None and recorded not in asked.identities(name, store):
        causes = first_few(list(_causes(name, recorded, asked, store)), "; ")
        raise UserError(
            f"search '{name}' already exists, and this command asks for another one ({causes}): run the command that "
            "started it, or choose another --name"
        )


def _causes(name: str, recorded: Identity, asked: Asked, store: Store) -> Iterator[str]:
    """What differs between a recorded search and what is asked."""
    yield from _config_causes(name, recorded["configs"], asked, store)
    if recorded["space"] not in asked.spaces():
        yield f"the space is another one: {_space_difference(json.loads(recorded['space']), asked.fitted)}"
    if recorded["objectives"] != asked.objectives:
        yield f"--objectives was {recorded['objectives']} and is {asked.objectives} now"


def _config_causes(name: str, recorded: Mapping[str, str], asked: Asked, store: Store) -> Iterator[str]:
    """How the configs differ or, if they don't, the images. The first recorded config is the one without a proxy."""
    configs = [list(each["configs"]) for each in asked.identities(name, store)]
    own, theirs, now = asked.whole.config, list(recorded), asked.whole.data.identity
    if theirs[0] not in [keys[0] for keys in configs]:
        searches = store.records(kind="search", search=name)
        settings = list(setting_differences(searches[0], own)) if searches else []
        precision = next((each for each in (*PRECISIONS, "auto") if own.key(each) == theirs[0]), None)
        if settings:
            yield f"the config differs: {first_few(settings)}"
        elif precision is None:
            yield "the config differs, or another version of simclr started the search"
        else:
            was = "another precision" if precision == "auto" else precision
            yield f"the search trains in {was}, and this command in {own.precision()}"
    elif theirs not in configs:
        was_given, is_given = len(theirs) > 1, asked.whole is not asked.baseline
        changed_from = "was given and now is not" if was_given else "was not given and now is"
        yield f"--proxy {'has other settings now' if was_given and is_given else changed_from}"
    elif (was := recorded[theirs[0]]) != now or recorded[theirs[-1]] != asked.baseline.data.identity:
        yield f"the images differ: their digest was {short_identity(was)} and is {short_identity(now)} now"


def _space_difference(recorded: Sequence[Mapping[str, Any]], space: Sequence[Parameter]) -> str:
    """How a space differs from the recorded one, whose parameters are tables."""
    there = {Parameter.model_construct(**table).name: table for table in recorded}
    here = {parameter.name: parameter.model_dump(mode="json") for parameter in space}
    found = {
        "parameters only in the search": [name for name in there if name not in here],
        "only in this command": [name for name in here if name not in there],
        "with other values": [name for name in here if name in there and here[name] != there[name]],
    }
    return "; ".join(f"{what}: {first_few(names)}" for what, names in found.items() if names) or "in another order"
