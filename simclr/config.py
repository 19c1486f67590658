"""The Config of a run: frozen, validated, and hashed into a key.

A config is read from TOML, one table for each section. Derived values such as the peak learning rate are functions and
never written back into it. The tables of the views come from AUGMENTATIONS, and those of the methods from METHODS.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tomli_w
import torch
from pydantic import Field, ValidationError, create_model, model_validator

from simclr import device as devices
from simclr.data.dataset import DataConfig, stored_side
from simclr.errors import UserError
from simclr.methods import METHODS
from simclr.model import ModelConfig, Network, batch_norms
from simclr.optim import OptimConfig, peak_rate
from simclr.settings import (
    LARGEST_BATCH,
    MOST_EPOCHS,
    BatchSize,
    Epochs,
    Memory,
    Name,
    Section,
    Seed,
    flatten,
    later,
    merge,
    one_of,
    readable,
)
from simclr.views import AugmentConfig, Pipeline, ViewConfig, pipeline


def divisors(n: int) -> list[int]:
    """All divisors of n, in ascending order."""
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


def _settings_of(view: Pipeline) -> dict[str, Any]:
    return {name: augmentation.effective_settings() for name, augmentation in view.items()}


def _nearest(numbers: list[int], wanted: int) -> int:
    return min(numbers, key=lambda n: abs(n - wanted))


Group = Annotated[int, Field(ge=1, le=LARGEST_BATCH)]  # a number of images of a batch
MOST_MINUTES = 1e6  # two years, longer than any run
MOST_THREADS = 1024  # more than the cores of any machine


class TrainConfig(Section):
    """Settings of the training loop."""

    epochs: Epochs = 100  # number of passes over the images
    batch_size: BatchSize = 256  # number of images in a batch, each with two or more views
    # Number of images whose activations are in memory at once (auto: as many as fit).
    micro_batch: Group | Literal["auto"] = "auto"
    # Largest number of images that share the statistics of batch norm. The default is the share of a large batch that
    # one GPU usually holds; in the paper, the whole batch on all devices shares them. If it doesn't divide the batch,
    # the largest number below it that does is used.
    norm_batch: Group = 256
    # fused: one forward pass over all views. split: one for each view, which changes the statistics of batch norm.
    views: Literal["fused", "split"] = "fused"
    # auto: bf16 where the hardware has it, else fp16 on CUDA, else fp32. fp32 is never TF32.
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    # Number of epochs between kNN accuracies on validation images (0: never).
    knn_every: int = Field(5, ge=0, le=MOST_EPOCHS)
    # Evaluate an exponential moving average of the weights, which keeps this share (such as 0.99) at each step. The
    # running statistics of batch norm are averaged as well.
    ema: float | None = later(None, ge=0, lt=1)
    # Compile the network with torch.compile, which takes up to a minute at the start, and then runs fewer kernels on a
    # GPU. Results are the same up to rounding. It needs a C++ compiler, and Triton on a GPU.
    compile: bool = later(False)
    checkpoint_minutes: float = Field(5.0, gt=0, le=MOST_MINUTES)  # minutes between two checkpoints
    # Number of epochs between snapshots for `eval --snapshots` (0: none).
    keep_every: int = later(0, ge=0, le=MOST_EPOCHS)

    def snapshots(self) -> int:
        """How many snapshots of the encoder a run keeps, besides its weights at the end."""
        return (self.epochs - 1) // self.keep_every if self.keep_every else 0

    def micro_batches(self) -> list[int]:
        """The valid sizes of a micro-batch: divisors of the batch that are multiples of `norm_images`."""
        return [m for m in divisors(self.batch_size) if m % self.norm_images() == 0]

    def norm_images(self) -> int:
        """The number of images that share the statistics of batch norm: the largest divisor of the batch up to
        `norm_batch`. It does not depend on the available memory."""
        return max(d for d in divisors(self.batch_size) if d <= self.norm_batch)

    def effective_settings(self) -> dict[str, Any]:
        exclude = {"knn_every", "checkpoint_minutes", "keep_every", "micro_batch"}
        return self.model_dump(mode="json", exclude=exclude) | {"norm_batch": self.norm_images()}


if TYPE_CHECKING:
    MethodSections = Section
else:
    MethodSections = create_model(
        "MethodSections",
        __base__=Section,
        **{method.section_name: (method.section, Field(default_factory=method.section)) for method in METHODS.values()},
    )

# Part of every key. Increase it after a change to what the same config trains: views, loss, initial weights or order.
RESULT_VERSION = 3


class Config(MethodSections):
    """All settings of a run. Each of METHODS has a table of its own, of which only that of `method` is used."""

    name: Name = "simclr"  # name of the run, to which -s and the seed are appended
    method: Annotated[str, one_of("method", lambda: METHODS)] = "simclr"  # method that trains the encoder
    seed: Seed = 0  # seed of the initial weights, the order of the images and the augmentations
    # Weights that the encoder starts from: a run, or a file of torchvision, timm (ResNets) or another program, as
    # for `simclr import` (default: random ones). The suite appends @ and the digest of their tensors, and checks it.
    init: Annotated[str, Field(min_length=1)] | None = later(None)
    device: str = "auto"  # device to compute on: cpu, cuda, cuda:1, mps or auto (the accelerator if there is one)
    memory: Memory | None = None  # memory of the accelerator to plan for, e.g. "8GiB" (default: all of it)
    # Number of CPU threads to train with (auto: the fastest, measured on a few steps). It only changes results by
    # rounding. A resumed run keeps its number unless another one is given (default: OMP_NUM_THREADS, or one per core).
    threads: Annotated[int, Field(ge=1, le=MOST_THREADS)] | Literal["auto"] | None = later(None)
    data: DataConfig = DataConfig()
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    augment2: ViewConfig | None = None  # settings of every second view (default: those of `augment`)
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _check_view_sizes(self) -> Config:
        first, second = self.augment.crop.size, (self.augment2 or self.augment).crop.size
        if first != second:
            raise ValueError(f"both views need one size, got augment.crop.size = {first} and {second} in augment2")
        if self.augment.local and not METHODS[self.method].takes_local:
            names = ", ".join(name for name, method in METHODS.items() if method.takes_local)
            raise ValueError(
                f"method '{self.method}' takes whole views only: leave out augment.local, or choose another --method: "
                f"{names}"
            )
        return self

    @model_validator(mode="after")
    def _check_batches(self) -> Config:
        train, group = self.train, self.train.norm_images()
        if 4 * group < min(train.batch_size, train.norm_batch) and self._has_batch_norm():
            whole = max(1, round(train.batch_size / train.norm_batch)) * train.norm_batch
            raise ValueError(
                f"train.batch_size = {train.batch_size} can only be divided into equal groups of {group} images (up to "
                f"train.norm_batch = {train.norm_batch}), which are too few for batch norm: try "
                f"train.batch_size={whole}"
            )
        if train.micro_batch != "auto" and train.micro_batch not in (sizes := train.micro_batches()):
            raise ValueError(
                f"train.micro_batch = {train.micro_batch} must divide train.batch_size = {train.batch_size} and be a "
                f"multiple of {group}, the images that share batch norm: try {_nearest(sizes, train.micro_batch)}, or "
                f"lower train.norm_batch"
            )
        return self

    def _has_batch_norm(self) -> bool:
        """Whether the network or the method has batch norm. Both are built without memory for their weights."""
        with torch.device("meta"):
            network = Network(self.model, self.view_size() or stored_side(self.data), self.seed, (0.5,) * 3, (0.5,) * 3)
            return bool(batch_norms(METHODS[self.method](self.method_settings(), network, fused=True)))

    def method_settings(self) -> Section:
        """The settings of the method that is trained."""
        section: Section = getattr(self, METHODS[self.method].section_name)
        return section

    def run_name(self) -> str:
        """The name of the run: shapes-s0. For a name like no-blur@shapes, which says first how the config differs from
        another one, it is no-blur-s0@shapes, so that lists which cut long names show the difference and the seed."""
        difference, at, start = self.name.partition("@")
        return f"{difference}-s{self.seed}{at}{start}"

    def view_size(self) -> int | None:
        """The side of the views in pixels, or None for the stored side."""
        return self.augment.crop.size

    def view_sides(self) -> list[tuple[int, int]]:
        """How many views of an image there are of a side in pixels: whole views, then local crops if there are any."""
        local, side = self.augment.local, self.view_size() or stored_side(self.data)
        return [(self.augment.views or 2, side)] + ([(local.count, local.size)] if local else [])

    def view_count(self) -> int:
        """The number of views of an image, with its local crops."""
        return sum(count for count, _ in self.view_sides())

    def pipelines(self) -> list[Pipeline]:
        """The augmentations of each view: views one, three, ... have those of `augment`, the others `augment2`'s."""
        both = pipeline(self.augment), pipeline(self.augment2 or self.augment)
        return [both[view % 2] for view in range(self.augment.views or 2)]

    def local_pipelines(self) -> list[Pipeline]:
        """The augmentations of each local crop, which differ from those of the views by their crop."""
        if (local := self.augment.local) is None:
            return []
        size = {"p": 1.0, "size": local.size, "scale": local.scale}
        views = self.augment, self.augment2 or self.augment
        both = [pipeline(view.model_copy(update={"crop": view.crop.model_copy(update=size)})) for view in views]
        return [both[view % 2] for view in range(local.count)]

    def unused_sections(self) -> set[str]:
        """The names of the sections that belong to other methods."""
        return {method.section_name for method in METHODS.values()} - {METHODS[self.method].section_name}

    def precision(self) -> str:
        """The precision to train in: what `auto` stands for on the device. `auto` if this machine lacks the device."""
        try:
            return devices.precision_on(self.train.precision, devices.resolve(self.device))
        except UserError:
            return "auto"

    def in_precision(self, precision: str) -> Config:
        """The same config with another precision."""
        return self.model_copy(update={"train": self.train.model_copy(update={"precision": precision})})

    def dtype_name(self) -> str:
        """The precision as records state it, such as bfloat16."""
        return str(devices.PRECISIONS.get(self.precision())).removeprefix("torch.")

    def result(self, precision: str | None = None) -> dict[str, Any]:
        """The settings that decide the trained weights. Settings with the same meaning give the same values.

        `precision` replaces the config's own. Left out are the name, the device (but not what `auto` stands for there),
        the place of the images and how they are decoded (their digest is recorded beside the key), how often something
        is measured or saved, the micro-batch, and all settings that the chosen method, optimizer, head or schedule does
        not use. Stating a default explicitly changes nothing if it depends only on the config (as `data.side` does),
        but it does if it depends on the images or the network (as `augment.crop.size` does).
        """
        ignored = {"dir", "labels", "on_bad_image", "background", "range", "check"}
        data = self.data.model_dump(mode="json", exclude=ignored)
        version: dict[str, Any] = {"method": RESULT_VERSION}  # the form that it had when SimCLR was the only method
        if self.method != "simclr":
            version = {"method": self.method, "version": RESULT_VERSION}
        if self.init is not None:
            version["init"] = self.init.rpartition("@")[2]  # the digest, once it is known
        if local := self.local_pipelines():  # apart from the views, because batch norm sees them apart
            version["local"] = [_settings_of(view) for view in local]
        return version | {
            "seed": self.seed,
            "data": data | {"side": stored_side(self.data)},
            "views": [_settings_of(view) for view in self.pipelines()],
            "model": self.model.effective_settings(),
            METHODS[self.method].section_name: self.method_settings().effective_settings(),
            "optim": self.optim.effective_settings() | {"peak_rate": peak_rate(self.optim, self.train.batch_size)},
            "train": self.train.effective_settings() | {"precision": precision or self.precision()},
        }

    def key(self, precision: str | None = None) -> str:
        """Sixteen hexadecimal digits. Two configs have the same key only if they ask for the same result.

        `precision` replaces the config's own. Earlier versions wrote "auto" where a config did.
        """
        text = json.dumps(self.result(precision), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def flat(self) -> dict[str, Any]:
        """The settings by dotted name, for records and tables, without methods that are not used.

        Augmentations that are not used have all of their settings, so that MLflow's comparison of runs has no blanks.
        `method` is left out if it is simclr, as in the records from when that was the only method.
        """
        other = self.unused_sections() | ({"method"} if self.method == "simclr" else set())
        return flatten(self.model_dump(mode="json", exclude=other))


def to_toml(config: Config) -> str:
    """The config as TOML, which `make` turns into an equal config.

    Left out are unused methods at their defaults, and `method` if it is simclr: older versions don't know it.
    """
    default = {name for name in config.unused_sections() if getattr(config, name) == type(getattr(config, name))()}
    default |= {"method"} if config.method == "simclr" else set()
    return tomli_w.dumps(config.model_dump(mode="json", exclude=default, exclude_none=True))


def make(table: Mapping[str, Any]) -> Config:
    """A Config from nested tables of plain values. Raises UserError for the first mistake.

    `augment2` needs only the settings that differ from `augment`.
    """
    first, second = table.get("augment", {}), table.get("augment2")
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        of_both = {name: value for name, value in first.items() if name in ViewConfig.model_fields}
        table = {**table, "augment2": merge(of_both, second)}
    try:
        return Config.model_validate(table)
    except ValidationError as error:
        raise readable(error, Config) from None
