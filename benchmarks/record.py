"""How fast training is with an MLflow server, relative to a local record: `python -m benchmarks.record URL`.

One process trains one network, and logs each step to the server and to a local record in turn, for some seconds each.
Prints, for each pair of turns, the ratio of the times of a step: by the clock, and by the processor time of the process
with all that it sends, which other programs on the machine hardly change.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from experiments.configs.resolve import resolve
from experiments.tracking.store import Store
from experiments.tracking.writing import start_run
from simclr import device as devices
from simclr.data.dataset import open_dataset
from simclr.progress import Observer
from simclr.train.loop import Meter, load_batches
from simclr.train.step import start_training, train_step

PAIRS, SECONDS = 10, 8.0  # of turns, and of each turn


class Logging(Observer):
    """Logs to one of two runs."""

    def __init__(self, stores: Mapping[str, Store]) -> None:
        self.runs = {name: start_run(store, "speed", "benchmark", {}) for name, store in stores.items()}
        self.to = next(iter(self.runs))

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.runs[self.to].log(metrics, step)


def main(url: str) -> None:
    settings = ["data.dataset=shapes", "data.side=32", "train.batch_size=64", "train.norm_batch=64"]
    config = resolve("cifar10-cpu", None, settings)
    device = devices.resolve(config.device)
    with tempfile.TemporaryDirectory() as scratch:
        data = open_dataset(config.data, Path(scratch))
        logging = Logging({"server": Store(Path(scratch), server=url), "local": Store(Path(scratch))})
        batches = load_batches(config, data, device, images_on_device=device.type != "cpu")
        training = start_training(config, data, device)
        meter = Meter(training, logging)

        def turn(name: str, seconds: float) -> tuple[float, float]:
            """Train for a while: the median time of a step, and its processor time with all that is sent."""
            logging.to, times, end = name, [], time.perf_counter() + seconds
            processor = time.process_time()
            while (clock := time.perf_counter()) < end:
                meter.add(train_step(training, *next(batches)))
                meter.flush()
                times.append(time.perf_counter() - clock)
            logging.runs[name].flush()
            return median(times), (time.process_time() - processor) / len(times)

        turn("local", 2.0)
        pairs = []
        for pair in range(PAIRS):
            order = ("server", "local") if pair % 2 else ("local", "server")
            found = {name: turn(name, SECONDS) for name in order}
            pairs.append([local / server for local, server in zip(found["local"], found["server"], strict=True)])
        for run in logging.runs.values():
            run.finish("FINISHED")
    for what, ratios in zip(("clock", "processor time"), zip(*pairs, strict=True), strict=True):
        print(f"by the {what}: {median(ratios):.1%} of the local speed ({min(ratios):.1%} to {max(ratios):.1%})")


if __name__ == "__main__":
    main(*sys.argv[1:])
