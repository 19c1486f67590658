"""A run is its Config: frozen, checked, and hashed into a key.

TOML in, one object out. Derived values (peak learning rate, number of steps) are functions elsewhere; nothing is ever
written back into a config. Sections are tables of the TOML; the augmentations' tables come from AUGMENTATIONS.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from .augment import AUGMENTATIONS, Crop, Params, Pipeline
from .data import DATASETS, NORMALIZATIONS, stored_side
from .errors import UserError, unknown
from .model import HEADS, STEMS, backbones
from .optim import OPTIMIZERS, OWN_SETTINGS, SCALINGS, SCHEDULES, peak_rate


def _one_of(kind: str, choices: Callable[[], Iterable[str]]) -> AfterValidator:
    """Checks that a string is among the names of a table."""

    def check(name: str) -> str:
        if name not in (names := list(choices())):
            raise unknown(kind, name, names)
        return name

    return AfterValidator(check)


class Section(BaseModel):
    """A frozen table of settings; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


Beta = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]

UNITS = {"MiB": 2**20, "GiB": 2**30}


def memory_bytes(text: str) -> int:
    """The bytes that "8GiB" or "8188MiB" is. Raises ValueError for anything else."""
    number, unit = text[:-3].strip(), text[-3:]
    if unit not in UNITS or not number.replace(".", "", 1).isdigit() or float(number) == 0:
        raise ValueError("write it as 8GiB or 8188MiB")
    return round(float(number) * UNITS[unit])


def _memory(text: str) -> str:
    memory_bytes(text)
    return text


Memory = Annotated[str, AfterValidator(_memory)]


class DataConfig(Section):
    """Which images, and how they are split."""

    dataset: Annotated[str, _one_of("data set", lambda: DATASETS)] = "shapes"
    dir: Path | None = None  # where the images or the downloaded archive are (default: under the home folder)
    side: int | None = Field(None, ge=8, le=1024)  # stored image side in pixels (default: the data set's own)
    val_fraction: float = Field(0.1, gt=0, lt=1)  # of the training images, held out where there is no validation split
    limit: int | None = Field(
        None, ge=2
    )  # use this many training images, chosen by the split seed (kNN and linear too)
    split_seed: int = Field(0, ge=0)  # of the validation split and the limit: the same for all seeds of a study
    normalize: Annotated[str, _one_of("normalization", lambda: NORMALIZATIONS)] = "dataset"
    on_bad_image: Literal["error", "skip"] = "error"


if TYPE_CHECKING:
    AugmentConfig = Section
else:
    AugmentConfig = create_model(
        "AugmentConfig",
        __base__=Section,
        __doc__="What a view goes through: one table for each of AUGMENTATIONS (p = 0: absent). Defaults: the paper's.",
        **{name: (row.params, Field(default_factory=row.params)) for name, row in AUGMENTATIONS.items()},
    )


def pipeline(section: AugmentConfig) -> Pipeline:
    """The operations that a view goes through, in order, without the absent ones."""
    chosen: dict[str, Params] = {name: getattr(section, name) for name in AUGMENTATIONS}
    return {name: applied for name, params in chosen.items() if (applied := params.applied())}


class ModelConfig(Section):
    """The encoder and the projection head."""

    backbone: Annotated[str, _one_of("backbone", backbones)] = "resnet18"
    stem: Annotated[str, _one_of("stem", lambda: STEMS)] = "cifar"
    # Multiplies the channels of a ResNet. Below 0.125 the first have fewer than 8, and oneDNN 3.12 (torch 2.14), on a
    # CPU without AVX-512, writes out of bounds in the weights' gradient of such a 1x1 convolution of stride 2.
    width: float = Field(1.0, ge=0.125, le=8)
    head: Annotated[str, _one_of("head", lambda: HEADS)] = "mlp"
    hidden_dim: int | None = Field(None, ge=1)  # of the head (default: as wide as h; paper: 2048 for ResNet-50)
    out_dim: int = Field(128, ge=1)  # of z
    head_batch_norm: bool = False  # batch norm after each linear layer of the head (the paper's code has it)


class LossConfig(Section):
    """NT-Xent."""

    temperature: float = Field(0.5, ge=0.01, le=1000)
    normalize: bool = True  # cosine similarity; without it a plain dot product (paper, Table 5)
    include_self: bool = False  # leave each row's similarity to itself in the denominator: a mistake, reproducible


class OptimConfig(Section):
    """The optimizer and its learning rate."""

    name: Annotated[str, _one_of("optimizer", lambda: OPTIMIZERS)] = "lars"
    lr: float = Field(0.3, gt=0)  # before scaling
    lr_scaling: Annotated[str, _one_of("learning-rate scaling", lambda: SCALINGS)] = "linear"
    weight_decay: float = Field(1e-6, ge=0)
    decay_bias_and_norm: bool = False
    momentum: float = Field(0.9, ge=0, lt=1)  # lars, sgd, muon (which is run with 0.95)
    trust: float = Field(1e-3, gt=0)  # lars
    betas: tuple[Beta, Beta] = (0.9, 0.999)  # adamw, muon
    schedule: Annotated[str, _one_of("schedule", lambda: SCHEDULES)] = "cosine"
    warmup_epochs: float = Field(10.0, ge=0)
    plateau_factor: float = Field(0.1, gt=0, lt=1)  # schedule = "plateau"
    plateau_patience: int = Field(10, ge=0)  # in epochs


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


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted names and their values, without those that are None."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif value is not None:
            flat[f"{prefix}{key}"] = value
    return flat


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over` in their place, table by table."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def nested(path: str, value: Any) -> dict[str, Any]:
    """`nested("loss.temperature", 0.1)` -> `{"loss": {"temperature": 0.1}}`."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value  # type: ignore[no-any-return]


def parse_setting(text: str) -> tuple[str, Any]:
    """`section.key=value` as (section.key, value); the value is TOML, or else a plain string."""
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise UserError(f"'{text}' is not a setting: expected section.key=value, e.g. loss.temperature=0.2")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    return path.strip(), parsed


def read_toml(path: Path) -> dict[str, Any]:
    """The table in a TOML file, or a UserError that names the file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"can't read the config file {path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a TOML file: {error}") from None


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


def readable(error: ValidationError, model: type[BaseModel]) -> UserError:
    """The first mistake that pydantic found, in a sentence."""
    first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")  # a misspelt name, before others
    parts = [str(part) for part in first["loc"]]
    misspelt = parts[-1:] if first["type"] == "extra_forbidden" else []
    tables = [part for part in parts[: len(parts) - len(misspelt)] if not set("-[") & set(part)]  # pydantic's own tags
    path = ".".join(tables + misspelt)
    if misspelt:
        return unknown("setting", path, settings(model))
    if first["type"] == "missing":
        return UserError(f"{path} is missing")
    if first["type"] == "value_error":
        return UserError(f"{path + ' = ' + _shown(first['input']) + ': ' if path else ''}{first['ctx']['error']}")
    message = first["msg"].removeprefix("Input should be ")
    return UserError(f"{path} = {_shown(first['input'])}: expected {message}")


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) < 80 else text[:77] + "..."


def settings(model: type[BaseModel]) -> list[str]:
    """Every dotted name of a setting of Config, or of another model, that `--set` and a TOML file may use."""

    def walk(model: type[BaseModel], prefix: str) -> Iterable[str]:
        for name, field in model.model_fields.items():
            kinds = field.annotation, *get_args(field.annotation)  # also of `Section | None`
            if section := next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None):
                yield from walk(section, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}"

    return list(walk(model, ""))
