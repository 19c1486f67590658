"""What fits into an accelerator's memory, and what to change if nothing does."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from benchmarks.memory import training_without_data
from simclr import processes
from simclr.config import Config
from simclr.data.dataset import stored_side
from simclr.errors import UserError
from simclr.evaluate.knn import KEPT
from simclr.train import budget
from simclr.train.budget import Images, MemoryBudget, MemoryPlan, memory_budget, plan_memory
from simclr.train.memory import MIB, predict, predict_knn
from tests.helpers import tiny

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
SIDE = stored_side(tiny().data)


def small(**sections: object) -> Config:
    return tiny(**({"model": {"backbone": "resnet10"}} | sections))


def budget_of(usable: int) -> MemoryBudget:
    """A budget with this many usable bytes."""
    return MemoryBudget(round(usable / (1 - budget.FRAGMENTATION)) + 1, {})


def peak(config: Config, micro_batch: int) -> int:
    return sum(predict(config, micro_batch).values())


@pytest.mark.parametrize(("fast", "precision"), [(True, "bf16"), (False, "fp32")])
def test_the_peak_on_a_cpu_without_a_plan_is_that_of_its_own_precision(
    fast: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    config, stated = (small(train={"precision": name, "batch_size": 32}) for name in ("auto", precision))
    assert budget.predicted_peak(config, None, CPU) == peak(stated, 32)
    assert budget.predicted_peak(config, MemoryPlan(8, True, {"weights": 3, "data": 4}), CPU) == 7


def test_the_largest_micro_batch_that_fits_is_chosen_and_images_stay_on_the_host_first() -> None:
    config, images = small(train={"batch_size": 64, "norm_batch": 16}), 1797
    stored = images * 3 * SIDE**2
    peaks = {m: peak(config, m) for m in (64, 32, 16)}
    both = plan_memory(config, Images(images), budget_of(peaks[64] + stored))
    assert (both.micro_batch, both.images_on_device, both.peak) == (64, True, peaks[64] + stored)
    host = plan_memory(config, Images(images), budget_of(peaks[64]))
    assert (host.micro_batch, host.images_on_device, host.peak) == (64, False, peaks[64])
    assert plan_memory(config, Images(images), budget_of(peaks[64] - 16)).micro_batch == 32
    grouped = small(train={"batch_size": 64, "norm_batch": 32})
    message = r"^tiny needs \d+ MiB in micro-batches of 32, but a run may use \d+ MiB of \d+ MiB: --set train"
    with pytest.raises(UserError, match=message):
        plan_memory(grouped, Images(images), budget_of(peaks[16]))


REMEDIES = {
    "a fixed micro-batch is freed": (
        small(train={"batch_size": 32, "micro_batch": 32, "norm_batch": 8}),
        small(train={"batch_size": 32, "norm_batch": 8}),
        "--micro-batch auto would fit",
    ),
    "batch norm's groups shrink": (
        small(train={"batch_size": 32, "micro_batch": 32}),
        small(train={"batch_size": 32, "norm_batch": 8}),
        r"--set train\.norm_batch=8 --micro-batch auto would fit",
    ),
    "the network becomes narrower": (
        small(model={"backbone": "resnet10", "width": 1.0}, train={"batch_size": 16}),
        small(model={"backbone": "resnet10", "width": 0.25}, train={"batch_size": 16}),
        r"--set model\.width=0\.25 would fit",
    ),
    "the batch becomes smaller": (
        small(train={"batch_size": 256}),
        small(train={"batch_size": 16}),
        "--batch-size 16 would fit",
    ),
}


@pytest.mark.parametrize("case", REMEDIES)
def test_the_error_names_the_nearest_change_that_fits(case: str) -> None:
    config, nearest, remedy = REMEDIES[case]
    limit = budget_of(peak(nearest, nearest.train.norm_images()))
    with pytest.raises(UserError, match=f": {remedy}$"):
        plan_memory(config, Images(0), limit)
    changed = nearest.model_copy(update={"train": nearest.train.model_copy(update={"micro_batch": "auto"})})
    assert plan_memory(changed, Images(0), limit).micro_batch == nearest.train.norm_images()  # as told, it fits


def test_a_smaller_batch_with_a_narrow_network_is_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up predictions, in which neither alone is enough."""
    monkeypatch.setattr(budget, "predict", lambda config, size: {"weights": 800 * config.model.width, "views": size})
    wide = small(model={"backbone": "resnet10", "width": 2.0}, train={"batch_size": 64})
    with pytest.raises(UserError, match=r": --set train\.norm_batch=16 would fit$"):
        plan_memory(wide, Images(0), budget_of(1600 + 16))
    with pytest.raises(UserError, match=r": --set model\.width=0\.125 would fit$"):
        plan_memory(wide, Images(0), budget_of(100 + 64))
    with pytest.raises(UserError, match=r": --batch-size 32 --set model\.width=0\.125 would fit$"):
        plan_memory(wide, Images(0), budget_of(100 + 32))
    with pytest.raises(UserError, match="choose a smaller --backbone or smaller images"):
        plan_memory(wide, Images(0), budget_of(100))


