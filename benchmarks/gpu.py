"""Everything to measure on a GPU, in one script of at most ten minutes: `python -m benchmarks.gpu --out FOLDER`.

Runs the tests marked `gpu`, compares predicted with measured memory, times each part of a training step for five
presets (with and without torch.compile, and next to lightly's recipe where lightly is installed), times kNN and the
linear classifier, and trains a network for real. Writes `gpu.json` and `gpu.md`, both after every section, so that a
run that is cut short keeps what it measured. A section that fails is reported with its error; the others still run.
`--quick` shrinks every size, to check the script itself on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.memory import CONFIGS, configured, measured
from experiments.configs.resolve import resolve
from simclr import device as devices
from simclr.data.dataset import stored_side
from simclr.evaluate.knn import knn_predict
from simclr.evaluate.linear import Linear, choose_l2, preprocess
from simclr.methods.ntxent import contrast
from simclr.model import Network
from simclr.train.budget import budget, plan_memory
from simclr.train.memory import MIB, predict
from simclr.train.step import Training, embeddings, train_step, training_of
from simclr.views import two_views

PRESETS = ("cifar10-cpu", "cifar10", "paper-cifar10-resnet18", "paper-cifar10", "tiny-imagenet-4060")
COMPILED = ("cifar10-cpu", "cifar10")  # compiling takes up to a minute each
PARTS = ("views", "forward", "loss", "backward", "optimizer")
Row = dict[str, Any]


def synchronize() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def seconds(function: Callable[[], object], repeats: int) -> float:
    """Seconds of one call, by the clock over many calls that the device may overlap; one call warms up."""
    function()
    synchronize()
    clock = time.perf_counter()
    for _ in range(repeats):
        function()
    synchronize()
    return (time.perf_counter() - clock) / repeats


# --- sections: each gives the rows of one table -----------------------------------------------------------------------


def card(device: torch.device, quick: bool) -> list[Row]:
    row: Row = {"device": devices.describe(device), "torch": torch.__version__, "cpu_threads": torch.get_num_threads()}
    row["default_precision"] = devices.precision_on("auto", device)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        row |= {"memory_gib": properties.total_memory / 2**30, "multiprocessors": properties.multi_processor_count}
        row |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return [row]


def gpu_tests(device: torch.device, quick: bool) -> list[Row]:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--tb=short", "tests"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    lines = done.stdout.strip().splitlines()
    failures = [line for line in lines if line.startswith(("FAILED", "ERROR", "E   "))]
    return [{"result": lines[-1] if lines else done.stderr[-500:], "failures": failures[:60]}]


def memory_table(device: torch.device, quick: bool) -> list[Row]:
    rows = []
    for setting in CONFIGS[: 2 if quick else None]:
        config = configured(*setting)
        predicted = sum(predict(config, config.train.micro_batch).values())  # type: ignore[arg-type]
        devices.release_memory()
        row: Row = {"config": " ".join(map(str, setting)), "predicted_mib": predicted / MIB}
        truth = measured(config, device)
        row |= {"measured_mib": truth / MIB, "measured/predicted": truth / predicted}
        if device.type != "cpu":
            row["reserved_mib"] = torch.accelerator.max_memory_reserved(device) / MIB
        rows.append(row)
    return rows


def prepared_training(preset: str, device: torch.device, quick: bool) -> tuple[Training, Tensor]:
    """The training of a preset at step 0, and random images of its stored size on the device, a few batches of them."""
    config = resolve(preset, None, ["train.batch_size=32", "train.norm_batch=32"] if quick else [])
    images = torch.randint(256, (2 * config.train.batch_size, 3, *[stored_side(config.data)] * 2), dtype=torch.uint8)
    if device.type == "cuda":
        plan = plan_memory(config, len(images), budget(None, device))
        train = config.train.model_copy(update={"micro_batch": plan.micro_batch})
        config = config.model_copy(update={"train": train})
    side = config.view_size() or stored_side(config.data)
    model = Network(config.model, side, 0, (0.5,) * 3, (0.5,) * 3).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    dtype = devices.resolve_precision(config.train.precision, device)
    return training_of(config, model, dtype, ""), images.to(device)


def parts_of_a_step(training: Training, images: Tensor, repeats: int) -> tuple[dict[str, float], dict[str, int]]:
    """Median milliseconds and number of kernels of each part of a step whose batch is one micro-batch."""
    config, state = training.config, {}
    rows = slice(0, config.train.batch_size)

    def views() -> None:
        state["both"] = two_views(images[rows], config.pipelines(), config.seed, training.step)(rows)

    def forward() -> None:
        state["z"] = embeddings(training, lambda some: state["both"][:, some], rows)

    def loss() -> None:
        z = state["z"]
        state["loss"] = contrast(z[0], z[1], config.loss.temperature, normalize=config.loss.normalize)[0]

    def backward() -> None:
        training.scaler.scale(state["loss"]).backward()

    def optimizer() -> None:
        training.scaler.step(training.optimizer)
        training.scaler.update()
        training.optimizer.zero_grad()

    functions = dict(zip(PARTS, (views, forward, loss, backward, optimizer), strict=True))
    times: dict[str, list[float]] = {name: [] for name in PARTS}
    for turn in range(repeats + 2):
        for name, function in functions.items():
            synchronize()
            clock = time.perf_counter()
            function()
            synchronize()
            if turn >= 2:
                times[name].append(time.perf_counter() - clock)
    return {name: 1e3 * median(row) for name, row in times.items()}, kernels(functions)


def kernels(functions: dict[str, Callable[[], None]]) -> dict[str, int]:
    """How many kernels and copies each function launches; empty without CUDA."""
    if not torch.cuda.is_available():
        return {}
    counts = {}
    for name, function in functions.items():
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            function()
            synchronize()
        counts[name] = sum(1 for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA)
    return counts


def steps(device: torch.device, quick: bool) -> list[Row]:
    rows = []
    for preset in PRESETS:
        training, images = prepared_training(preset, device, quick)
        batch = training.config.train.batch_size
        whole = training.micro_batch == batch
        row: Row = {"preset": preset, "batch": batch, "micro_batch": training.micro_batch}
        row["precision"] = str(training.dtype).removeprefix("torch.")
        step = lambda training=training, images=images, batch=batch: train_step(training, images[:batch])
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        per_step = seconds(step, 2 if quick else 20 if whole else 4)
        row |= {"step_ms": 1e3 * per_step, "images_per_second": batch / per_step}
        if device.type == "cuda":
            row["peak_mib"] = torch.cuda.max_memory_allocated(device) / MIB
        if whole:
            milliseconds, launched = parts_of_a_step(training, images, 2 if quick else 10)
            row |= {f"{name}_ms": value for name, value in milliseconds.items()}
            row |= {f"{name}_kernels": value for name, value in launched.items()}
            row["bare_step_ms"] = 1e3 * bare_step(training, images, 2 if quick else 20)
            row["training/bare"] = row["bare_step_ms"] / row["step_ms"]
        rows.append(row)
        del training, images, step
        devices.release_memory()
    return rows


def bare_step(training: Training, images: Tensor, repeats: int) -> float:
    """Seconds of a step on views that are ready, without the loop's own work."""
    config = training.config
    rows = slice(0, config.train.batch_size)
    both = two_views(images[rows], config.pipelines(), config.seed, 0)(rows)

    def step() -> None:
        z = embeddings(training, lambda some: both[:, some], rows)
        training.scaler.scale(contrast(z[0], z[1], config.loss.temperature)[0]).backward()
        training.scaler.step(training.optimizer)
        training.scaler.update()
        training.optimizer.zero_grad()

    return seconds(step, repeats)


