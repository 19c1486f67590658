"""One run in 1, 2 and 4 processes: `python -m benchmarks.several curves|speed [options of simclr pretrain]`.

`curves` trains the run with each number of processes, and, to say how much rounding alone changes, in one process with
two threads, and with another seed. It prints by how much each differs from the first, and fails if several processes
differ by more than MOST_LOSS on average, or by more than MOST_KNN at the end. `speed` times steps of N
processes and of one process with as many threads, in turn, and prints their ratio. Everything runs in SIMCLR_HOME.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from statistics import median
from typing import Any

from analysis.text import text_table
from experiments.tracking.store import Record, Store, home

ROUNDS = 8
LOSS, KNN = "train/loss", "val/knn_top1"
MOST_LOSS, MOST_KNN = 0.005, 0.01  # relative, and of all validation images
CURVES = {  # processes, threads of each, seed
    "1 process": (1, 1, 0),
    "2 processes": (2, 1, 0),
    "4 processes": (4, 1, 0),
    "1 process, 2 threads": (1, 2, 0),
    "1 process, seed 1": (1, 1, 1),
}


def simclr(*arguments: str, threads: int) -> Any:
    """What a command prints with --json."""
    command = [sys.executable, "-m", "cli", *arguments, "--json"]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout)


def train(options: list[str], processes: int, threads: int, seed: int) -> Record:
    """Train anew."""
    own = ["--processes", str(processes), "--seed", str(seed), "--again"]
    return Store(home()).get(simclr("pretrain", *options, *own, threads=threads)["id"])


def curves(options: list[str]) -> None:
    first: Record | None = None
    rows, beyond = [], []
    for name, (processes, threads, seed) in CURVES.items():
        run = train(options, processes, threads, seed)
        first = first or run
        own, others = (record.history(LOSS)["value"] for record in (run, first))
        away = (own - others).abs() / others
        knn = "  ".join(f"{100 * accuracy:.2f}" for accuracy in run.history(KNN)["value"])
        apart = abs(run.metrics[KNN] - first.metrics[KNN])
        if processes > 1 and not (away.mean() <= MOST_LOSS and apart <= MOST_KNN):
            beyond.append(name)
        rows.append([name, f"{own.iloc[-1]:.5f}", f"{away.max():.1e}", f"{away.mean():.1e}", knn])
        header = ["run", "last loss", "most, relative", "mean, relative", "kNN of each epoch"]
        print(text_table(header, rows), flush=True)
    if beyond:
        sys.exit(f"{' and '.join(beyond)} differ from one process by more than rounding explains")


def speed(options: list[str]) -> None:
    for count in (2, 4):
        ratios = []
        for number in range(ROUNDS):
            several, one = (
                simclr("pretrain", *options, "--dry-run", "--processes", str(processes), threads=count // processes)
                for processes in (count, 1)
            )
            ratios.append(several["seconds_per_step"] / one["seconds_per_step"])
            print(f"{count} processes, round {number}: {several['seconds_per_step']:.3f} s, ratio {ratios[-1]:.2f}")
        print(f"{count} processes: median {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)


if __name__ == "__main__":
    {"curves": curves, "speed": speed}[sys.argv[1]](sys.argv[2:])
