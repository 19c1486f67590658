"""Everything to measure on a GPU, in one script of at most ten minutes: `python -m benchmarks.gpu --out FOLDER`.

Runs the tests marked `gpu`, compares predicted with measured memory, times each part of a training step for five
presets (with and without torch.compile, and beside lightly's views if lightly is installed), times kNN and the linear
classifier, and trains and evaluates a network with the commands that a user types. Writes gpu.json and gpu.md after
every section, so that a run that is cut short keeps what it has measured. A section that fails is reported with its
error, and the others still run. `--quick` shrinks every size, to check the script itself on a CPU.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial, update_wrapper
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import sections
from benchmarks.memory import CONFIGS, make_config, measure_peak, training_without_data
from benchmarks.sections import Page, Row
from benchmarks.timing import bare_step, count_kernels, parts_of_a_step, processor, seconds, synchronize, times_in_turn
from experiments.configs.resolve import resolve
from simclr import device as devices
from simclr.data.dataset import stored_side
from simclr.evaluate.knn import knn_predict
from simclr.evaluate.linear import Linear, choose_l2, preprocessing
from simclr.train.budget import Images, memory_budget, plan_memory
from simclr.train.memory import MIB, predict
from simclr.train.step import Training, train_step
from simclr.views import batch_views

ROOT = Path(__file__).parent.parent
PRESETS = ("cifar10-cpu", "cifar10", "paper-cifar10-resnet18", "paper-cifar10", "tiny-imagenet-4060")
ROUNDS = 3  # of timing each step, because the speed of a machine varies


class Options(NamedTuple):
    """What to measure on, and how much."""

    device: torch.device
    quick: bool = False
    train: Sequence[str] = ("--preset=shapes",)  # of the real run
    epochs: int = 12  # of the real run


# --- sections: each returns the rows of one table ---------------------------------------------------------------------


def card(options: Options) -> list[Row]:
    """The device and the versions of its libraries."""
    device = options.device
    row: Row = {"device": devices.describe(device), "torch": torch.__version__, "cpu": processor()}
    row["cpu_threads"] = torch.get_num_threads()
    row["default_precision"] = devices.precision_on("auto", device)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        row |= {"memory_gib": properties.total_memory / 2**30, "multiprocessors": properties.multi_processor_count}
        row |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return [row]


def steps(options: Options) -> list[Row]:
    """Time, memory and parts of a training step of each preset, beside a bare step on views that are ready.

    Steps overlap with one another, and each part waits for the GPU, so the parts don't add up to a step.
    """
    return [measure_step(preset, options) for preset in PRESETS]


def memory_table(options: Options) -> list[Row]:
    """Predicted and measured peaks of the configs of benchmarks.memory."""
    rows = []
    for setting in CONFIGS[: 2 if options.quick else None]:
        config = make_config(*setting)
        predicted = sum(predict(config, setting[5]).values())
        devices.release_memory()
        measured = measure_peak(config, options.device)
        row: Row = {"config": " ".join(map(str, setting)), "predicted_mib": predicted / MIB}
        row |= {"measured_mib": measured / MIB, "measured/predicted": measured / predicted}
        if options.device.type != "cpu":
            row["reserved_mib"] = torch.accelerator.max_memory_reserved(options.device) / MIB
        rows.append(row)
    return rows


def gpu_tests(_: Options) -> list[Row]:
    """The tests marked `gpu`."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--tb=short"]
    command += ["--continue-on-collection-errors", "tests"]  # other tests need packages that may be missing here
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    lines = done.stdout.strip().splitlines()
    failures = [line for line in lines if line.startswith(("FAILED", "ERROR", "E   "))]
    return [{"result": lines[-1] if lines else done.stderr[-500:], "failures": failures[:60]}]


