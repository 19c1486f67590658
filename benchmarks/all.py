"""Everything about speed on a CPU, next to other programs: `python -m benchmarks.all [--only SECTION ...]`.

Writes performance.json and performance.md to `--out` (docs/results by default) after each section. A section that is
already in the file is not measured again unless `--only` names it, so a run that was stopped can be resumed. But
without `--only`, sections measured on other hardware, with another torch or number of threads, or with `--quick` are
dropped. All sections take about 40 minutes on two cores. `pip install '.[peers]'` installs the programs to compare
with; one that is not installed is left out, with a line that says so. `--quick` shrinks all sizes, to check the script
itself.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial, update_wrapper
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks import growth, linear, loop, loss, peers
from benchmarks.sections import Page, Row, measure
from benchmarks.timing import processor, times_in_turn
from experiments.configs.resolve import resolve
from simclr import device as devices
from simclr.data.dataset import open_dataset
from simclr.train.cost import step_timer
from simclr.views import batch_views

ROOT = Path(__file__).parent.parent
BATCH = 256
# Networks whose steps are timed: the preset, settings, and rounds.
STEPS: dict[str, tuple[str, Sequence[str], int]] = {
    "shapes": ("shapes", (), 40),
    "cifar10-cpu": ("cifar10-cpu", (), 15),
    "ResNet-18, stock stem": ("cifar10-cpu", ("model.backbone=resnet18", "model.width=1", "model.stem=imagenet"), 8),
    "ResNet-18, CIFAR stem": ("cifar10-cpu", ("model.backbone=resnet18", "model.width=1", "model.stem=cifar"), 3),
}
VIEWS = {"torchvision": peers.torchvision_views, "kornia": peers.kornia_views}
PEERS = ("torchvision", "scikit-learn", "kornia", "lightly", "pytorch-metric-learning")
RECIPES = {"lightly as published": False, "lightly at its best (bf16, channels-last)": True}
INTRO = (
    "Made by `python -m benchmarks.all`; the top of `benchmarks/all.py` says how to repeat it. Each table is from one "
    "run, which timed this suite and the other programs alternately. A ratio is the median over the rounds, with the "
    "smallest and the largest in brackets."
)


def machine(quick: bool) -> list[Row]:
    """The machine, and its load from other programs at the start (cores in use, averaged over a minute)."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    row: Row = {"CPU": processor(), "threads": torch.get_num_threads(), "load": load}
    row |= {"precision": devices.precision_on("auto", torch.device("cpu")), "torch": torch.__version__}
    for peer in PEERS:
        try:
            row[peer] = version(peer)
        except PackageNotFoundError:
            row[peer] = "not installed"
    return [row | ({"sizes": "tiny"} if quick else {})]


def step(quick: bool) -> list[Row]:
    """A step of training (order, images, views, step, meter, tracking), a bare step of the same network on views that
    are ready, and the parts of a step, at batch 256 and 32 px. Milliseconds are medians."""
    rows = []
    for name, (preset, settings, rounds) in list(STEPS.items())[: 1 if quick else None]:
        found = loop.measure(preset, settings, 2 if quick else rounds)
        row: Row = {"network": name, "speed relative to a bare step": _spread(found.ratios())}
        row["images/s"] = found.training.config.train.batch_size / median(found.times["training step"])
        rows.append(row | {f"{part}, ms": 1e3 * median(times) for part, times in found.times.items()})
    return rows


def views(quick: bool) -> list[Row]:
    """Both views of 256 images of 32 px (crop, flip, colour jitter, grayscale), with one thread and with all
    threads."""
    images = torch.randint(256, (8 if quick else BATCH, 3, peers.SIDE, peers.SIDE), dtype=torch.uint8)
    config, rows = resolve("cifar10-cpu"), list[Row]()
    ours = partial(batch_views, images, config.pipelines(), 0)
    functions: dict[str, Callable[[], Any]] = {"this suite": lambda: ours(step=0)(slice(None))}
    functions |= _installed(VIEWS, rows, "views", images)
    for threads in sorted({1, torch.get_num_threads()}):
        with devices.threads(threads):
            times = times_in_turn(functions, 2 if quick else 30)
        rows += [{"threads": threads} | row for row in _compared(times, "views")]
    return rows


