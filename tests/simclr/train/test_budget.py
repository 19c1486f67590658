from __future__ import annotations

import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.memory import CONFIGS, configured, measured
from experiments.runs import train
from experiments.tracking import Store
from simclr.data.dataset import Dataset, stored_side
from simclr.device import has_fast_bf16, release_memory
from simclr.errors import UserError
from simclr.train import budget, memory
from tests.helpers import simclr, tiny

CPU = torch.device("cpu")
SIDE = stored_side(tiny().data)
ROWS = {f"{row[0]}-{row[1]}-{row[3]}px-{row[6]}-{row[4]}in{row[5]}": row for row in CONFIGS}


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_the_predicted_peak_is_that_of_a_real_step(name: str) -> None:
    """On a CPU without AVX-512 it is a step in float32, and takes up to three times the largest weights more: copies
    that oneDNN holds while it computes their gradient, to judge by the bytes.
    """
    *row, precision, optimizer = ROWS[name]
    config = configured(*row, precision if has_fast_bf16(CPU) else "fp32", optimizer)
    model = budget.Network(config.model, stored_side(config.data), 0, (0.5,) * 3, (0.5,) * 3)
    largest = max(p.nbytes for p in model.parameters())
    copies = 0 if torch.cpu._is_avx512_supported() else 3
    prediction, real = sum(memory.predict(config, config.train.micro_batch).values()), measured(config, CPU)
    assert 0.97 * real - copies * largest <= prediction <= 1.03 * real


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("name", ROWS)
def test_the_reserves_cover_what_only_an_accelerator_shows(name: str) -> None:
    config = configured(*ROWS[name])
    prediction = sum(memory.predict(config, config.train.micro_batch).values())
    device = torch.accelerator.current_accelerator()
    release_memory()  # what the row before left in the allocator
    peak = measured(config, device)
    assert 0.97 * prediction <= peak <= 1.03 * prediction + budget.WORKSPACES
    held = torch.accelerator.max_memory_reserved(device)
    assert held <= prediction / (1 - budget.FRAGMENTATION) + budget.WORKSPACES


def test_parts_are_what_they_say() -> None:
    config = tiny(train={"batch_size": 64})
    model = budget.Network(config.model, SIDE, 0, (0.5,) * 3, (0.5,) * 3)
    weights = sum(x.nbytes for x in [*model.parameters(), *model.buffers()])
    parts = memory.predict(config, 16)
    assert tuple(parts) == memory.PARTS
    assert parts["weights"] == weights
    assert 0 < parts["gradients"] <= sum(p.nbytes for p in model.parameters())
    assert parts["optimizer"] == pytest.approx(2 * sum(p.nbytes for p in model.parameters()), rel=0.01)  # AdamW
    assert parts["data"] == 0


