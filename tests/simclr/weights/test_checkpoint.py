"""Checkpoints are complete or absent, damage is noticed, and loading a file never runs code."""

import errno
import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from simclr.config import Config, to_toml
from simclr.errors import RunFailed, UserError
from simclr.weights import encoder
from simclr.weights.checkpoint import checkpoints, fill, latest, load_weights, read, save, save_weights
from tests.helpers import tiny
from tests.simclr.weights.helpers import Bomb, error_of, trained


def state(step, size=2000):
    """Content like that of a checkpoint, with weights that depend on its step."""
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    extra = {"large": torch.arange(size, dtype=torch.float32) + step, "half": torch.ones(3, dtype=torch.bfloat16)}
    return {
        "model": dict(model.state_dict()) | extra,
        "optimizer": optimizer.state_dict(),
        "scaler": {},
        "plateau": {"scale": 1.0, "best": float("inf"), "bad_epochs": 0},
        "key": "0123456789abcdef",
        "step": step,
        "epoch_loss": 1.5,
    }


def same(one, other):
    """Whether values, types and order are equal at every level."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- save and read ----------------------------------------------------------------------------------------------------


def test_a_saved_checkpoint_is_read_back(tmp_path):
    saved = state(7)
    path = save(tmp_path / "run", 7, saved)
    assert same(read(path), saved)
    assert same(latest(tmp_path / "run"), saved)
    assert names(tmp_path / "run") == [path.name]


def test_the_last_two_are_kept(tmp_path):
    for step in (5, 10, 900, 1000, 123456):  # ordered as numbers, not as text
        save(tmp_path, step, state(step))
    assert [read(path)["step"] for path in checkpoints(tmp_path)] == [1000, 123456]
    assert len(names(tmp_path)) == 2


def test_saving_the_same_step_again_replaces_it(tmp_path):
    save(tmp_path, 5, state(5))
    save(tmp_path, 5, state(5) | {"epoch_loss": 9.0})
    assert [read(path)["epoch_loss"] for path in checkpoints(tmp_path)] == [9.0]


def test_a_folder_without_checkpoints_is_an_error(tmp_path):
    assert "no readable checkpoint" in error_of(latest, tmp_path)
    assert "no readable checkpoint" in error_of(latest, tmp_path / "none")


def test_an_unfinished_file_is_not_a_checkpoint(tmp_path):
    save(tmp_path, 5, state(5))
    scratch = tmp_path / ".writing-abc"  # left by a killed process
    scratch.mkdir()
    (scratch / "step-000000009.pt").write_bytes(b"half")
    assert latest(tmp_path)["step"] == 5
    save(tmp_path, 9, state(9))
    assert not scratch.exists()


def test_a_new_checkpoint_removes_damaged_later_ones(tmp_path):
    for step in (20, 30):
        save(tmp_path, step, state(step)).write_bytes(b"damaged")
    assert "use --again to start over" in error_of(latest, tmp_path)
    assert save(tmp_path, 5, state(5)).exists()
    assert latest(tmp_path)["step"] == 5
    save(tmp_path, 6, state(6))
    assert [read(path)["step"] for path in checkpoints(tmp_path)] == [5, 6]


# --- damage -----------------------------------------------------------------------------------------------------------


def cut(content):
    return content[: len(content) * 2 // 3]


def flip(content):
    """One byte changed in the middle of the largest tensor."""
    place = content.index((torch.arange(2000, dtype=torch.float32) + 20)[1000:1010].numpy().tobytes())
    return content[:place] + bytes([content[place] ^ 0x40]) + content[place + 1 :]


DAMAGES = {
    "cut": cut,
    "flipped": flip,
    "empty": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
    "tail zeroed": lambda content: content[: len(content) // 2] + bytes(len(content) - len(content) // 2),
    "text": lambda content: b"this is not a checkpoint\n",
    "one byte": lambda content: b"\x80",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_is_skipped_with_a_warning(damage, tmp_path, caplog):
    save(tmp_path, 10, state(10))
    path = save(tmp_path, 20, state(20))
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    found = latest(tmp_path)
    messages = [record.getMessage() for record in caplog.records]
    assert found["step"] == 10
    assert torch.equal(found["model"]["large"], state(10)["model"]["large"])
    assert len(messages) == 1
    assert str(path) in messages[0]
    assert "Falling back" in messages[0]


def test_damage_to_every_checkpoint_is_an_error(tmp_path, caplog):
    for step in (10, 20):
        path = save(tmp_path, step, state(step))
        path.write_bytes(cut(path.read_bytes()))
    assert "no readable checkpoint" in error_of(latest, tmp_path)
    assert len(caplog.records) == 2


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named(damage, tmp_path):
    path = save(tmp_path, 20, state(20))
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    assert str(path) in error_of(read, path)


def test_every_cut_and_every_changed_byte_is_noticed(tmp_path):
    path = save(tmp_path, 1, state(1, size=50))
    content, whole = path.read_bytes(), read(path)
    generator = torch.Generator().manual_seed(0)
    for place in torch.randint(len(content), (80,), generator=generator).tolist():
        for damaged in (content[:place], content[:place] + bytes([content[place] ^ 0x5A]) + content[place + 1 :]):
            path.write_bytes(damaged)
            try:
                found = read(path)
            except UserError:
                continue
            assert same(found, whole), f"byte {place}"  # padding between the records may change


@pytest.mark.parametrize("content", [torch.ones(3), [1, 2], "text", 5])
def test_a_file_with_other_content_is_rejected(content, tmp_path):
    torch.save(content, tmp_path / "other.pt")
    assert type(content).__name__ in error_of(read, tmp_path / "other.pt")


def test_a_missing_checkpoint_is_named(tmp_path):
    assert "there is no file" in error_of(read, tmp_path / "none.pt")


# --- no code is run ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["torch", "torch legacy", "pickle", "nested", "zip"])
def test_a_file_with_code_is_rejected_without_running_it(kind, tmp_path):
    mark, path = tmp_path / "ran", tmp_path / "step-000000001.pt"
    bomb = Bomb(mark)
    if kind == "pickle":
        path.write_bytes(pickle.dumps(bomb, protocol=2))
    elif kind == "zip":
        torch.save({"step": 1}, path)
        with zipfile.ZipFile(path) as old:
            members = {name: old.read(name) for name in old.namelist()}
        with zipfile.ZipFile(path, "w") as new:
            for name, content in members.items():
                new.writestr(name, pickle.dumps(bomb, protocol=2) if name.endswith("data.pkl") else content)
    else:
        content = state(1) | {"model": {"w": torch.ones(2), "deep": [bomb]}} if kind == "nested" else bomb
        torch.save(content, path, _use_new_zipfile_serialization=kind != "torch legacy")
    assert str(path) in error_of(read, path)
    assert "no readable checkpoint" in error_of(latest, tmp_path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(bomb))  # the bomb works
    assert mark.exists()


# --- a full disk ----------------------------------------------------------------------------------------------------


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def small_files():
    """Files can't grow beyond 32 KiB, as on a full disk."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (32768, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def two_checkpoints(folder):
    for step in (10, 20):
        save(folder, step, state(step))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("call", ["os.fsync", "torch.save", "os.replace"])