def evaluation(options: Options) -> list[Row]:
    """kNN and the linear classifier on made-up features."""
    train, test, width, classes = (2000, 200, 64, 10) if options.quick else (50_000, 10_000, 512, 10)
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, width, generator=draw)
    y = torch.arange(train + test) % classes
    x = (centres[y] + 4 * torch.randn(train + test, width, generator=draw)).to(options.device)
    y = y.to(options.device)
    settings = Linear(l2_values=3) if options.quick else Linear()

    def knn() -> None:
        knn_predict(x[:train], y[:train], x[train:], classes, [200], 0.1)

    def linear() -> None:
        features, others = map(preprocessing(settings, x[:train]), (x[:train], x[train:]))
        choose_l2(features, y[:train], others, y[train:], classes, settings)

    return [
        {
            "what": f"kNN (k 200), {test} queries, {train} x {width}",
            "seconds": seconds(knn, 1 if options.quick else 5),
        },
        {"what": f"linear classifier, {len(settings.grid())} L2 values", "seconds": seconds(linear, 1)},
    ]


def training(options: Options) -> list[Row]:
    """A real run by the commands that a user types, in its own home folder."""
    rows = []
    with tempfile.TemporaryDirectory() as home:
        epochs = 1 if options.quick else options.epochs
        for command in (
            ["pretrain", *options.train, "--epochs", str(epochs), "--name", "gpu"],
            ["eval", "gpu-s0", "--knn", "--linear"],
        ):
            clock = time.perf_counter()
            done = subprocess.run(
                [sys.executable, str(ROOT / "cli.py"), *command],
                env=os.environ | {"SIMCLR_HOME": home, "COLUMNS": "200"},
                capture_output=True,
                text=True,
                timeout=500,
            )
            row: Row = {"command": "simclr " + " ".join(command), "seconds": time.perf_counter() - clock}
            rows.append(row | {"exit": done.returncode, "output": (done.stdout + done.stderr)[-3000:]})
    return rows


