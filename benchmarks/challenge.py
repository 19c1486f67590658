"""How long training takes to a kNN accuracy, with a clock of its own: `python -m benchmarks.challenge --out FOLDER`.

The clock starts when the images are decoded. It runs through planning, compilation, training and every kNN evaluation
on the validation images, and stops at the first that reaches the target. Then the test images are evaluated once. The
default is the preset cifar10-record with a target of 90 %, as in the challenge of github.com/dkobak/simclr-cifar10,
which takes the accuracy of test images (k = 10). Writes challenge.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from experiments.configs.resolve import resolve
from simclr import device as devices
from simclr.config import Config
from simclr.data.dataset import Dataset, open_dataset
from simclr.errors import UserError
from simclr.evaluate.evaluations import evaluate
from simclr.evaluate.protocol import make_protocol
from simclr.evaluate.subject import Subject
from simclr.files import written_whole
from simclr.progress import Observer
from simclr.train.budget import Images, fit_to_device
from simclr.train.loop import Interrupted, pretrain
from simclr.train.step import start_training
from simclr.weights import checkpoint


class Clock(Observer):
    """Asks a run to stop when a kNN accuracy on validation reaches the target. Keeps all of them with their times."""

    def __init__(self, target: float) -> None:
        self.target, self.start = target, time.perf_counter()
        self.accuracies: list[dict[str, float]] = []

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        for accuracy in (value for name, value in metrics.items() if name.startswith("val/knn")):
            self.accuracies.append({"step": step, "seconds": time.perf_counter() - self.start, "val_knn": accuracy})
            print("step {step}: {val_knn:.2%} after {seconds:.0f} s".format(**self.accuracies[-1]), flush=True)

    @property
    def reached(self) -> bool:
        return any(each["val_knn"] >= self.target for each in self.accuracies)

    def stop(self) -> bool:
        return self.reached


def measure(config: Config, data: Dataset, device: torch.device, target: float) -> dict[str, Any]:
    """Train until the target, or to the end of the config. Returns the times, and kNN on the test images (k 10, 200).

    Raises UserError if nothing would be evaluated during training.
    """
    if not config.train.knn_every or not len(data.parts["val"]):
        raise UserError("the clock needs kNN accuracies on validation: set train.knn_every and data.val_fraction")
    clock = Clock(target)
    config, plan = fit_to_device(config, Images(len(data.images), data.has_labels), device)
    with tempfile.TemporaryDirectory() as folder:
        try:
            model = pretrain(
                config, data, device, Path(folder), clock, images_on_device=plan is not None and plan.images_on_device
            )
        except Interrupted:
            training = start_training(config, data, device, resume=True)
            training.load(checkpoint.latest(Path(folder)))
            model = training.evaluated
    subject = Subject(model, config, data, make_protocol(["knn.k=[10,200]"]))
    found: dict[str, Any] = {"device": devices.describe(device), "key": config.key(), "target": target}
    found |= {"reached": clock.reached, "seconds": clock.accuracies[-1]["seconds"]}
    return found | {"test": evaluate(subject, "knn").metrics, "accuracies": clock.accuracies}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(), help="folder for challenge.json")
    parser.add_argument("--preset", default="cifar10-record", help="what to train")
    parser.add_argument("--set", action="append", default=[], help="a setting to change, as for `simclr pretrain`")
    parser.add_argument("--target", type=float, default=0.9, help="kNN accuracy on validation that stops the clock")
    given = parser.parse_args()
    config = resolve(given.preset, None, given.set)
    with tempfile.TemporaryDirectory() as home:
        data = open_dataset(config.data, Path(home))
        found = measure(config, data, devices.resolve(config.device), given.target)
    given.out.mkdir(parents=True, exist_ok=True)
    with written_whole(given.out / "challenge.json") as scratch:
        scratch.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print("{}, {:.0f} s, test {}".format("reached" if found["reached"] else "missed", found["seconds"], found["test"]))


if __name__ == "__main__":
    main()
