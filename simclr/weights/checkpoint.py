"""Checkpoints and trained weights. Files are written completely or not at all, and loading them never runs code."""

from __future__ import annotations

import logging
import pickle
import shutil
import tomllib
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from simclr.config import Config, make, to_toml
from simclr.data.dataset import stored_side
from simclr.errors import UnusableCheckpoint, UnusableWeights, UserError
from simclr.files import PREFIX, written_whole
from simclr.model import Network
from simclr.settings import parse_toml

KEEP = 2  # checkpoints that a run keeps
AVERAGE = "ema."  # how the names of averaged weights start (`train.ema`)


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write `state` as the checkpoint of `step`, and remove all others except the KEEP - 1 before it.

    Checkpoints of later steps are removed because they can only be damaged ones. The file gets its name once it is
    complete on disk. Raises RunFailed if it can't be written. The earlier checkpoints are then still there.
    """
    path = folder / f"step-{step:09d}.pt"
    for left in folder.glob(f"{PREFIX}*"):  # by a process that was killed, as only one trains a run
        shutil.rmtree(left, ignore_errors=True)
    again = "resume the run from the checkpoint before it" if checkpoints(folder) else "start again"
    remedy = f"Free some space, then {again}"
    with written_whole(path, remedy) as scratch, scratch.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # a failed write
            raise OSError(str(error).splitlines()[0]) from error
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
    """Read a checkpoint, which holds only tensors and plain values.

    Raises UserError if it is damaged, holds more, or has weights that `check_tensors` refuses.
    """
    try:
        check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"there is no file {path}: check the path") from None
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} is not a weights file of this suite, or is damaged (files with Python objects are refused): "
            f"expected a run's model.safetensors or checkpoint"
        ) from None
    except Exception as error:  # torch's reader raises many kinds on a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is not a weights file of this suite, or is damaged ({reason})") from None
    if not isinstance(state, dict):
        raise UserError(f"{path} holds a {type(state).__name__}: expected a checkpoint of this suite")
    if isinstance(state.get("model"), Mapping):
        check_tensors(path, state["model"])
    return state


def check_archive(path: Path) -> None:
    """Raise ValueError if a file is a zip archive with damaged records, or with records that unpack to more than its
    size. torch verifies no checksums, and doesn't compress: an archive that is compressed could fill the memory.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        if sum(record.file_size for record in archive.infolist()) > path.stat().st_size:
            raise ValueError("its records are packed")
        if record := archive.testzip():
            raise ValueError(f"wrong checksum of {record}")