@pytest.mark.parametrize(("fast", "precision"), [(True, "bf16"), (False, "fp32")])
def test_a_cpu_without_a_plan_needs_what_its_own_precision_needs(
    fast: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    config, stated = tiny(train={"precision": "auto"}), tiny(train={"precision": precision})
    assert budget.peak(config, None, CPU) == sum(memory.predict(stated, stated.train.batch_size).values())
    assert budget.peak(config, budget.MemoryPlan(8, True, {"weights": 3, "data": 4}), CPU) == 7


def test_memory_grows_with_the_micro_batch_and_hardly_with_the_batch() -> None:
    def peak(batch: int, micro_batch: int) -> int:
        return sum(memory.predict(tiny(train={"batch_size": batch, "norm_batch": 32}), micro_batch).values())

    assert peak(128, 32) < peak(128, 64) < peak(128, 128)
    embeddings = 2 * 64 * 16 * 4  # z of both views of 64 images more, and its gradient
    assert peak(128, 32) - peak(64, 32) == 2 * embeddings + 64 * 3 * SIDE**2


def test_the_loss_of_a_large_batch_counts() -> None:
    """With micro-batches of two images, the similarities of the whole batch are what is largest."""
    parts = memory.predict(tiny(train={"batch_size": 512}), 2)
    assert parts["loss"] > 2 * 1024**2 * 4
    assert parts["loss"] > parts["activations"]


def test_work_is_counted_as_by_hand() -> None:
    """Multiplications and additions of every convolution and linear layer, forward and twice backward, two views."""
    config = tiny(data={"side": 32}, train={"batch_size": 64})
    model = budget.Network(config.model, 32, 0, (0.5,) * 3, (0.5,) * 3).eval()
    counted = 0

    def count(layer: torch.nn.Module, _: object, out: torch.Tensor) -> None:
        nonlocal counted
        counted += 2 * out.numel() * layer.weight[0].numel()  # type: ignore[union-attr, index]

    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            layer.register_forward_hook(count)
    model(torch.zeros(2, 3, 32, 32))
    assert memory.flops(config, 64) == 3 * counted
    assert memory.flops(config, 32) == 4 * counted


def budget_of(size: int) -> budget.Budget:
    return budget.Budget(round(size / (1 - budget.FRAGMENTATION)) + 1, {})


def test_the_largest_micro_batch_that_fits_is_taken_and_the_images_go_to_the_host_first() -> None:
    config, images = tiny(train={"batch_size": 256, "norm_batch": 32}), 1797
    stored = images * 3 * SIDE**2
    peaks = {m: sum(memory.predict(config, m).values()) for m in (256, 128, 64)}
    both = budget.plan_memory(config, images, budget_of(peaks[256] + stored))
    assert (both.micro_batch, both.on_device, both.peak) == (256, True, peaks[256] + stored)
    host = budget.plan_memory(config, images, budget_of(peaks[256]))
    assert (host.micro_batch, host.on_device, host.peak) == (256, False, peaks[256])
    half = budget.plan_memory(config, images, budget_of(peaks[256] - 16))
    assert half.micro_batch == 128
    grouped = tiny(train={"batch_size": 256, "norm_batch": 128})
    with pytest.raises(UserError, match=r"tiny needs .* in micro-batches of 128"):
        budget.plan_memory(grouped, images, budget_of(budget.plan_memory(config, 0, budget_of(peaks[64])).peak))


def test_where_nothing_fits_the_nearest_change_is_named() -> None:
    large = tiny(train={"batch_size": 256, "micro_batch": 256})
    smaller = tiny(train={"batch_size": 256, "micro_batch": 64, "norm_batch": 64})
    limit = budget_of(sum(memory.predict(smaller, 64).values()))
    with pytest.raises(UserError, match=r": --set train\.norm_batch=64 --micro-batch auto would fit"):
        budget.plan_memory(large, 0, limit)
    as_told = tiny(train={"batch_size": 256, "micro_batch": "auto", "norm_batch": 64})
    assert budget.plan_memory(as_told, 0, limit).micro_batch == 64
    fixed = tiny(train={"batch_size": 256, "micro_batch": 256, "norm_batch": 64})
    with pytest.raises(UserError, match=": --micro-batch auto would fit"):
        budget.plan_memory(fixed, 0, limit)
    config = tiny(model={"width": 1.0}, train={"batch_size": 16})
    quarter = tiny(model={"width": 0.25}, train={"batch_size": 16})
    limit = budget_of(sum(memory.predict(quarter, 16).values()))
    with pytest.raises(
        UserError, match=r"needs \d+ MiB in micro-batches of 16, and .*: --set model.width=0.25 would fit"
    ):
        budget.plan_memory(config, 0, limit)
    vit = tiny(model={"backbone": "vit_b_32", "stem": "imagenet", "width": 1}, data={"side": 32})
    with pytest.raises(UserError, match="take a smaller --backbone"):
        budget.plan_memory(vit, 0, limit)


def test_a_budget_without_room_and_the_smallest_config_that_fits_are_named() -> None:
    with pytest.raises(UserError, match=r"^of 1.00 GiB nothing is left for a run \(desktop 600 MiB, .*\): give more"):
        budget.plan_memory(tiny(), 0, budget.budget("1GiB", CPU))
    config = tiny(train={"batch_size": 256})  # the narrowest there is, in one group
    few = tiny(train={"batch_size": 32})
    groups = sum(memory.predict(tiny(train={"batch_size": 256, "norm_batch": 2}), 2).values())
    limit = budget_of(sum(memory.predict(few, 32).values()))
    assert groups > limit.usable  # the batch's own images and embeddings
    with pytest.raises(UserError, match=r": --batch-size 32 would fit$"):
        budget.plan_memory(config, 0, limit)


def test_the_table_of_what_fits_has_the_micro_batch_that_is_chosen_and_no_batch_of_single_images() -> None:
    sizes, table = budget.grid(tiny(train={"batch_size": 64, "norm_batch": 8}), budget_of(2**40), 16)
    assert sizes == [8, 16, 32, 64, 128, 256]
    assert set(table[64]) == {8, 16, 32, 64}
    sizes, table = budget.grid(tiny(train={"batch_size": 6, "norm_batch": 2}), budget_of(2**40), 2)
    assert (sizes, list(table)) == ([2, 6, 12, 24], [6, 12, 24])


def test_the_table_of_what_fits_has_each_batch_and_the_groups_of_batch_norm() -> None:
    config = tiny(train={"batch_size": 64, "norm_batch": 32})
    room = sum(memory.predict(config, 64).values())
    sizes, table = budget.grid(config, budget_of(room), 32)
    assert sizes == [16, 32, 64, 128, 256]
    assert {batch: list(row) for batch, row in table.items()} == {
        16: [16],
        32: [32],
        64: [32, 64],
        128: [32, 64, 128],
        256: [32, 64, 128, 256],
    }
    for batch, row in table.items():
        for size, peak in row.items():
            own = tiny(train={"batch_size": batch, "norm_batch": 32})
            need = sum(memory.predict(own, size).values())
            assert peak == (need if need <= room else None)


def test_on_a_gpu_the_rest_is_measured_and_the_allocator_is_held_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 GiB, of which others have taken one and this process's allocator holds two."""
    gib, held, shares = 2**30, 2 * 2**30, []
    monkeypatch.setattr(budget, "release_memory", lambda: None)
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda _: (5 * gib, 8 * gib))
    monkeypatch.setattr(torch.accelerator, "memory_reserved", lambda _: held)
    limit = budget.budget(None, torch.device("cuda"))
    assert (limit.total, limit.reserved) == (8 * gib, {"taken already": gib, "workspaces": budget.WORKSPACES})
    assert budget.budget("6GiB", torch.device("cuda")).total == 6 * gib
    card = SimpleNamespace(total_memory=8 * gib)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)

    def fraction(share: float, device: torch.device | int | None) -> None:
        assert not isinstance(device, torch.device) or device.index is not None  # as torch insists
        shares.append(share)

    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", fraction)
    with budget.enforced("6GiB", torch.device("cuda")):
        assert shares == [pytest.approx(5 / 8)]
    assert shares[1:] == [1.0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_run_on_a_gpu_records_its_predicted_and_its_measured_peak(tmp_path: Path) -> None:
    store = Store(tmp_path)
    metrics = store.client.get_run(train.train(tiny(device="auto", train={"epochs": 1}), store)).data.metrics
    peak = metrics["perf/peak_memory_mib"]
    assert 0 < peak <= metrics["perf/predicted_memory_mib"] + budget.WORKSPACES / memory.MIB
    assert torch.cuda.get_per_process_memory_fraction(0) == 1.0


def test_memory_that_is_the_systems_is_not_planned() -> None:
    assert budget.fit(tiny(), 100, torch.device("mps")) == (tiny(), None)


def test_a_card_that_is_not_at_hand_has_its_reserves_taken_off() -> None:
    limit = budget.budget(None, CPU)
    assert limit.total == 8188 * memory.MIB
    assert limit.usable == int((8188 - 600 - 400 - 256) * memory.MIB * 0.95)
    assert budget.budget("2GiB", CPU).total == 2 * 2**30


@pytest.mark.parametrize("text", ["8", "8GB", "GiB", "-1GiB", "0GiB", "lots"])
def test_a_memory_that_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="write it as 8GiB or 8188MiB"):
        tiny(memory=text)


