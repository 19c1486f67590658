"""The number of CPU threads of a run: how it is chosen and kept."""

from __future__ import annotations

from statistics import median

import torch

from experiments.runs.prepare import Prepared
from experiments.tracking.store import Record
from simclr import device as devices
from simclr import processes
from simclr.data.workers import cores
from simclr.errors import UserError
from simclr.progress import SILENT, Observer
from simclr.train.cost import step_timer

ROUNDS = 3  # steps with each number of threads that are timed, after one to warm up


def choose_threads(prepared: Prepared, earlier: Record | None = None, observer: Observer = SILENT) -> int:
    """The number of threads that a run computes with: the one that was asked for, or of the run that it resumes.

    A run without either takes what torch uses, or with `auto` what is fastest now. Raises UserError for `auto` in
    several processes, and on a device whose steps don't depend on CPU threads.
    """
    asked, here = prepared.config.threads, torch.get_num_threads()
    if isinstance(asked, int):
        return asked
    if prepared.device.type != "cpu":
        if asked == "auto":
            raise UserError(
                f"--threads auto times steps on a CPU, but this run uses {prepared.device.type}: leave it out"
            )
        return here
    if earlier is not None and (recorded := int(earlier.tags.get("threads", here))) != here:
        kept = min(recorded, cores())
        few = f", and this machine has {kept} cores, so its results differ by rounding" if kept < recorded else ""
        observer.say(f"the run started with {recorded} CPU threads{few}: continuing with {kept}")
        return kept
    if asked != "auto" or earlier is not None:
        return here
    if processes.count() > 1:
        raise UserError("--threads auto measures the steps of one process: give a number")
    return _fastest(prepared, here)


def _fastest(prepared: Prepared, most: int) -> int:
    """The number of threads whose steps are fastest now, out of `most`, half of it, and so on down to 1.

    They take turns, so that other programs slow all of them down equally.
    """
    timed = step_timer(prepared.fitted, prepared.data, prepared.device)
    times: dict[int, list[float]] = {most >> halvings: [] for halvings in range(most.bit_length())}
    for _ in range(ROUNDS + 1):
        for count, row in times.items():
            with devices.threads(count):
                row.append(timed())
    return min(times, key=lambda count: median(times[count][1:]))