def check_tensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """Raise UserError, naming the file and the entry, unless all are tensors of finite numbers that it really holds.

    A tensor can claim a shape of which a file of a few kilobytes holds only one number.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise UserError(f"{path} can't be used: {name} is not a plain tensor")
        if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
            raise UserError(
                f"{path} can't be used: {name} should have the shape {tuple(tensor.shape)}, but the file holds only "
                f"{tensor.untyped_storage().nbytes()} bytes of it"
            )
        numbers = tensor.float() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor  # 8-bit kinds vary
        if wrong := int((~numbers.isfinite()).sum()):
            raise UserError(
                f"{path} can't be used: {wrong} of the {tensor.numel()} numbers in {name} are not finite (nan or "
                f"infinity). Use weights from before the training diverged"
            )


def latest(folder: Path) -> dict[str, Any]:
    """Read the newest checkpoint that is not damaged, with a warning for each damaged one that was skipped.

    Raises UnusableCheckpoint if there is none.
    """
    for path in reversed(checkpoints(folder)):
        try:
            return read(path)
        except UserError as error:
            logging.getLogger(__name__).warning("%s. Falling back to the checkpoint before it", error)
    raise UnusableCheckpoint(f"there is no readable checkpoint in {folder}: use --again to start over")


def save_weights(path: Path, model: nn.Module, metadata: dict[str, str]) -> None:
    """Write the weights of a trained network as safetensors. Raises RunFailed if they can't be written.

    `metadata` holds its `config` as TOML and the `digest` of its data.
    """
    with written_whole(path, "Free some space and run the command again") as scratch:
        scratch.write_bytes(weights_bytes(model, metadata))


def save_snapshot(folder: Path, epoch: int, model: nn.Module, config: Config, digest: str) -> None:
    """Write the weights after an epoch, which stay in the folder of the run. Raises RunFailed if they can't be written.

    `digest` is that of the data.
    """
    metadata = {"config": to_toml(config), "digest": digest}
    save_weights(folder / f"epoch-{epoch:08d}.safetensors", model, metadata)


def snapshots(folder: Path) -> dict[int, Path]:
    """The snapshots in a folder by their epoch, in ascending order."""
    return {int(path.stem.removeprefix("epoch-")): path for path in sorted(folder.glob("epoch-*.safetensors"))}


def weights_bytes(model: nn.Module, metadata: dict[str, str]) -> bytes:
    """The content of the file that `save_weights` writes."""
    return save_safetensors({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, metadata)


def load_weights(path: Path) -> tuple[Config, dict[str, Tensor], str]:
    """Read the config, the weights and the data digest from a run's model.safetensors or from one of its checkpoints.

    Raises UserError for any other file, and UnusableWeights for a config of another version, for weights that
    `check_tensors` refuses, and if they are not those of the config's network. That is found out before memory for the
    network is taken.
    """
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                state: dict[str, Any] = file.metadata() or {}
                state["model"] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is not a dict)
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{path} can't be read as safetensors ({error}): expected a run's model.safetensors"
            ) from None
    else:
        state = read(path)
    if not {"config", "digest", "model"} <= set(state):
        raise UserError(
            f"{path} was not written by this suite: expected a run's model.safetensors or checkpoint. Import weights "
            f"of other programs first, with `simclr import`"
        )
    try:
        return _understood(path, state)
    except UserError as error:
        raise UnusableWeights(str(error)) from None


def _understood(path: Path, state: dict[str, Any]) -> tuple[Config, dict[str, Tensor], str]:
    try:
        config = make(parse_toml(str(state["config"]), "its config"))
    except (UserError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path} holds a config of a different version of this suite: {error}") from None
    state["model"] = averaged(state.get("method")) or state["model"]
    check_tensors(path, state["model"])
    try:
        with torch.device("meta"):  # shapes without numbers
            network = Network(config.model, config.view_size() or stored_side(config.data), 0, (0.0,) * 3, (1.0,) * 3)
    except RuntimeError as error:  # the sizes overflow
        raise UserError(f"{path} holds a config of an impossible network: {str(error).splitlines()[0]}") from None
    try:
        check_shapes(network, state["model"])
    except UserError as error:
        raise UserError(f"{path} can't be used: {error}") from None
    return config, state["model"], state["digest"]


def averaged(method: Any) -> dict[str, Tensor]:
    """The averaged network in what a checkpoint holds of a method, which is then the one to evaluate. Else empty."""
    own = method if isinstance(method, dict) else {}
    return {str(name).removeprefix(AVERAGE): own[name] for name in own if str(name).startswith(AVERAGE)}


def is_own(path: Path) -> bool:
    """Whether a file holds weights of this suite."""
    try:
        load_weights(path)
    except UserError:
        return False
    return True


def check_shapes(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Raise UserError with the first difference if weights belong to a different network."""
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if own != given:
        name = next(n for n in (*own, *given) if own.get(n) != given.get(n))
        raise UserError(
            f"the weights belong to a different architecture: {name} is {given.get(name, 'missing')}, expected "
            f"{own.get(name, 'no such entry')}"
        )


def fill(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load weights into a network. Raises UserError with the first difference if they belong to a different network."""
    check_shapes(model, weights)
    model.load_state_dict(weights)