def variants(device: torch.device, quick: bool) -> list[Row]:
    """What a step would gain: each change alone, on the presets of COMPILED."""
    rows = []
    for preset in COMPILED[: 1 if quick else None]:
        for name in ("as it is", "cudnn.benchmark", "fused optimizer", "compiled network"):
            training, images = prepared_training(preset, device, quick)
            batch = training.config.train.batch_size
            torch.backends.cudnn.benchmark = name == "cudnn.benchmark"
            if name == "fused optimizer":
                for group in training.optimizer.param_groups:
                    group["fused"], group["foreach"] = True, False
            if name == "compiled network":
                training.model.compile()
            clock = time.perf_counter()
            try:
                train_step(training, images[:batch]).tolist()
                first = time.perf_counter() - clock
                per_step = seconds(lambda t=training, x=images, n=batch: train_step(t, x[:n]), 2 if quick else 20)
                rows.append({"preset": preset, "variant": name, "step_ms": 1e3 * per_step, "first_step_s": first})
            except Exception as error:
                rows.append({"preset": preset, "variant": name, "error": str(error).splitlines()[0][:200]})
            del training, images
            devices.release_memory()
    torch.backends.cudnn.benchmark = False
    return rows


def lightly_recipe(device: torch.device, quick: bool) -> list[Row]:
    """lightly's published SimCLR loop (views by worker processes on the CPU), float32 and bfloat16, on ResNet-18 with
    the CIFAR stem at batch 512."""
    from lightly.loss import NTXentLoss
    from lightly.transforms import SimCLRTransform
    from PIL import Image
    from torch.utils.data import DataLoader

    batch, batches = (32, 3) if quick else (512, 24)
    transform = SimCLRTransform(input_size=32, cj_strength=0.5, gaussian_blur=0.0)
    pixels = torch.randint(256, (batch * batches, 32, 32, 3), dtype=torch.uint8).numpy()
    samples = [Image.fromarray(each) for each in pixels]

    class Views(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(samples)

        def __getitem__(self, i: int) -> list[Tensor]:
            return transform(samples[i])  # type: ignore[no-any-return]

    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        config = resolve("cifar10", None, [])
        model = Network(config.model, 32, 0, (0.5,) * 3, (0.5,) * 3).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer, loss = torch.optim.SGD(model.parameters(), 0.06, momentum=0.9), NTXentLoss(0.5)
        workers = 0 if quick else os.cpu_count() or 1
        loader = DataLoader(Views(), batch, workers > 0, num_workers=workers, drop_last=True, pin_memory=True)
        clock, done = time.perf_counter(), 0
        for index, views in enumerate(loader):
            with devices.autocast(device, dtype):
                z = [model(view.to(device, non_blocking=True))[1] for view in views]
                value = loss(*z)
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
            if index == 1:  # the workers have started
                synchronize()
                clock, done = time.perf_counter(), 0
            done += batch
        synchronize()
        speed = (done - batch) / (time.perf_counter() - clock)
        rows.append({"dtype": str(dtype).removeprefix("torch."), "workers": workers, "images_per_second": speed})
    return rows


def evaluation(device: torch.device, quick: bool) -> list[Row]:
    rows = []
    train, test, width, classes = (2000, 200, 64, 10) if quick else (50_000, 10_000, 512, 10)
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, width, generator=draw)
    y = torch.arange(train + test) % classes
    x = (centres[y] + 4 * torch.randn(train + test, width, generator=draw)).to(device)
    y = y.to(device)
    knn = seconds(lambda: knn_predict(x[:train], y[:train], x[train:], classes, [200], 0.1), 1 if quick else 5)
    rows.append({"what": f"kNN (k 200), {test} queries, {train} x {width}", "seconds": knn})
    settings = Linear()

    def probe() -> None:
        parts = preprocess(settings, x[:train], x[train:])
        choose_l2(parts[0], y[:train], parts[1], y[train:], classes, settings)

    rows.append({"what": f"linear classifier, {len(settings.grid())} L2 values", "seconds": seconds(probe, 1)})
    return rows