def test_only_resnets_are_made_narrower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "predict", lambda config, micro_batch: {"weights": 2000})
    vit = tiny(model={"backbone": "vit_b_32", "stem": "imagenet", "width": 1}, data={"side": 32})
    with pytest.raises(UserError, match="choose a smaller --backbone or smaller images"):
        plan_memory(vit, Images(0), budget_of(1000))


def test_knn_during_training_must_fit_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up predictions."""
    monkeypatch.setattr(budget, "predict", lambda config, size: {"weights": 100})
    monkeypatch.setattr(budget, "predict_knn", lambda config, images: {"weights": 100 + images})
    rarely, never = (small(train={"knn_every": every}) for every in (5, 0))
    assert plan_memory(rarely, Images(50), budget_of(150)).parts == {"weights": 150, "data": 0}
    with pytest.raises(UserError, match=r"^tiny needs 0 MiB for kNN .*: --set train\.knn_every=0 leaves them out$"):
        plan_memory(rarely, Images(60), budget_of(150))
    assert plan_memory(never, Images(60), budget_of(150)).peak == 100
    assert plan_memory(rarely, Images(60, labelled=False), budget_of(150)).when == budget.STEP
    assert plan_memory(rarely, Images(50), budget_of(150)).when == budget.KNN
    _, table = budget.peak_table(rarely, Images(50), budget_of(150), 32)
    assert {peak for row in table.values() for peak in row.values()} == {150}


def test_with_a_remedy_knn_fits_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up predictions, in which a network that is half as wide has steps that fit, but a kNN that doesn't."""
    monkeypatch.setattr(budget, "predict", lambda config, size: {"weights": 800 * config.model.width})
    monkeypatch.setattr(budget, "predict_knn", lambda config, images: {"weights": 1000 * config.model.width})
    sections = {"model": {"backbone": "resnet10", "width": 1.0}, "train": {"batch_size": 16, "knn_every": 5}}
    config = small(**sections)
    with pytest.raises(UserError, match=r": --set model\.width=0\.25 would fit$"):
        plan_memory(config, Images(10), budget_of(400))


def test_the_memory_of_knn_is_that_of_weights_a_few_images_and_bounded_features() -> None:
    config = small(optim={"name": "sgd"})
    few, more, many = (predict_knn(config, images) for images in (0, 1000, 10**9))
    assert few["weights"] == predict(config, 32)["weights"]
    width = training_without_data(config, CPU).model.features
    assert more["activations"] - few["activations"] == 4 * 1000 * width
    assert many["activations"] - few["activations"] == 2 * KEPT
    with processes.pretended(2):  # each has its half, both halves before they are joined, and the whole
        assert predict_knn(config, 10**6)["activations"] - few["activations"] == 2.5 * 4 * 10**6 * width
    averaged = predict_knn(small(optim={"name": "sgd"}, train={"ema": 0.9}), 0)
    assert averaged["weights"] == pytest.approx(2 * few["weights"], rel=0.01)