def test_a_full_disk_leaves_the_earlier_checkpoints(call, tmp_path, monkeypatch):
    before = two_checkpoints(tmp_path)
    monkeypatch.setattr(call, full)
    with pytest.raises(RunFailed, match="No space left on device") as caught:
        save(tmp_path, 30, state(30))
    monkeypatch.undo()
    assert "step-000000030.pt" in str(caught.value)
    assert "then resume the run from the checkpoint before it" in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert latest(tmp_path)["step"] == 20


@pytest.mark.usefixtures("small_files")
def test_a_partial_write_leaves_the_earlier_checkpoints(tmp_path):
    before = two_checkpoints(tmp_path)
    with pytest.raises(RunFailed, match="Free some space"):
        save(tmp_path, 30, state(30, size=100_000))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert latest(tmp_path)["step"] == 20


def test_a_folder_that_cannot_be_created_is_named(tmp_path):
    (tmp_path / "file").write_text("a file")
    with pytest.raises(RunFailed, match="file"):
        save(tmp_path / "file" / "run", 1, state(1))


@pytest.mark.usefixtures("small_files")
def test_a_full_disk_leaves_no_partial_weights(tmp_path):
    with pytest.raises(RunFailed, match=r"model\.safetensors"):
        save_weights(tmp_path / "model.safetensors", nn.Linear(200, 200), {"config": to_toml(Config()), "digest": "d"})
    assert names(tmp_path) == []


# --- trained weights --------------------------------------------------------------------------------------------------


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)


METADATA = {"config": to_toml(tiny()), "digest": "0123", "side": "32"}


def test_weights_are_read_back_with_config_and_digest(tmp_path):
    model, path = trained(tiny(), 16).to(memory_format=torch.channels_last), tmp_path / "model.safetensors"
    save_weights(path, model, METADATA)
    config, weights, digest = load_weights(path)
    assert config == tiny()
    assert digest == "0123"
    assert weights.keys() == model.state_dict().keys()
    assert all(same(weights[name], tensor) for name, tensor in model.state_dict().items())


