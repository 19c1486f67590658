"""How fast training is with an MLflow server, relative to a local record: `python -m benchmarks.record URL`.

One process trains one network, and logs each step to the server and to a local record in turn, for some seconds each.
Prints the ratio of the median times of a step for pairs of turns, and that of the shares of its processor time that the
process spends on training rather than sending. Other programs on the machine change the first more than the second.
"""

from __future__ import annotations

import argparse
import os
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
            """Train for a while: steps per second, and the share of processor time that training has."""
            logging.to, times, end = name, [], time.perf_counter() + seconds
            process, training_thread = time.process_time(), time.thread_time()
            while (clock := time.perf_counter()) < end:
                meter.add(train_step(training, *next(batches)))
                meter.flush()
                times.append(time.perf_counter() - clock)
            logging.runs[name].flush()
            return 1 / median(times), (time.thread_time() - training_thread) / (time.process_time() - process)

        turn("local", 2.0)
        pairs = []
        for pair in range(PAIRS):
            order = ("server", "local") if pair % 2 else ("local", "server")
            found = {name: turn(name, SECONDS) for name in order}
            pairs.append([server / local for local, server in zip(found["local"], found["server"], strict=True)])
        for run in logging.runs.values():
            run.finish("FINISHED")
        logging.runs["server"].store.client.delete_run(logging.runs["server"].run_id)
    for what, ratios in zip(("clock", "processor time"), zip(*pairs, strict=True), strict=True):
        print(f"by the {what}: {median(ratios):.1%} of the local speed ({min(ratios):.1%} to {max(ratios):.1%})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="How fast training is with an MLflow server.")
    parser.add_argument("url", metavar="URL", help="address of the server")
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # otherwise the local record would be a server too
    main(parser.parse_args().url)