def test_a_budget_changes_the_micro_batch_and_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(train={"batch_size": 256, "norm_batch": 32, "epochs": 1})
    room = sum(memory.predict(config, 64).values())
    monkeypatch.setattr(budget, "budget", lambda *_: budget_of(room))
    limited = config.model_copy(update={"memory": "1GiB"})  # without it a CPU does not plan
    assert limited.key() == config.key()
    store = Store(tmp_path)
    run = store.client.get_run(train.train(limited, store))
    recorded = tomllib.loads(store.artifact(run.info.run_id, "config.toml").read_text())
    assert recorded["train"]["micro_batch"] == 64
    assert run.data.metrics["perf/predicted_memory_mib"] == pytest.approx(room / memory.MIB)
    assert train.train(config, store) == run.info.run_id  # it is the same run


def test_on_a_cpu_nothing_is_planned_unless_asked(digits: Dataset) -> None:
    assert budget.fit(tiny(), len(digits.images), CPU) == (tiny(), None)


def test_a_network_that_cannot_take_the_images_has_no_budget(tmp_path: Path) -> None:
    settings = ("--set", "model.stem=imagenet", "--set", "model.width=1")
    done = simclr("budget", "--preset", "shapes", "--backbone", "alexnet", *settings, home=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: backbone 'alexnet' can't process 32 px images")


def test_budget_on_the_command_line(tmp_path: Path) -> None:
    done = simclr("budget", "--preset", "cifar10", "--batch-size", "64", "--images", "60000", home=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "cifar10-batch_size=64: a batch of 64, whole"
    assert [line.split()[0] for line in lines[1:8]] == list(memory.PARTS)
    assert "data            176 MiB" in done.stdout
    assert "the 60000 stored images are kept on the device" in done.stdout
    done = simclr("budget", "--preset", "cifar10", "--batch-size", "64", "--memory", "1.4GiB", home=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: cifar10-batch_size=64 needs ")
    assert done.stderr.endswith(" would fit\n")