def test_a_budget_without_room_is_an_error() -> None:
    with pytest.raises(
        UserError, match=r"^1.00 GiB of memory is too little: .* \(desktop 600 MiB, .*\). Set --memory above"
    ):
        plan_memory(tiny(), Images(0), memory_budget("1GiB", CPU))


def test_the_table_has_each_batch_with_its_micro_batches_and_what_fits() -> None:
    config = small(train={"batch_size": 32, "norm_batch": 16})
    room = peak(config, 32)
    sizes, table = budget.peak_table(config, Images(0), budget_of(room), 16)
    assert sizes == [8, 16, 32, 64, 128]
    assert {batch: list(row) for batch, row in table.items()} == {
        8: [8],
        16: [16],
        32: [16, 32],
        64: [16, 32, 64],
        128: [16, 32, 64, 128],
    }
    for batch, row in table.items():
        for size, shown in row.items():
            need = peak(small(train={"batch_size": batch, "norm_batch": 16}), size) if size <= 64 else room + 1
            assert shown == (need if need <= room else None)


def test_the_table_has_the_chosen_micro_batch_and_no_batch_of_single_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "predict", lambda config, micro_batch: {"views": micro_batch})
    sizes, table = budget.peak_table(tiny(train={"batch_size": 96, "norm_batch": 16}), Images(0), budget_of(2**40), 32)
    assert sizes == [16, 24, 32, 48, 96, 192, 384]
    assert list(table[96].items()) == [(16, 16), (32, 32), (48, 48), (96, 96)]
    sizes, table = budget.peak_table(tiny(train={"batch_size": 6, "norm_batch": 2}), Images(0), budget_of(2**40), 2)
    assert (sizes, list(table)) == ([2, 6, 12, 24], [6, 12, 24])


def test_the_memory_of_a_gpu_is_measured_and_its_allocator_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of 8 GiB, of which other processes have taken 1 GiB and this process's allocator holds 2 GiB."""
    gib, shares = 2**30, []
    monkeypatch.setattr(budget, "release_memory", lambda: None)
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda _: (5 * gib, 8 * gib))
    monkeypatch.setattr(torch.accelerator, "memory_reserved", lambda _: 2 * gib)
    limit = memory_budget(None, CUDA)
    assert (limit.total, limit.reserved) == (8 * gib, {"taken already": gib, "workspaces": budget.WORKSPACES})
    assert memory_budget("6GiB", CUDA) == (6 * gib, {"workspaces": budget.WORKSPACES})  # others keep their 1 GiB
    assert memory_budget("7.5GiB", CUDA) == limit
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=8 * gib))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)

    def set_fraction(share: float, device: torch.device | int | None) -> None:
        assert not isinstance(device, torch.device) or device.index is not None  # as torch requires
        shares.append(share)

    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", set_fraction)
    with budget.limit_memory("6GiB", CUDA):
        assert shares == [pytest.approx(6 / 8)]
    assert shares[1:] == [1.0]


def test_the_reserves_of_a_card_that_is_not_present_are_subtracted() -> None:
    limit = memory_budget(None, CPU)
    assert limit.total == 8188 * MIB
    assert limit.usable == int((8188 - 600 - 400 - 256) * MIB * 0.95)
    assert memory_budget("2GiB", CPU).total == 2 * 2**30


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_the_systems_memory_is_not_planned_unless_asked(device: str) -> None:
    assert budget.fit_to_device(small(), Images(100), torch.device(device)) == (small(), None)


def test_a_plan_changes_the_micro_batch_and_not_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(memory="1GiB", train={"batch_size": 32, "norm_batch": 8})
    monkeypatch.setattr(budget, "memory_budget", lambda *_: budget_of(peak(config, 16)))
    fitted, plan = budget.fit_to_device(config, Images(0), CPU)
    assert plan is not None
    assert fitted.train.micro_batch == plan.micro_batch == 16
    assert fitted.key() == config.key() == small(train={"batch_size": 32, "norm_batch": 8}).key()
