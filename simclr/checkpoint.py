"""Checkpoints: written whole or not at all, the last two kept, read without running anything in them."""

from __future__ import annotations

import os
import pickle
import tomllib
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .config import Config, make
from .errors import RunFailed, UserError

KEEP = 2


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write `state` as the checkpoint of `step`, then drop all but the last KEEP.

    The file appears under its name only when all of it is on the disk. Raises RunFailed when it can't be written (a
    full disk); the earlier checkpoints are then still there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:09d}.pt"
    scratch = path.with_suffix(".tmp")
    try:
        with scratch.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
        scratch.unlink(missing_ok=True)
        raise RunFailed(
            f"can't write the checkpoint {path}: {error}; free some space, then run with --resume"
        ) from error
    for old in checkpoints(folder)[:-KEEP]:
        old.unlink()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(folder.glob("step-*.pt"))


def read(path: Path) -> dict[str, Any]:
    """One checkpoint, tensors and plain values only. Raises UserError if it is damaged or holds anything else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint {path}") from None
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} is not a plain checkpoint: it holds objects beyond tensors, which are not loaded"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged or not a checkpoint ({str(error).splitlines()[0]})") from None
    if not isinstance(state, dict):
        raise UserError(f"{path} holds a {type(state).__name__}, expected a checkpoint of this suite")
    return state


def latest(folder: Path, say: Any = print) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, or None; says which damaged ones were passed over."""
    for path in reversed(checkpoints(folder)):
        try:
            return read(path)
        except UserError as error:
            say(f"{error}; falling back to the one before")
    return None


def save_weights(path: Path, model: nn.Module, metadata: dict[str, str]) -> None:
    """The weights of a trained network as safetensors; `metadata` holds its config as TOML, data digest and side."""
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path, metadata)


def load_weights(path: Path) -> tuple[Config, dict[str, Tensor], str]:
    """Config, weights and data digest of a file of `save_weights`. Raises UserError for anything else."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is not a dict)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} can't be read as safetensors ({error}): expected a run's model.safetensors") from None
    if "config" not in metadata:
        raise UserError(f"{path} holds weights without a config: expected a run's model.safetensors")
    return make(tomllib.loads(metadata["config"])), weights, metadata["digest"]