def training(device: torch.device, quick: bool, arguments: tuple[str, ...], epochs: int) -> list[Row]:
    """A real run by the commands that a user types, in a home folder of its own."""
    with tempfile.TemporaryDirectory() as home:
        environment = os.environ | {"SIMCLR_HOME": home, "COLUMNS": "200"}
        rows = []
        for command in (
            ["pretrain", *arguments, "--epochs", str(epochs), "--name", "gpu"],
            ["eval", "gpu", "--knn", "--linear"],
        ):
            clock = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-m", "cli", *command], env=environment, capture_output=True, text=True, timeout=500
            )
            row = {"command": "simclr " + " ".join(command), "seconds": time.perf_counter() - clock}
            rows.append(row | {"exit": done.returncode, "output": (done.stdout + done.stderr)[-3000:]})
        return rows


# --- the page ---------------------------------------------------------------------------------------------------------


def markdown(results: dict[str, Any]) -> str:
    lines = [
        "# Measured on a GPU",
        "",
        "Made by `python -m benchmarks.gpu`. Ratios compare figures of this one run.",
        "",
    ]
    for name, section in results.items():
        lines += [f"## {name} ({section['seconds']:.0f} s)", ""]
        if "error" in section:
            lines += [f"Failed: {section['error']}", ""]
            continue
        columns = list(
            dict.fromkeys(key for row in section["rows"] for key in row if key not in ("output", "failures"))
        )
        lines += ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
        lines += ["| " + " | ".join(_cell(row.get(key, "")) for key in columns) + " |" for row in section["rows"]]
        for row in section["rows"]:
            for key in ("output", "failures"):
                if row.get(key):
                    text = row[key] if isinstance(row[key], str) else "\n".join(row[key])
                    lines += ["", "```", text.strip(), "```"]
        lines.append("")
    return "\n".join(lines)


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for gpu.json and gpu.md")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to check the script itself")
    parser.add_argument("--only", nargs="+", help="names of sections")
    parser.add_argument("--train", nargs="+", default=["--preset=shapes"], help="options of the real `pretrain` run")
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args()
    device = devices.resolve(options.device)
    sections: dict[str, Callable[[torch.device, bool], list[Row]]] = {
        "card": card,
        "steps": steps,
        "memory": memory_table,
        "tests": gpu_tests,
        "evaluation": evaluation,
        "training": lambda device, quick: training(device, quick, tuple(options.train), 1 if quick else options.epochs),
        "lightly": lightly_recipe,
        "variants": variants,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    for name in options.only or sections:
        clock = time.perf_counter()
        try:
            results[name] = {"rows": sections[name](device, options.quick)}
        except Exception as error:
            results[name] = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
            print(results[name]["traceback"], file=sys.stderr)
        results[name]["seconds"] = time.perf_counter() - clock
        (options.out / "gpu.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
        (options.out / "gpu.md").write_text(markdown(results), encoding="utf-8")
        print(f"{name}: {results[name]['seconds']:.0f} s", flush=True)
    print((options.out / "gpu.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
