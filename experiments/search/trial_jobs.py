"""What is done for a trial, on any machine: train its config, and measure its accuracy on validation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from experiments.runs.encoders import WeightsMissing, encoder_of, load_subject
from experiments.runs.expected import Expected
from experiments.runs.prepare import Prepared
from experiments.runs.train import train_or_resume
from experiments.tracking.claims import claim_config
from experiments.tracking.store import Record, Store
from experiments.tracking.writing import Tracker
from simclr import device as devices
from simclr.config import Config
from simclr.data.dataset import Dataset
from simclr.evaluate.linear import Linear
from simclr.evaluate.protocol import Protocol
from simclr.progress import SILENT, TRIAL_METRIC, Observer

ACCURACY_DIGITS = 6  # the others are noise of 32-bit numbers, which can change how a figure is rounded
PROBE = Linear(l2_values=9)  # the paper has 45 L2 values; a comparison of encoders doesn't need all of them


class Measured(NamedTuple):
    """A trial that was trained and measured."""

    run: str  # its id
    accuracy: float
    seconds: float  # of training steps


def train_trial(
    store: Store,
    observer: Observer,
    config: Config,
    expected: Expected,
    tags: Mapping[str, str],
    parent: str,
    wait: bool,
) -> Measured:
    """Train and measure a config of a search, as a job.

    Raises Unfit if this machine has other images than the search or can't compute as it does, and, without `wait`, Busy
    if another process is training the same config.
    """
    prepared = expected.prepare(config, store.folder, observer)
    with claim_config(store, prepared.config.key(), prepared.data.identity, wait=wait, observer=observer):
        record, accuracy = trained_accuracy(store, prepared, tags, parent, observer)
        return Measured(record.id, accuracy, training_seconds(record, config.train.batch_size))


def trained_accuracy(
    store: Store, prepared: Prepared, tags: Mapping[str, str], parent: str, observer: Observer
) -> tuple[Record, float]:
    """Train a config of a search and measure it. A run whose weights are needed and were deleted is trained again."""

    def train(again: bool) -> Record:
        return train_or_resume(prepared, store, again=again, tags=tags, parent=parent, observer=observer)

    record = train(again=False)
    try:
        return record, validation_accuracy(record, prepared.data, prepared.device, observer)
    except WeightsMissing as error:
        observer.say(f"{error.fact}. It is trained again")
    record = train(again=True)
    return record, validation_accuracy(record, prepared.data, prepared.device, observer)


def training_seconds(record: Record, batch_size: int) -> float:
    """How long the training steps of a run took, by the speeds that it logged."""
    rates = record.history("perf/images_per_second")
    steps = rates["step"].diff().fillna(rates["step"])
    return float((steps * batch_size / rates["value"]).sum())


def validation_accuracy(record: Record, data: Dataset, device: torch.device, observer: Observer = SILENT) -> float:
    """Accuracy on validation of a linear classifier on the encoder, at the best L2 value. It is logged to the run."""
    if TRIAL_METRIC in record.metrics:
        return round(record.metrics[TRIAL_METRIC], ACCURACY_DIGITS)  # earlier versions logged all digits
    subject = load_subject(encoder_of(record), data, Protocol(), device, observer)
    remedy = "trials are evaluated on the device that trains them: use --device cpu"
    with devices.memory_errors(remedy, devices.MORE_MEMORY):
        accuracy = round(PROBE.validation_accuracy(subject), ACCURACY_DIGITS)
    tracker = Tracker(record.store, record.id)
    tracker.log({TRIAL_METRIC: accuracy})
    tracker.flush()
    return accuracy
