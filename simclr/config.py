"""A run is its Config: frozen, checked, and hashed into a key.

TOML in, one object out. Derived values (peak learning rate, number of steps) are functions elsewhere; nothing is ever
written back into a config. Sections are tables of the TOML; the augmentations' tables come from AUGMENTATIONS.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from simclr.augment import Crop
from simclr.data.dataset import DataConfig, stored_side
from simclr.methods.simclr import LossConfig
from simclr.model import ModelConfig
from simclr.optim import OPTIMIZERS, OWN_SETTINGS, OptimConfig, peak_rate
from simclr.settings import Count, Memory, Section, flatten, merge, readable
from simclr.views import AugmentConfig, Pipeline, pipeline


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _nearest(numbers: list[int], wish: int) -> int:
    return min(numbers, key=lambda n: abs(n - wish))


NORM_BATCH = 256  # what a device usually holds of a large batch; the paper's are over the whole batch of all devices


class TrainConfig(Section):
    """The loop."""

    epochs: int = Field(100, ge=1)
    batch_size: int = Field(256, ge=2)  # images; 2N views
    micro_batch: Count | Literal["auto"] = "auto"  # images whose activations are held at a time; auto: what fits
    norm_batch: Count = NORM_BATCH  # images at most that share batch norm's statistics: `norm_images`
    views: Literal["fused", "split"] = "fused"  # one forward for both views, or two: batch norm sees the difference
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    knn_every: int = Field(5, ge=0)  # epochs between kNN accuracies on validation (0: never)
    checkpoint_minutes: float = Field(5.0, gt=0)

    def micro_batches(self) -> list[int]:
        """The micro-batches that a batch may be computed in: whole groups of `norm_images`."""
        return [m for m in divisors(self.batch_size) if m % self.norm_images() == 0]

    def norm_images(self) -> int:
        """How many images share batch norm's statistics, whatever the memory: the largest divisor of the batch up to
        `norm_batch`."""
        return max(d for d in divisors(self.batch_size) if d <= self.norm_batch)


METHOD = 3  # in every key; a change of what any config trains (views, loss, initial weights, order) gives a new number


class Config(Section):
    """Everything that decides a run."""

    name: str = "simclr"
    seed: int = Field(0, ge=0)
    device: str = "auto"
    memory: Memory | None = None  # of the accelerator, e.g. "8GiB" (default: of the one at hand)
    data: DataConfig = DataConfig()
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    augment2: AugmentConfig | None = None  # of the second view: what differs from `augment`
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _views_agree(self) -> Config:
        sizes = [getattr(view, "crop").size for view in (self.augment, self.augment2 or self.augment)]  # noqa: B009
        if sizes[0] != sizes[1]:
            raise ValueError(f"both views need one size, got augment.crop.size = {sizes[0]} and {sizes[1]} in augment2")
        return self

    @model_validator(mode="after")
    def _batches_divide(self) -> Config:
        """A micro-batch is a part of the batch, of whole groups that share batch norm's statistics."""
        train, group = self.train, self.train.norm_images()
        if 4 * group < min(train.batch_size, train.norm_batch):
            whole = max(1, round(train.batch_size / train.norm_batch)) * train.norm_batch
            raise ValueError(
                f"train.batch_size = {train.batch_size} has no equal parts of up to train.norm_batch = "
                f"{train.norm_batch} images but of {group}, too few for batch norm: try {whole}"
            )
        if train.micro_batch != "auto" and train.micro_batch not in (sizes := train.micro_batches()):
            raise ValueError(
                f"train.micro_batch = {train.micro_batch} must divide train.batch_size = {train.batch_size} and be of "
                f"whole groups of train.norm_batch ({group}): try {_nearest(sizes, train.micro_batch)}, or set that too"
            )
        return self

    def view_size(self) -> int | None:
        """The side of the views in pixels; None: the stored side."""
        crop: Crop = self.augment.crop  # type: ignore[attr-defined]
        return crop.size

    def pipelines(self) -> tuple[Pipeline, Pipeline]:
        """What view one and view two go through."""
        return pipeline(self.augment), pipeline(self.augment2 or self.augment)

    def result(self) -> dict[str, Any]:
        """What decides the trained weights, with equal meanings written equally (but for sizes spelt out that are the
        default's for the data or network at hand, as a crop to the images' own side).

        Left out: the name, the device, where the images lie (their digest is recorded beside the key), how often
        something is measured or saved, the micro-batches that a batch is computed in, and every setting that the chosen
        optimizer, head or schedule does not read.
        """
        out = self.model_dump(mode="json", exclude={"name", "device", "memory", "augment", "augment2"})
        out["method"] = METHOD
        out["views"] = [{name: op.effective() for name, op in view.items()} for view in self.pipelines()]
        for key in ("dir", "on_bad_image"):
            del out["data"][key]
        out["data"]["side"] = stored_side(self.data)
        for key in ("knn_every", "checkpoint_minutes", "micro_batch"):
            del out["train"][key]
        out["train"]["norm_batch"] = self.train.norm_images()
        optim = out["optim"]
        optim["peak_rate"] = peak_rate(self.optim, self.train.batch_size)
        unread = {"lr", "lr_scaling"} | (OWN_SETTINGS - OPTIMIZERS[self.optim.name].reads)
        if self.optim.schedule != "plateau":
            unread |= {"plateau_factor", "plateau_patience"}
        if self.optim.weight_decay == 0 and self.optim.name != "lars":
            unread.add("decay_bias_and_norm")
        out["optim"] = {key: value for key, value in optim.items() if key not in unread}
        by_head = {"none": {"hidden_dim", "out_dim", "head_batch_norm"}, "linear": {"hidden_dim"}}
        for key in by_head.get(self.model.head, ()):
            del out["model"][key]
        return out

    def key(self) -> str:
        """Sixteen hexadecimal digits that two configs share only if they ask for the same result."""
        text = json.dumps(self.result(), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def flat(self) -> dict[str, Any]:
        """Dotted names to plain values, absent augmentations left out: for records and tables."""
        data = self.model_dump(mode="json")
        for view in ("augment", "augment2"):
            if data[view] is not None:
                data[view] = {name: ops for name, ops in data[view].items() if ops["p"] > 0}
        return flatten(data)


def to_toml(config: Config) -> str:
    """The config as TOML that `--config` reads back to an equal config."""
    lines: list[str] = []

    def write(table: Mapping[str, Any], path: str) -> None:
        if path:
            lines.append(f"\n[{path}]")
        lines.extend(
            f"{key} = {json.dumps(value, ensure_ascii=False)}"
            for key, value in table.items()
            if value is not None and not isinstance(value, Mapping)
        )
        for key, value in table.items():
            if isinstance(value, Mapping):
                write(value, f"{path}.{key}" if path else key)

    write(config.model_dump(mode="json"), "")
    return "\n".join(lines).strip() + "\n"


def make(table: Mapping[str, Any]) -> Config:
    """A Config from nested plain values; a UserError names the first bad one in a sentence.

    `augment2` states what differs from `augment`.
    """
    first, second = table.get("augment", {}), table.get("augment2")
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        table = {**table, "augment2": merge(first, second)}
    try:
        return Config.model_validate(table)
    except ValidationError as error:
        raise readable(error, Config) from None
