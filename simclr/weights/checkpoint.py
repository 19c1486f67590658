"""Checkpoints: written whole or not at all, the last two kept, read without running anything in them."""

from __future__ import annotations

import logging
import os
import pickle
import tomllib
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from simclr.config import Config, make
from simclr.errors import RunFailed, UnusableCheckpoint, UserError

KEEP = 2


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write `state` as the checkpoint of `step`, then drop all but the last KEEP up to it.

    Any of a later step could not be read, or this one would not be written again.

    The file appears under its name only when all of it is on the disk. Raises RunFailed when it can't be written (a
    full disk); the earlier checkpoints are then still there.
    """
    path = folder / f"step-{step:09d}.pt"
    scratch = folder / "saving.tmp"  # one name, so that what a kill leaves is written over
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with scratch.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
        _remove(scratch)
        raise RunFailed(
            f"can't write the checkpoint {path}: {error}; free some space, then --resume goes on from the one before, "
            f"if there is one"
        ) from error
    saved = checkpoints(folder)
    kept = saved[: saved.index(path) + 1][-KEEP:]
    for old in saved:
        if old not in kept:
            _remove(old)
    return path


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(folder.glob("step-*.pt"))


def read(path: Path) -> dict[str, Any]:
    """One checkpoint, tensors and plain values only. Raises UserError if it is damaged or holds anything else."""
    try:
        if zipfile.is_zipfile(path) and (record := zipfile.ZipFile(path).testzip()):  # torch checks no sums
            raise ValueError(f"wrong checksum of {record}")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint {path}") from None
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} is not a plain checkpoint: it is damaged, or holds objects beyond tensors, which are not loaded"
        ) from None
    except Exception as error:  # torch's reader raises many kinds on a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is damaged or not a checkpoint ({reason})") from None
    if not isinstance(state, dict):
        raise UserError(f"{path} holds a {type(state).__name__}, expected a checkpoint of this suite")
    return state


def latest(folder: Path) -> dict[str, Any]:
    """The newest checkpoint that can be read; warns of damaged ones that were passed over.

    Raises UserError when there is none.
    """
    for path in reversed(checkpoints(folder)):
        try:
            return read(path)
        except UserError as error:
            logging.getLogger(__name__).warning("%s; falling back to the one before", error)
    raise UnusableCheckpoint(f"no checkpoint in {folder} can be read: --again begins anew")


def save_weights(path: Path, model: nn.Module, metadata: dict[str, str]) -> None:
    """The weights of a trained network as safetensors; `metadata` holds its config as TOML and its data's digest.

    Raises RunFailed when they can't be written.
    """
    try:
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path, metadata)
    except (SafetensorError, OSError) as error:
        _remove(path)
        raise RunFailed(f"can't write the weights {path}: {error}; free some space") from error


def load_weights(path: Path) -> tuple[Config, dict[str, Tensor], str]:
    """Config, weights and data digest of a run's model.safetensors, or of one of its checkpoints.

    Raises UserError for anything else.
    """
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                state: dict[str, Any] = file.metadata() or {}
                state["model"] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{path} can't be read as safetensors ({error}): expected a run's model.safetensors"
            ) from None
    else:
        state = read(path)
    if not {"config", "digest", "model"} <= set(state):
        raise UserError(f"{path} is not of this suite: expected a run's model.safetensors or one of its checkpoints")
    try:
        config = make(tomllib.loads(str(state["config"])))
    except (UserError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path} holds a config that this version can't read: {error}") from None
    return config, state["model"], state["digest"]


def fill(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Give a network its weights. Raises UserError, naming the first difference, when they are of another one."""
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if own != given:
        name = next(n for n in (*own, *given) if own.get(n) != given.get(n))
        raise UserError(
            f"the weights are of another architecture than their config: {name} is {given.get(name, 'absent')}, "
            f"expected {own.get(name, 'no such entry')}"
        )
    model.load_state_dict(weights)
