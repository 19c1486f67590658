"""The predicted memory of a training step is that of a real step, part by part."""

from __future__ import annotations

import pytest
import torch

from benchmarks.memory import CONFIGS, make_config, measure_peak, training_without_data
from simclr import processes
from simclr.data.dataset import Dataset, stored_side
from simclr.device import has_fast_bf16, release_memory
from simclr.train import budget, memory
from simclr.train.cost import count_flops
from simclr.train.memory import PARTS, flops, format_bytes, predict
from tests.helpers import tiny
from tests.simclr.train.helpers import assert_predicted

CPU = torch.device("cpu")
SMALL = {"backbone": "resnet10"}
# Smaller rows than the benchmark's, with each of its kinds of backbone, stem, precision and optimizer.
ROWS = [
    ("resnet18", "cifar", 0.5, 32, 64, 64, "bf16", "sgd"),
    ("resnet18", "stride2", 0.5, 32, 256, 256, "fp32", "adamw"),
    ("resnet18", "imagenet", 0.5, 96, 32, 32, "bf16", "lars"),
    ("resnet50", "cifar", 0.25, 32, 32, 16, "fp32", "lars"),
    ("resnet50", "imagenet", 0.25, 64, 32, 16, "bf16", "adamw"),
    ("vit_b_32", "imagenet", 1.0, 64, 4, 2, "fp32", "sgd"),
    ("mobilenet_v2", "imagenet", 1.0, 96, 8, 8, "bf16", "sgd"),
    ("resnet10", "stride2", 0.25, 32, 1024, 256, "bf16", "adamw"),
    ("resnet10", "stride2", 0.25, 32, 128, 128, "bf16", "muon"),
]


def name_of(row: tuple[str, str, float, int, int, int, str, str]) -> str:
    return f"{row[0]}-{row[1]}-{row[3]}px-{row[6]}-{row[4]}in{row[5]}"


def peak(micro_batch: int, batch: int, **sections: object) -> int:
    config = tiny(train={"batch_size": batch, "norm_batch": 16}, model=SMALL, **sections)
    return sum(predict(config, micro_batch).values())


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_the_predicted_peak_is_that_of_a_real_step(row: tuple[str, str, float, int, int, int, str, str]) -> None:
    *sizes, precision, optimizer = row
    config = make_config(*sizes, precision if has_fast_bf16(CPU) else "fp32", optimizer)
    assert_predicted(config, row[5])


