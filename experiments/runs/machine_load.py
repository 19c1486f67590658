"""How busy the machine is while a run trains, for the system metrics on the run's page, and what to do about it."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from statistics import median

import psutil
import torch

from simclr import device as devices

COLLAPSE = 3.0  # times as slow as at its best
STRETCHES = 5  # whose median is the speed
SECONDS = 10.0  # between two measurements, so that they cost nothing however short the steps are


class Load:
    """Measures the load of this machine, with the names that MLflow gives to it."""

    def __init__(self, device: torch.device, folder: Path) -> None:
        """`device` trains, and `folder` is on the disk that runs are written to."""
        self.device, self.folder = device, folder
        self.due = 0.0
        psutil.cpu_percent()  # the next call tells the load since this one

    def measure(self) -> dict[str, float]:
        """The load since the last measurement. Empty if that was less than SECONDS ago."""
        if time.monotonic() < self.due:
            return {}
        self.due = time.monotonic() + SECONDS
        metrics = {
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_megabytes": psutil.virtual_memory().used / 1e6,
            "system/disk_available_megabytes": shutil.disk_usage(self.folder).free / 1e6,
        }
        if self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self.device)
            metrics[f"system/gpu_{self.device.index or 0}_memory_usage_megabytes"] = (total - free) / 1e6
        return metrics


class Pace:
    """Notices that other programs slow training down: from its start on, or since it was faster."""

    warned = False  # in this process, so that a study says it once and not for each of its runs

    def __init__(self, device: torch.device) -> None:
        self.device, self.speeds, self.best = device, list[float](), 0.0

    def notice(self, images_per_second: float | None) -> str:
        """The warning for the user after another stretch of steps, usually empty."""
        if images_per_second is None or self.warned:
            return ""
        self.speeds.append(images_per_second)
        if len(self.speeds) < STRETCHES:
            return ""
        now = median(self.speeds[-STRETCHES:])
        self.best = max(self.best, now)
        (load, *_), cores = psutil.getloadavg(), psutil.cpu_count() or 1
        if len(self.speeds) == STRETCHES and self.device.type == "cpu" and load > devices.BUSY * cores:
            what = f"other programs keep this machine busy (a load of {load:.1f} on {cores} cores), so training is slow"
        elif now <= self.best / COLLAPSE:
            what = (
                f"training has become {self.best / now:.0f} times slower than at its best (from {self.best:.0f} to "
                f"{now:.0f} images/s), probably because other programs keep this machine busy"
            )
        else:
            return ""
        Pace.warned = True
        remedy = "close them, or wait"
        if self.device.type == "cpu" and torch.get_num_threads() > 1:
            remedy += ", or press Ctrl-C and resume with --threads 1: threads wait for each other on a busy machine"
        return f"{what}: {remedy}"