def weights_file(folder, kind, model, config):
    """A file of each kind that holds an encoder."""
    if kind == "checkpoint":
        return save(folder, 1, {"config": to_toml(config), "digest": "0", "model": model.state_dict()})
    save_weights(folder / "model.safetensors", model, {"config": to_toml(config), "digest": "0"})
    return folder / "model.safetensors"


@pytest.mark.parametrize("kind", ["safetensors", "checkpoint"])
@pytest.mark.parametrize("entry", ["encoder.conv1.weight", "encoder.layer4.1.bn2.running_var", "head.2.bias"])
def test_weights_that_are_not_finite_are_refused_and_named(entry, kind, tmp_path):
    model = trained(tiny(), 16)
    model.state_dict()[entry].view(-1)[0] = torch.nan
    path = weights_file(tmp_path, kind, model, tiny())
    message = error_of(load_weights, path)
    assert str(path) in message
    assert f"numbers in {entry} are not finite" in message


def test_a_checkpoint_that_is_not_finite_is_skipped(tmp_path, caplog):
    save(tmp_path, 10, state(10))
    broken = state(20)
    broken["model"]["1.running_var"][2] = torch.inf
    save(tmp_path, 20, broken)
    assert latest(tmp_path)["step"] == 10
    assert "1 of the 3 numbers in 1.running_var" in caplog.text


@pytest.mark.parametrize("kind", ["safetensors", "checkpoint"])
@pytest.mark.parametrize("claimed", [{"backbone": "resnet152", "width": 8}, {"hidden_dim": 30_000}, {"head": "none"}])
def test_a_config_of_another_network_is_refused_before_the_network_is_made(claimed, kind, tmp_path, monkeypatch):
    path = weights_file(tmp_path, kind, trained(tiny(), 16), tiny(model=claimed))
    monkeypatch.setattr(encoder, "Network", lambda *_: pytest.fail("the network was made"))
    message = error_of(encoder.load_encoder, path)
    assert str(path) in message
    assert "the weights belong to a different architecture" in message


@pytest.mark.parametrize("kind", ["expanded", "meta", "no tensor"])
def test_a_checkpoint_can_not_claim_what_it_does_not_hold(kind, tmp_path):
    weights = trained(tiny(), 16).state_dict()
    name, entry = "encoder.layer4.0.conv1.weight", weights["encoder.layer4.0.conv1.weight"]
    weights[name] = {"expanded": torch.ones(()).expand(entry.shape), "meta": entry.to("meta"), "no tensor": 3}[kind]
    path = save(tmp_path, 1, {"config": to_toml(tiny()), "digest": "0", "model": weights})
    assert f"{path} can't be used: {name}" in error_of(load_weights, path)


FOREIGN = {
    "no metadata": None,
    "metadata of another program": {"format": "pt"},
    "a config that is not TOML": {"config": '{"architectures": ["x"]}', "digest": "0"},
    "a config of another version": {"config": "[model]\nlayers = 3\n", "digest": "0"},
    "a config without a digest": {"config": to_toml(Config())},
}


@pytest.mark.parametrize("metadata", FOREIGN)
def test_safetensors_of_another_program_are_rejected(metadata, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"w": torch.ones(2)}, path, FOREIGN[metadata])
    assert str(path) in error_of(load_weights, path)


GARBAGE = {
    "empty": b"",
    "text": b"not safetensors at all, but long enough",
    "huge header": struct.pack("<Q", 1 << 60) + b"{}",
    "checkpoint": None,
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_a_file_that_is_not_safetensors_is_named(kind, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(GARBAGE[kind] if GARBAGE[kind] is not None else save(tmp_path / "run", 1, state(1)).read_bytes())
    assert str(path) in error_of(load_weights, path)


def test_truncated_weights_are_named(tmp_path):
    path = tmp_path / "model.safetensors"
    save_weights(path, trained(tiny(), 16), METADATA)
    path.write_bytes(path.read_bytes()[:-5])
    assert str(path) in error_of(load_weights, path)


@pytest.mark.parametrize("where", ["none.safetensors", "."])
def test_a_missing_file_and_a_folder_are_named(where, tmp_path: Path):
    assert str(tmp_path) in error_of(load_weights, tmp_path / where)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"1.weight": torch.ones(5)}, r"1\.weight is \(5,\), expected \(4,\)"),
        ({"2.weight": torch.ones(5)}, r"2\.weight is \(5,\), expected no such entry"),
        ({"1.weight": None}, r"1\.weight is missing, expected \(4,\)"),
    ],
)
def test_weights_of_another_architecture_are_rejected(change, message):
    weights = {name: tensor for name, tensor in (network().state_dict() | change).items() if tensor is not None}
    with pytest.raises(UserError, match=f"different architecture: {message}"):
        fill(network(), weights)
