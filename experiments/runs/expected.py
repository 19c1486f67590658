"""What a run on another machine has to have in common with the process that asked for it."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.runs.prepare import Prepared, prepare
from experiments.workers.task import Unfit
from simclr import device as devices
from simclr.config import Config
from simclr.data.dataset import DataConfig, Dataset, open_dataset, short_identity
from simclr.errors import UserError
from simclr.progress import SILENT, Observer


@dataclass(frozen=True)
class Expected:
    """The images of a study or a search, and the precision that `auto` stands for."""

    images: DataConfig  # those of its baseline
    identity: str  # see Dataset.identity
    precision: str
    _opened: dict[str, Dataset] = field(default_factory=dict, compare=False, repr=False)  # in this process

    def __reduce__(self) -> tuple[type[Expected], tuple[Any, ...]]:
        return Expected, (self.images, self.identity, self.precision)

    @classmethod
    def of(cls, baseline: Config, identity: str, opened: Dataset | None = None) -> Expected:
        """What follows from the baseline, on the machine that asks. `opened` are its images if they are open."""
        images = baseline.data
        known = {images.model_dump_json(): opened} if opened is not None else {}
        return cls(images, identity, baseline.in_precision("auto").precision(), known)

    def prepare(self, config: Config, home: Path, observer: Observer = SILENT) -> Prepared:
        """A config that is ready to train here (see `prepare`).

        Raises Unfit if this machine has other images, or can't compute in the same precision.
        """
        node = platform.node()
        if config.train.precision == "auto":
            if not devices.can_compute(self.precision, devices.resolve(config.device)):
                raise Unfit(
                    f"auto means {self.precision} on the machine where the command was started, but {node} is slow in "
                    "it: add --set train.precision=fp32, or leave out this machine"
                )
            config = config.in_precision(self.precision)
        try:
            data = self._open(self.images, home, observer)
        except UserError as error:
            raise Unfit(f"{node} can't open the images: {error}") from error
        if data.identity != self.identity:
            raise Unfit(
                f"the images on {node} are not those that the command started with: their digest is "
                f"{short_identity(data.identity)}, and was {short_identity(self.identity)}. Give all machines the same "
                "images, and don't change them while the command runs"
            )
        return prepare(config, home, observer, self._open(config.data, home, observer))

    def _open(self, images: DataConfig, home: Path, observer: Observer) -> Dataset:
        """Images of a config, which are opened once for all runs that share them."""
        key = images.model_dump_json()
        if key not in self._opened:
            self._opened[key] = open_dataset(images, home, observer)
        return self._opened[key]
