"""How busy the machine is while a run trains, for the system metrics on the run's page."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import psutil
import torch

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
