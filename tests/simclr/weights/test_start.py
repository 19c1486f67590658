"""Training starts from the encoder of another program or run, which its digest names."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from simclr.config import make, to_toml
from simclr.data.dataset import Dataset
from simclr.model import Network, build_encoder
from simclr.train.step import start_training
from simclr.weights.checkpoint import save_weights
from simclr.weights.start import resolved
from tests.helpers import tiny
from tests.simclr.weights.helpers import error_of

CPU = torch.device("cpu")


def save(path: Path, seed: int = 1, prefix: str = "", **model: Any) -> dict[str, Tensor]:
    """Save an encoder as another program would, and return its weights."""
    encoder, _ = build_encoder(tiny(model=model).model, 16, seed)
    torch.save({"state_dict": {prefix + name: tensor for name, tensor in encoder.state_dict().items()}}, path)
    return dict(encoder.state_dict())


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_encoder_starts_from_the_file_and_the_head_does_not(digits: Dataset, tmp_path: Path) -> None:
    weights = save(tmp_path / "theirs.pth")
    config = resolved(tiny(seed=3, method="byol"), tmp_path / "theirs.pth")
    method: Any = start_training(config, digits, CPU).method
    assert equal(method.network.encoder.state_dict(), weights)
    assert equal(method.target.encoder.state_dict(), weights)  # the copy of a network that starts from them
    untrained = start_training(tiny(seed=3), digits, CPU).model
    assert equal(method.network.head.state_dict(), untrained.head.state_dict())
    assert not equal(untrained.encoder.state_dict(), weights)


def test_only_the_weights_are_part_of_the_key_not_their_file(tmp_path: Path) -> None:
    first, second, other = (tmp_path / name for name in ("a.pth", "b.pth", "c.pth"))
    save(first)
    save(second, prefix="f.")
    save(other, seed=2)
    keys = [resolved(tiny(), path).key() for path in (first, second, other)]
    assert keys[0] == keys[1]
    assert len({tiny().key(), *keys}) == 3
    config = resolved(tiny(), first)
    assert make(tomllib.loads(to_toml(config))) == config
    assert config.flat()["init"] == config.init
    assert "init" not in tiny().flat()


def test_weights_that_changed_are_refused_unless_a_checkpoint_follows(digits: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "theirs.pth"
    save(path)
    config = resolved(tiny(), path)
    save(path, seed=2)
    assert f"the weights in {path}, which init names, have changed" in error_of(start_training, config, digits, CPU)
    path.unlink()
    assert f"there is no file {path}, which init names: restore it" == error_of(start_training, config, digits, CPU)
    start_training(config, digits, CPU, resume=True)


def test_another_network_is_refused_with_the_settings_of_the_one_in_the_file(digits: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "theirs.pth"
    save(path, backbone="resnet10", stem="imagenet")
    message = error_of(resolved, tiny(), path)
    assert "theirs.pth, whose network differs" in message
    assert "(model.backbone=resnet18, model.stem=stride2)" in message
    assert message.endswith("use --set model.backbone=resnet10 --set model.stem=imagenet instead")
    config = resolved(tiny(model={"backbone": "resnet10", "stem": "imagenet"}), path)
    assert start_training(config, digits, CPU).step == 0
    assert "can't start from" in error_of(resolved, tiny(model={"backbone": "vgg11"}), path)
    wider = config.model_copy(update={"model": config.model.model_copy(update={"width": 0.25})})
    assert "use --set model.width=0.125 instead" in error_of(start_training, wider, digits, CPU)


def test_a_file_of_another_version_of_this_suite_is_not_taken_for_another_programs(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    network = Network(tiny().model, 16, 0, (0.5,) * 3, (0.5,) * 3)
    torch.nn.init.constant_(network.encoder.get_parameter("conv1.weight"), torch.nan)
    save_weights(path, network, {"config": "future = 1", "digest": ""})
    message = error_of(resolved, tiny(), path)
    assert message.startswith(f"can't start from {path}: {path} holds a config of a different version of this suite")


@pytest.mark.parametrize("own", [True, False])
def test_a_vision_transformer_of_another_side_is_refused_with_the_remedy(own: bool, tmp_path: Path) -> None:
    path, vit = tmp_path / "vit.safetensors", {"backbone": "vit_tiny_4", "stem": "imagenet", "width": 1.0}
    config = tiny(model=vit, augment={"crop": {"size": 24}})
    network = Network(config.model, 24, 0, (0.5,) * 3, (0.5,) * 3)
    save_weights(path, network if own else network.encoder, {"config": to_toml(config), "digest": ""} if own else {})
    assert resolved(config, path).init
    assert error_of(resolved, tiny(model=vit), path).endswith("use --set augment.crop.size=24 instead")


@pytest.mark.parametrize("text", ["weights.pth@0123456789abcdef", "weights.pth"])
def test_a_start_that_is_not_there_is_named(text: str, digits: Dataset) -> None:
    assert "there is no file weights.pth, which init names" in error_of(start_training, tiny(init=text), digits, CPU)


def test_of_several_encoders_a_training_starts_from_the_one_that_an_import_chooses(tmp_path: Path) -> None:
    path, encoder = tmp_path / "theirs.pth", build_encoder(tiny().model, 16, 1)[0]
    torch.save({prefix + name: t for prefix in "ab" for name, t in encoder.state_dict(prefix=".").items()}, path)
    message = error_of(resolved, tiny(), path)
    assert "choose one with --prefix 'a.' or 'b.'" in message
    assert message.endswith(f"add the option to `simclr import {path}`, and start from its run")