def recipe(quick: bool) -> list[Row]:
    """Training at batch 256 and 32 px, compared with lightly's SimCLR loop with the same encoder, ResNet-18, and
    optimizer, SGD."""
    batch, rows = 16 if quick else BATCH, list[Row]()
    images = torch.randint(256, (3 * batch, 3, peers.SIDE, peers.SIDE), dtype=torch.uint8)
    for stem in ("cifar",) if quick else ("imagenet", "cifar"):
        others = _installed(
            {name: partial(peers.lightly_recipe, stem=stem, best=best) for name, best in RECIPES.items()},
            rows,
            "program",
            images,
            batch,
        )
        network = ["model.backbone=resnet18", "model.width=1", f"model.stem={stem}", f"train.batch_size={batch}"]
        config = resolve("cifar10-cpu", None, ["data.dataset=shapes", "optim.name=sgd", "optim.lr=0.06", *network])
        speeds: dict[str, list[float]] = {name: [] for name in ("this suite", *others)}
        with TemporaryDirectory() as scratch:
            timed = step_timer(config, open_dataset(config.data, Path(scratch)), torch.device("cpu"))
            timed()
            for _ in range(1 if quick else 3):
                speeds["this suite"].append(batch / median(timed() for _ in range(3)))
                for name, run in others.items():
                    speeds[name].append(run())
        for name, row in speeds.items():
            ratios = [ours / theirs for ours, theirs in zip(speeds["this suite"], row, strict=True)]
            found = {"network": f"{stem} stem", "program": name, "images/s": median(row)}
            rows.append(found | {"speed-up of this suite": _spread(ratios)})
    return rows


def nt_xent(quick: bool) -> list[Row]:
    """NT-Xent of 2N embeddings of width 128, forward and backward. Each runs in its own process, which may use 16 GiB.
    `plain` and `blockwise` are the forms of this suite. `broadcast` compares all pairs by broadcasting."""
    rows = []
    for size in (512,) if quick else (512, 2048, 8192):
        row: Row = {"2N": size}
        for form in loss.FORMS:
            found = loss.measure(form, size)
            if isinstance(found, tuple):
                row[form] = f"{1e3 * found[0]:.1f} ms, {found[1] / 2**20:.0f} MiB"
            else:
                row[form] = found or "out of memory"
        rows.append(row)
    return rows


def classifier(quick: bool) -> list[Row]:
    """The linear classifier at 45 L2 values on 50,000 x 512 synthetic features, compared with scikit-learn's
    default."""
    return [linear.compare(500, 16, 3) if quick else linear.compare(50_000, 512, 45)]


def growth_of(name: str) -> Callable[[bool], list[Row]]:
    """The section that shows how a case of growth.py grows."""

    def section(quick: bool) -> list[Row]:
        return growth.measure(name, 50 if quick else 1)

    prepare, _ = growth.CASES[name]
    section.__doc__ = f"{prepare.__doc__} Memory is what the process needs in addition to what it held before."
    return section


SECTIONS: dict[str, Callable[[bool], list[Row]]] = {
    "machine": machine,
    "step": step,
    "views": views,
    "recipe": recipe,
    "loss": nt_xent,
    "classifier": classifier,
    **{name: growth_of(name) for name in growth.CASES},
}


def _installed(makers: Mapping[str, Callable[..., Any]], rows: list[Row], key: str, *arguments: Any) -> dict[str, Any]:
    """What each maker makes. For one whose program is not installed, `rows` gets a line."""
    made = {}
    for name, maker in makers.items():
        try:
            made[name] = maker(*arguments)
        except ImportError as error:
            rows.append({key: name, "left out": str(error)})
    return made


def _compared(times: Mapping[str, Sequence[float]], key: str) -> list[Row]:
    """A row for each program: its median, and how many times as long as the first one it takes in each round."""
    first = next(iter(times.values()))
    return [
        {key: name, "ms": 1e3 * median(row), "times as long": _spread([b / a for a, b in zip(first, row, strict=True)])}
        for name, row in times.items()
    ]


def _spread(ratios: Sequence[float]) -> str:
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results", help="folder of both files")
    parser.add_argument(
        "--only", nargs="+", choices=SECTIONS, help="sections to measure (default: all that are missing)"
    )
    parser.add_argument("--quick", action="store_true", help="use tiny sizes, to check the script itself")
    given = parser.parse_args(arguments)
    file = given.out / "performance.json"
    earlier = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    here = {"CPU": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__, "quick": given.quick}
    if given.only is None:
        earlier = {name: section for name, section in earlier.items() if section.get("measured by") == here}
    names = given.only or [name for name in SECTIONS if "rows" not in earlier.get(name, {})]
    chosen = {name: update_wrapper(partial(SECTIONS[name], given.quick), SECTIONS[name]) for name in names}
    measure(chosen, Page(given.out / "performance", "Speed on a CPU", INTRO), earlier=earlier, common=here)


if __name__ == "__main__":
    main()
