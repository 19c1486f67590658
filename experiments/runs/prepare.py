"""What a run needs before it starts, computed once and passed along."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from simclr import device as devices
from simclr import processes
from simclr.build import check_images, check_size
from simclr.config import Config
from simclr.data.dataset import Dataset, open_dataset, with_range
from simclr.errors import UserError
from simclr.evaluate.evaluations import has_test_labels
from simclr.progress import SILENT, Observer
from simclr.settings import flatten
from simclr.train import budget
from simclr.train.budget import Images, MemoryPlan
from simclr.train.loop import Steps, count_steps


@dataclass(frozen=True)
class Prepared:
    """A config with its open data, its device and the number of its steps.

    The memory plan is made when it is first needed, for the memory that is free on the device at that moment, and then
    kept.
    """

    config: Config  # as the user asked for it
    data: Dataset
    device: torch.device
    steps: Steps

    @cached_property
    def _fit(self) -> tuple[Config, MemoryPlan | None]:
        config = self.config.in_precision(self.config.precision())
        config = config.model_copy(update={"data": with_range(config.data, self.data)})
        return budget.fit_to_device(config, Images(len(self.data.images), self.data.has_labels), self.device)

    @property
    def fitted(self) -> Config:
        """The config with the micro-batch that fits the device, its precision, and the range of values of the images.

        Raises UserError if no micro-batch fits.
        """
        return self._fit[0]

    @property
    def plan(self) -> MemoryPlan | None:
        """How the run fits into the device's memory. None where memory isn't planned. Raises UserError if it can't."""
        return self._fit[1]

    @property
    def peak(self) -> int:
        """Predicted memory at the peak of the run, in bytes."""
        return budget.predicted_peak(self.fitted, self.plan, self.device)

    def with_config(self, config: Config) -> Prepared:
        """The same with a config that differs in its seed and name only, so that the data is shared."""
        return Prepared(config, self.data, self.device, self.steps)


def prepare(config: Config, home: Path, observer: Observer = SILENT, opened: Dataset | None = None) -> Prepared:
    """Open the data of a config and check that it can run. `home` holds decoded images and downloads.

    `opened` is the data if that is open already.

    Raises UserError if the device doesn't exist, if the images can't be read or are too few, and if the network can't
    process images of this size. Of several processes the first decodes the images, on each machine where they are not
    decoded yet. Raises UserError if the processes have different configs or images, or can't share a batch.
    """
    device = devices.resolve(config.device)
    check_size(config)
    budget.check_share(config)
    budget.check_devices(config, device)
    settings = flatten(config.result()) | {"train.knn_every": config.train.knn_every}
    processes.agree(settings, "Start all of them with the same command and the same version")
    with processes.first_alone():
        data = open_dataset(config.data, home, observer) if opened is None else opened
    processes.agree({"the digest of the images": data.identity}, "Give all machines the same images")
    steps = count_steps(config, data)
    check_images(config)
    return Prepared(config, data, device, steps)


def check_labels(config: Config, data: Dataset, command: str) -> None:
    """Raise UserError if the data of a config lacks the labels that a command needs to compare accuracies."""
    if not has_test_labels(data):
        raise UserError(
            f"{command} compares accuracies, so it needs labels: sort the images of {config.data.dir or data.name} "
            f"into two or more folders, one for each class"
        )