@pytest.mark.parametrize("micro_batch", [64, 16])
def test_the_peak_of_one_of_two_processes_is_predicted_as_well_as_that_of_one(micro_batch: int) -> None:
    """The other one is pretended, so that the real step exchanges nothing, but holds what it would."""
    config = make_config("resnet10", "stride2", 0.25, 32, 128, micro_batch, "fp32", "adamw")
    config = config.model_copy(update={"train": config.train.model_copy(update={"norm_batch": 16})})
    peaks, errors = [], []
    for count in (1, 2):
        with processes.pretended(count):
            peaks.append(measure_peak(config, CPU))
            errors.append(peaks[-1] - sum(predict(config, micro_batch).values()))
    assert peaks[1] < 0.995 * peaks[0]
    assert abs(errors[1] - errors[0]) < 0.01 * peaks[1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("row", CONFIGS, ids=name_of)
def test_the_reserves_cover_what_only_an_accelerator_shows(
    row: tuple[str, str, float, int, int, int, str, str],
) -> None:
    config = make_config(*row)
    predicted = sum(predict(config, row[5]).values())
    device = torch.accelerator.current_accelerator()
    assert device is not None
    release_memory()  # what the row before left in the allocator
    measured = measure_peak(config, device)
    assert 0.97 * predicted <= measured <= 1.03 * predicted + budget.WORKSPACES
    held = torch.accelerator.max_memory_reserved(device)
    assert held <= predicted / (1 - budget.FRAGMENTATION) + budget.WORKSPACES


def test_parts_are_what_their_names_say() -> None:
    config = tiny(train={"batch_size": 64}, model=SMALL)
    model = training_without_data(config, CPU).model
    parameters = sum(p.nbytes for p in model.parameters())
    parts = predict(config, 16)
    assert tuple(parts) == PARTS
    assert parts["weights"] == parameters + sum(b.nbytes for b in model.buffers())
    assert 0 < parts["gradients"] <= parameters
    assert parts["optimizer"] == pytest.approx(2 * parameters, rel=0.01)  # AdamW
    assert parts["data"] == 0


def test_memory_grows_with_the_micro_batch_and_hardly_with_the_batch() -> None:
    assert peak(16, 64) < peak(32, 64) < peak(64, 64)
    embeddings = 2 * 32 * 16 * 4  # of both views of 32 images more, and as many bytes for their gradient
    assert peak(16, 64) - peak(16, 32) == 2 * embeddings + 32 * 3 * stored_side(tiny().data) ** 2


def test_the_loss_of_a_large_batch_counts() -> None:
    """With micro-batches of two images, the similarities of the whole batch are the largest part."""
    parts = predict(tiny(train={"batch_size": 512}, model=SMALL), 2)
    assert parts["loss"] > 2 * 1024**2 * 4
    assert parts["loss"] > parts["activations"]


def test_a_prediction_does_not_change_the_next_one() -> None:
    config = tiny(train={"batch_size": 32}, model=SMALL)
    assert predict(config, 32) == predict(config, 32)


def test_precision_and_views_of_the_config_are_predicted() -> None:
    by_precision = {
        precision: sum(predict(tiny(train={"precision": precision, "batch_size": 32}, model=SMALL), 32).values())
        for precision in ("auto", "bf16", "fp32")
    }
    assert by_precision["auto"] == by_precision["bf16"] < by_precision["fp32"]
    assert peak(16, 16, augment={"crop": {"size": 64}}) > 2 * peak(16, 16)


def test_work_is_counted_as_by_hand() -> None:
    """Multiplications and additions of all convolutions and linear layers, for two views: forward, and twice backward,
    but once in the first layer, whose input needs no gradient."""
    config = tiny(data={"side": 32}, train={"batch_size": 64}, model=SMALL)
    model, counted = training_without_data(config, CPU).model.eval(), list[int]()

    def count(layer: torch.nn.Module, _: object, out: torch.Tensor) -> None:
        counted.append(2 * out.numel() * layer.weight[0].numel())  # type: ignore[union-attr,index]

    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            layer.register_forward_hook(count)
    model(torch.zeros(2, 3, 32, 32))
    assert flops(config, 64) == 3 * sum(counted) - counted[0]
    assert flops(config, 32) == 4 * sum(counted) - counted[0]


@pytest.mark.parametrize(("method", "settings"), [("byol", {}), ("moco", {"queue": 1})])
def test_work_of_networks_that_are_not_trained_is_counted_as_in_a_real_step(
    method: str, settings: dict[str, int], digits: Dataset
) -> None:
    """They go forward, but not backward."""
    config = tiny(method=method, augment={"crop": {"p": 0}}, train={"batch_size": 8}, **{method: settings})
    assert 8 * flops(config, 8) == pytest.approx(count_flops(config, digits, CPU), rel=0.001)


def test_work_of_a_vision_transformer_is_counted() -> None:
    vit = {"backbone": "vit_b_32", "stem": "imagenet", "width": 1.0}
    assert flops(tiny(model=vit, data={"side": 32}), 256) > 1e9


@pytest.mark.parametrize(("size", "text"), [(2**30, "1.00 GiB"), (300 * 2**20, "300 MiB"), (1.5 * 2**30, "1.50 GiB")])
def test_bytes_are_written_in_words(size: float, text: str) -> None:
    assert format_bytes(size) == text


def test_the_loss_of_a_large_batch_follows_from_smaller_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    followed = peak(16, 6144)
    monkeypatch.setattr(memory, "LARGE_BATCH", 10**6)
    memory._loss.cache_clear()
    assert followed == peak(16, 6144)
    memory._loss.cache_clear()
