"""Time and memory of decoding: `python -m benchmarks.decoding [repeats]`.

Decodes 20,000 small JPEG files, and 200 photos of 12 megapixels, with the suite and with a plain script of two
processes, in turn. Then decodes a picture of 100 megapixels (PNG), and one of 200 (JPEG), each in a process of its own.
Prints the minimum, the median and the maximum over the repeats.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from simclr.data.dataset import DataConfig, open_dataset

SIDE = 64
REPEATS = 5
SMALL, PHOTOS, DIFFERENT_PHOTOS = 20_000, 200, 8
PHOTO = (4000, 3000)
LARGE = {
    "PNG of 100 megapixels": ("large.png", (10_000, 10_000)),
    "JPEG of 200 megapixels": ("large.jpg", (16_000, 12_500)),
}

PLAIN_SCRIPT = """
import os, sys, time
from multiprocessing import Pool
from pathlib import Path
import numpy as np
from PIL import Image, ImageOps
side = int(sys.argv[3])
def load(path):
    image = Image.open(path)
    image.draft("RGB", (2 * side, 2 * side))
    return np.asarray(ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.BICUBIC))
clock, cpu = time.perf_counter(), os.times()
with Pool(2) as pool:
    np.save(sys.argv[2], np.stack(pool.map(load, sorted(Path(sys.argv[1]).rglob("*.jpg")))))
    pool.close()
    pool.join()
print(time.perf_counter() - clock, sum(os.times()[:4]) - sum(cpu[:4]))
"""

MEASURE_MEMORY = """
import re, sys
from pathlib import Path
from PIL import Image
from simclr.data.images import Decoding, decode
Image.init()
def kibibytes(what):
    return int(re.search(what + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = kibibytes("VmRSS")
decode(Path(sys.argv[1]).read_bytes(), Decoding(int(sys.argv[2])))
print((kibibytes("VmHWM") - before) / 1024)
"""


def picture(seed: int, size: tuple[int, int], detail: int) -> Image.Image:
    """A random picture that is as smooth as a photo: noise of `detail` x `detail` pixels, enlarged."""
    noise = np.random.default_rng(seed).integers(0, 256, (detail, detail, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def write_small(folder: Path, count: int) -> None:
    """Write small JPEG files of ten classes."""
    for i in range(count):
        path = folder / f"{i % 10}" / f"{i:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(i, (32, 32), 12).save(path, quality=90)


def write_files(folder: Path) -> None:
    """Write all files that are decoded."""
    write_small(folder / "small", SMALL)
    (folder / "photos").mkdir()
    for i in range(PHOTOS):
        path = folder / "photos" / f"{i:03d}.jpg"
        if i < DIFFERENT_PHOTOS:
            picture(i, PHOTO, 600).save(path, quality=92)
        else:
            os.link(folder / "photos" / f"{i % DIFFERENT_PHOTOS:03d}.jpg", path)
    for name, size in LARGE.values():  # of flat blocks, so that the memory is that of the pixels, not of the file
        picture(0, (50, 50), 50).resize(size, Image.Resampling.NEAREST).save(folder / name)


def suite_seconds(images: Path, scratch: Path) -> tuple[float, float]:
    """Seconds, and CPU seconds, to open a folder with the suite for the first time, with all of its checks."""
    clock, cpu = time.perf_counter(), os.times()
    open_dataset(DataConfig(dataset="folder", dir=images, side=SIDE, check="report"), scratch)
    return time.perf_counter() - clock, sum(os.times()[:4]) - sum(cpu[:4])


def script_seconds(images: Path, scratch: Path) -> tuple[float, float]:
    """The same for the plain script, without the time in which Python starts."""
    command = [sys.executable, "-c", PLAIN_SCRIPT, str(images), str(scratch / "images.npy"), str(SIDE)]
    wall, cpu = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(wall), float(cpu)


def peak_memory(file: Path) -> float:
    """The most MiB that a process holds while it decodes a file, above what it held before."""
    command = [sys.executable, "-c", MEASURE_MEMORY, str(file), str(SIDE)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def spread(values: Sequence[float], digits: int) -> str:
    return " / ".join(f"{value:.{digits}f}" for value in (min(values), median(values), max(values)))


def compare(images: Path, repeats: int) -> dict[str, list[float]]:
    """Wall and CPU seconds of both, in turn, so that other programs slow both down; and the ratios of each pair."""
    found: dict[str, list[float]] = {name: [] for name in ("suite", "script", "ratio", "CPU ratio")}
    for _ in range(repeats):
        with TemporaryDirectory(dir=images.parent) as scratch:
            ours, theirs = (measure(images, Path(scratch)) for measure in (suite_seconds, script_seconds))
        for name, value in zip(found, (ours[0], theirs[0], ours[0] / theirs[0], ours[1] / theirs[1]), strict=True):
            found[name].append(value)
    return found


def main(repeats: int) -> None:
    folders = {"small": f"{SMALL:,} small JPEG files", "photos": f"{PHOTOS} photos of 12 megapixels"}
    with TemporaryDirectory() as folder:
        write_files(Path(folder))
        print("| minimum / median / maximum | suite, s | plain script, s | ratio | ratio of CPU time |")
        print("| :--- | ---: | ---: | ---: | ---: |")
        for name, about in folders.items():
            columns = compare(Path(folder, name), repeats).values()
            print(f"| {about} | {' | '.join(spread(values, 2) for values in columns)} |", flush=True)
        print("\n| minimum / median / maximum | MiB for one worker |\n| :--- | ---: |")
        for about, (name, _) in LARGE.items():
            print(f"| {about} | {spread([peak_memory(Path(folder, name)) for _ in range(repeats)], 0)} |")
    print(f"\nload of the machine: {', '.join(f'{load:.1f}' for load in os.getloadavg())}; cores: {os.cpu_count()}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else REPEATS)
