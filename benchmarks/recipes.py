"""Which recipe learns most in the time of a preset: `python -m benchmarks.recipes [NAME ...]`.

Each candidate is the preset with a few other settings, trained for as many steps as cost what `--epochs` epochs of the
preset do, with its learning rate at its end by then. The cost of a step is the time of the processor, measured here in
turn with a step of the preset, so that other load matters little. Accuracies are on validation images, by the same
protocol for all. A candidate that is done is not trained again, and one that was stopped resumes from its last
checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from experiments.configs.resolve import resolve
from experiments.tracking.store import home
from simclr import device as devices
from simclr import optim
from simclr.config import Config
from simclr.data.dataset import Dataset, open_dataset
from simclr.evaluate.knn import knn_predict
from simclr.evaluate.linear import Linear, choose_l2, preprocessing
from simclr.evaluate.subject import features
from simclr.files import written_whole
from simclr.model import Network
from simclr.train.loop import count_steps, load_batches
from simclr.train.step import start_training, train_step
from simclr.weights import checkpoint

CANDIDATES: dict[str, list[str]] = {
    "preset": [],
    "grayscale .1": ["augment.grayscale.p=0.1"],
    "crops from .08": ["augment.crop.scale=[0.08,1]"],
    "crops from .35": ["augment.crop.scale=[0.35,1]"],
    "4 views, batch 128": ["augment.views=4", "train.batch_size=128"],
    "4 views": ["augment.views=4"],
    "2 views and 4 crops of 16 px": ["augment.local.count=4", "augment.local.size=16"],
    "24 px": ["augment.crop.size=24"],
    "averaged weights .99": ["train.ema=0.99"],
    "dcl": ["method=dcl", "dcl.temperature=0.2"],
    "batch 128": ["train.batch_size=128"],
    "batch 512": ["train.batch_size=512"],
    "temperature .1": ["loss.temperature=0.1"],
    "width .75": ["model.width=0.75"],
    "width .75, coarse stem": ["model.stem=imagenet", "model.width=0.75"],
    "width .25, fine stem": ["model.stem=cifar", "model.width=0.25"],
    "whitening stem": ["model.stem=whitening"],
    "head of 1024": ["model.hidden_dim=1024"],
    "rate .04": ["optim.lr=0.04"],
    "decay .1": ["optim.weight_decay=0.1"],
}
ROUNDS = 6  # steps of each config that are timed
L2 = Linear(l2_values=6, l2_max=1e4, l2_min=1e-1)


def relative_cost(config: Config, preset: Config, data: Dataset, device: torch.device) -> float:
    """What a step of a config costs, as a factor of what one of the preset does: of the fastest of ROUNDS steps each.

    One thread's time is that of the processor, which other programs hardly change. That of several threads would
    include the waiting for each other.
    """
    if config == preset:
        return 1.0
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    runs = [
        (start_training(each, data, device), load_batches(each, data, device, images_on_device=False))
        for each in (config, preset)
    ]
    best = [math.inf, math.inf]
    for _ in range(ROUNDS):
        for i, (training, batches) in enumerate(runs):
            batch, start = next(batches), clock()
            train_step(training, *batch).tolist()
            best[i] = min(best[i], clock() - start)
    return best[0] / best[1]


def train(config: Config, data: Dataset, device: torch.device, folder: Path, total: int) -> Network:
    """Train a config for `total` steps, from the last checkpoint in the folder if there is one."""
    training, steps = start_training(config, data, device), count_steps(config, data)
    warmup = config.optim.warmup_epochs * total / steps.total  # the same share of the run
    schedule = config.optim.model_copy(update={"warmup_epochs": warmup})
    if checkpoint.checkpoints(folder):
        training.load(checkpoint.latest(folder))
    saved = time.perf_counter()
    batches = load_batches(config, data, device, images_on_device=device.type != "cpu", start=training.step)
    for images, labels in islice(batches, total - training.step):
        rate = optim.learning_rate(schedule, config.train.batch_size, training.step, total, steps.per_epoch)
        optim.set_rate(training.optimizer, rate)
        train_step(training, images, labels)
        if time.perf_counter() - saved > 60 * config.train.checkpoint_minutes or training.step == total:
            checkpoint.save(folder, training.step, training.state())
            saved = time.perf_counter()
    return training.evaluated


def score(model: Network, data: Dataset) -> dict[str, float]:
    """Accuracies in percent on validation images, of a linear classifier and of kNN (k = 200)."""
    x, y = {}, {}
    for part in ("train", "val"):
        x[part] = features(model, data.images, data.parts[part], torch.float32)
        y[part] = torch.from_numpy(data.labels[data.parts[part]]).to(x[part].device)
    prepare, classes = preprocessing(L2, x["train"]), len(data.classes)
    linear, l2, _ = choose_l2(prepare(x["train"]), y["train"], prepare(x["val"]), y["val"], classes, L2)
    found = knn_predict(x["train"], y["train"], x["val"], classes, [200], 0.1)[200]
    return {"linear": 100 * linear, "knn": 100 * (found == y["val"]).float().mean().item(), "l2": l2}


def run(row: dict[str, Any], config: Config, preset: Config, folder: Path, save: Callable[[], None]) -> None:
    """Train and evaluate a candidate at the cost of `row["epochs"]` epochs of the preset, and add what it found.

    The number of steps is saved before training, because a resumed run needs the same.
    """
    device, data = devices.resolve(config.device), open_dataset(config.data, home())
    if "steps" not in row:
        row["cost"] = relative_cost(config, preset, data, device)
        row["steps"] = round(row["epochs"] * count_steps(preset, data).per_epoch / row["cost"])
        row["threads"] = torch.get_num_threads()
        save()
    folder.mkdir(exist_ok=True)
    row |= score(train(config, data, device, folder, row["steps"]), data)
    save()


def merged(settings: list[str]) -> list[str]:
    """Settings of which each is given once: of several values the last."""
    return list({text.partition("=")[0]: text for text in settings}.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(CANDIDATES), metavar="NAME", help="candidates (default: all)")
    parser.add_argument("--preset", default="cifar10-cpu")
    parser.add_argument("--set", action="append", default=[], dest="settings", help="a setting of all candidates")
    parser.add_argument("--epochs", type=float, default=24, help="of the preset, whose cost each candidate has")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    folder = home() / "recipes"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipes.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []

    def save() -> None:
        with written_whole(path, "Free some space") as scratch:
            scratch.write_text(json.dumps(rows, indent=1))

    for seed in arguments.seeds:
        for name in arguments.names:
            preset, config = (
                resolve(arguments.preset, None, merged([*arguments.settings, f"seed={seed}", *settings]))
                for settings in ([], CANDIDATES[name])
            )
            if "plateau" in (preset.optim.schedule, config.optim.schedule):
                parser.error("optim.schedule=plateau depends on the loss of each epoch, which is not followed here")
            identity = {"preset": arguments.preset, "name": name, "epochs": arguments.epochs, "seed": seed}
            identity |= {"preset key": preset.key(), "key": config.key()}  # `--set` and CANDIDATES change them
            row = next((row for row in rows if identity.items() <= row.items()), identity)
            if row is identity:
                rows.append(row)
            if "linear" not in row:
                run(row, config, preset, folder / re.sub(r"\W+", "-", " ".join(map(str, identity.values()))), save)
            print(
                f"| {name} | {seed} | {row['epochs']:g} | {row['cost']:.2f} | {row['steps']} | {row['linear']:.1f} | "
                f"{row['knn']:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
