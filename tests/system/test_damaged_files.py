"""Files with random damage: weights are refused in a sentence or read as they were, and caches are made anew."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from simclr.config import to_toml
from simclr.data.dataset import DataConfig, open_dataset
from simclr.errors import UserError
from simclr.weights.checkpoint import load_weights, save, save_weights
from simclr.weights.foreign import import_encoder
from tests.helpers import tiny
from tests.simclr.weights.helpers import trained

DAMAGES = int(os.environ.get("SIMCLR_TEST_DAMAGES", "40"))  # of each kind of file; the long version has 400

pytestmark = pytest.mark.slow


def damaged(content: bytes, draw: random.Random) -> bytes:
    """A file cut off, replaced, with bytes changed (mostly near its start, where the structure is) or put in."""
    place = draw.randrange(min(len(content), draw.choice([200, 2000, len(content)])))
    kind = draw.choice(["cut", "replace", "change", "put in"])
    if kind == "cut":
        return content[:place]
    if kind == "replace":
        return draw.randbytes(draw.randrange(2000))
    new = draw.randbytes(draw.randrange(1, 20))
    return content[:place] + new + content[place + (len(new) if kind == "change" else 0) :]


def network_of(path: Path) -> dict[str, torch.Tensor]:
    return load_weights(path)[1]


def imported(path: Path) -> dict[str, torch.Tensor]:
    return import_encoder(path).weights


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("model.safetensors", network_of),
        ("step-000000001.pt", network_of),
        ("foreign.pth", imported),
        ("legacy.pth", imported),
        ("foreign.safetensors", imported),
    ],
)
def test_damaged_weights_are_refused_or_finite(
    name: str, read: Callable[[Path], dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    model, path = trained(tiny(), 16), tmp_path / name
    if name == "model.safetensors":
        save_weights(path, model, {"config": to_toml(tiny()), "digest": "0"})
    elif name == "step-000000001.pt":
        save(tmp_path, 1, {"config": to_toml(tiny()), "digest": "0", "model": model.state_dict()})
    elif name == "foreign.safetensors":
        save_weights(path, model.encoder, {})
    else:
        torch.save(model.encoder.state_dict(), path, _use_new_zipfile_serialization=name != "legacy.pth")
    content, shapes = path.read_bytes(), {key: tensor.shape for key, tensor in read(path).items()}
    draw, messages = random.Random(0), []
    for _ in range(DAMAGES):
        path.write_bytes(damaged(content, draw))
        try:
            weights = read(path)
        except UserError as error:
            messages.append(str(error))
        else:
            assert {key: tensor.shape for key, tensor in weights.items()} == shapes
            assert all(tensor.isfinite().all() for tensor in weights.values())
    print(f"{name}: {len(messages)} of {DAMAGES} refused")
    assert len(messages) > DAMAGES // 2
    assert all("\n" not in message for message in messages)


def test_damaged_caches_of_images_are_made_anew(tmp_path: Path) -> None:
    config = DataConfig(dataset="digits")
    whole = open_dataset(config, tmp_path)
    (folder,) = (tmp_path / "cache").glob("digits-*")
    shutil.copytree(folder, tmp_path / "kept")
    draw = random.Random(0)
    for _ in range(DAMAGES):
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "kept", folder)
        path = draw.choice(sorted(folder.iterdir()))
        if draw.random() < 0.2:
            path.unlink()
        else:
            path.write_bytes(damaged(path.read_bytes(), draw))
        found = open_dataset(config, tmp_path)
        assert found.images.shape == whole.images.shape
        assert {part: len(rows) for part, rows in found.parts.items()} == {
            part: len(rows) for part, rows in whole.parts.items()
        }