def lightly_recipe(options: Options) -> list[Row]:
    """A plain loop with lightly's views and loss, on the network and batch of the preset cifar10.

    Views are made by worker processes on the CPU. Their speed counts from when the batches that they make ahead at the
    start are used up.
    """
    from lightly.loss import NTXentLoss
    from lightly.transforms import SimCLRTransform
    from PIL import Image
    from torch.utils.data import DataLoader

    workers = 0 if options.quick else os.cpu_count() or 1
    batch, batches, warm_up = (32, 3, 1) if options.quick else (512, 200, 3 * workers)  # each worker makes 2 ahead
    transform = SimCLRTransform(input_size=32, cj_strength=0.5, gaussian_blur=0.0)
    pixels = torch.randint(256, (batch, 32, 32, 3), dtype=torch.uint8).numpy()
    samples = [Image.fromarray(each) for each in pixels]

    class Views(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return batch * (warm_up + batches)

        def __getitem__(self, i: int) -> list[Tensor]:
            return transform(samples[i % batch])  # type: ignore[no-any-return]

    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        model = training_without_data(resolve("cifar10"), options.device).model
        optimizer, loss = torch.optim.SGD(model.parameters(), 0.06, momentum=0.9), NTXentLoss(0.5)
        loader = DataLoader(Views(), batch, workers > 0, num_workers=workers, drop_last=True, pin_memory=True)
        for index, views in enumerate(loader, start=1):
            with devices.autocast(options.device, dtype):
                z = [model(view.to(options.device, non_blocking=True))[1] for view in views]
                value = loss(*z)
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
            if index == warm_up:
                synchronize()
                clock = time.perf_counter()
        synchronize()
        speed = batch * batches / (time.perf_counter() - clock)
        rows.append({"dtype": str(dtype).removeprefix("torch."), "workers": workers, "images_per_second": speed})
    return rows


def variants(options: Options) -> list[Row]:
    """The time of a step of each preset with a compiled network, and without on the same batch."""
    presets = PRESETS[: 1 if options.quick else None]
    return [measure_variant(preset, compiled, options) for preset in presets for compiled in (False, True)]


SECTIONS: dict[str, Callable[[Options], list[Row]]] = {
    "card": card,
    "steps": steps,
    "memory": memory_table,
    "tests": gpu_tests,
    "evaluation": evaluation,
    "training": training,
    "lightly": lightly_recipe,
    "variants": variants,
}


# --- measuring --------------------------------------------------------------------------------------------------------


def measure_step(preset: str, options: Options) -> Row:
    """The row of a preset. The parts are timed if its batch is one micro-batch."""
    devices.release_memory()
    training, images, labels = prepare(preset, options)
    config, device, quick = training.config, options.device, options.quick
    batch = config.train.batch_size
    whole = training.micro_batch == batch
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    network = f"{config.model.backbone}, width {config.model.width:g}, {config.optim.name}"
    row: Row = {"preset": preset, "network": network, "batch": batch, "micro_batch": training.micro_batch}
    row["precision"] = str(training.dtype).removeprefix("torch.")
    row |= timed("step", partial(train_step, training, images, labels), 2 if quick else 20 if whole else 4)
    row["images_per_second"] = 1e3 * batch / row["step_ms"]
    if device.type == "cuda":
        row["peak_mib"] = torch.cuda.max_memory_allocated(device) / MIB
    if whole:
        functions = parts_of_a_step(training, images, labels)
        times = times_in_turn(functions, 2 if quick else 10)
        row |= {f"{name}_ms": 1e3 * median(part) for name, part in times.items()}
        row |= {f"{name}_kernels": value for name, value in count_kernels(functions).items()}
        both = batch_views(images, config.pipelines(), config.seed, 0)(slice(0, batch))
        row |= timed("bare_step", partial(bare_step, training, both, labels), 2 if quick else 20)
        row["training/bare"] = row["bare_step_ms"] / row["step_ms"]
    return row


def measure_variant(preset: str, compiled: bool, options: Options) -> Row:
    """The row of a preset with `train.compile` or without, or its error if that does not work here."""
    devices.release_memory()
    torch.compiler.reset()
    training, images, labels = prepare(preset, options, compiled)
    row: Row = {"preset": preset, "train.compile": compiled}
    clock = time.perf_counter()
    try:
        train_step(training, images, labels).tolist()
        first = time.perf_counter() - clock
        row |= timed("step", partial(train_step, training, images, labels), 2 if options.quick else 20)
        row["first_step_s"] = first
    except Exception as error:
        row["error"] = str(error).splitlines()[0][:200]
    return row


def timed(name: str, step: Callable[[], object], repeats: int) -> Row:
    """Milliseconds of a step: the median of ROUNDS measurements, and their range."""
    times = sorted(1e3 * seconds(step, repeats) for _ in range(ROUNDS))
    return {f"{name}_ms": median(times), f"{name}_ms_range": f"{times[0]:.1f} to {times[-1]:.1f}"}


def prepare(preset: str, options: Options, compiled: bool = False) -> tuple[Training, Tensor, Tensor]:
    """The training of a preset at step 0, and a batch of random images and labels on the device."""
    small = ["train.batch_size=32", "train.norm_batch=32"] if options.quick else []
    config = resolve(preset, None, [*small, f"train.compile={str(compiled).lower()}"])
    batch, side = config.train.batch_size, stored_side(config.data)
    if options.device.type == "cuda":
        plan = plan_memory(config, Images(batch), memory_budget(None, options.device))
        train = config.train.model_copy(update={"micro_batch": plan.micro_batch})
        config = config.model_copy(update={"train": train})
    images = torch.randint(256, (batch, 3, side, side), dtype=torch.uint8).to(options.device)
    labels = torch.zeros(batch, dtype=torch.int64, device=options.device)
    return training_without_data(config, options.device), images, labels


# --- the page ---------------------------------------------------------------------------------------------------------


def measure(options: Options, names: Sequence[str], out: Path) -> dict[str, Any]:
    """Run sections, and write gpu.json and gpu.md after each."""
    intro = "Made by `python -m benchmarks.gpu`. Ratios compare figures of this one run."
    chosen = {name: update_wrapper(partial(SECTIONS[name], options), SECTIONS[name]) for name in names}
    return sections.measure(chosen, Page(out / "gpu", "Measured on a GPU", intro))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(), help="folder for gpu.json and gpu.md")
    parser.add_argument("--device", default="auto", help="name of the device")
    parser.add_argument("--quick", action="store_true", help="use tiny sizes, to check the script itself")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="sections to run (default: all)")
    parser.add_argument("--train", nargs="+", default=["--preset=shapes"], help="options of the real `pretrain` run")
    parser.add_argument("--epochs", type=int, default=12, help="epochs of the real run")
    given = parser.parse_args()
    options = Options(devices.resolve(given.device), given.quick, tuple(given.train), given.epochs)
    measure(options, given.only or list(SECTIONS), given.out)
    print((given.out / "gpu.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
