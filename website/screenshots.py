"""Makes the pictures of the docs from real runs: `python -m website.screenshots` writes them to docs/figures/.

It trains on `shapes`: one run, a small study and a small search. They stay in the home folder, so a second time trains
nothing. It needs Chromium, whose path CHROMIUM names.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from simclr.data import shapes

FIGURES = Path(__file__).parent.parent / "docs" / "figures"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
RUN, STUDY, SEARCH = "shapes-s0", "colour", "small"
CELLS = ["--drop", "color_jitter", "--drop", "grayscale", "--together", "--seeds", "3"]
TRIALS = ["--epochs", "4", "--trials", "12", "--pruner", "none", "--seeds", "0"]
QUERIES = ("star", "cross", "ring", "crescent")


def simclr(*arguments: str) -> str:
    """Run a command, and return what it prints."""
    command = [sys.executable, "-m", "cli", *arguments]
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout


def listed(*options: str) -> list[dict[str, Any]]:
    """The trained encoders in the home folder, the newest first."""
    runs: list[dict[str, Any]] = json.loads(simclr("runs", "--kind", "pretrain", "--json", *options))
    return runs


def train() -> None:
    """Train what the pictures show, unless that is done."""
    if RUN not in [run["name"] for run in listed()]:
        simclr("pretrain", "--preset", "shapes")
    simclr("ablate", "--preset", "shapes", "--set", "data.limit=2400", *CELLS, "--name", STUDY)
    simclr("search", "--preset", "shapes", "--set", "data.limit=1200", *TRIALS, "--name", SEARCH)


def write_query(shape: str) -> str:
    """Write the first test image of a class to a file, and return its name."""
    images, labels = shapes.render(shapes.TEST, 1)
    first = images[labels == shapes.CLASSES.index(shape)][0]
    Image.fromarray(first.transpose(1, 2, 0)).save(f"{shape}.png")
    return f"{shape}.png"


def draw() -> None:
    """Draw the pictures that are figures, and write the pages."""
    simclr("views", "--preset", "shapes", "--out", str(FIGURES / "views.png"))
    simclr("neighbours", RUN, *map(write_query, QUERIES), "--out", str(FIGURES / "neighbours.png"))
    simclr("tsne", RUN, "--images", "1000", "--out", "tsne")
    first_seed = [run["name"] for run in reversed(listed("--study", STUDY)) if "-s0" in run["name"]]
    simclr("plot", "loss", *first_seed, "--out", "loss")
    simclr("report", SEARCH, "--out", "search")
    for figure in ("tsne", "loss", "search/history", "search/importance"):
        shutil.copy(f"{figure}.png", FIGURES / f"{figure.replace('/', '-')}.png")
    simclr("report", STUDY, "--out", "study")
    simclr("explore", RUN, "--images", "1000")


@contextmanager
def mlflow() -> Iterator[str]:
    """MLflow's pages, served by `simclr ui` while the block runs: the address of the newest study."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-u", "-m", "cli", "ui", "--no-browser", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield next(line.split()[-1] for line in server.stdout if line.startswith(f"study {STUDY}: "))
        finally:
            server.terminate()


def comparison(study: str) -> str:
    """The address of MLflow's comparison of the runs of a study, from that of its page."""
    server, _, place = study.partition("#")
    runs = json.dumps([run["id"] for run in reversed(listed("--study", STUDY))])
    return f"{server}#/compare-runs?runs={quote(runs)}&experiments={quote(json.dumps([place.split('/')[2]]))}"


def picture(
    browser: Browser, address: str, name: str, ready: str, *clicks: str, width: int = 1200, height: int = 800
) -> None:
    """Write what a page shows to docs/figures/NAME.png, once `ready` is visible and the texts `clicks` are clicked."""
    page = browser.new_page(viewport={"width": width, "height": height})
    page.goto(address)
    page.locator(ready).first.wait_for()
    for text in clicks:
        page.get_by_text(text, exact=True).first.click()
    page.wait_for_timeout(3000)  # a picture needs no more care: animations have ended, and figures are drawn
    page.screenshot(path=FIGURES / f"{name}.png")
    page.close()


def main() -> None:
    """Train, draw, and take the pictures of pages."""
    os.environ["SIMCLR_HOME"] = str(Path(os.environ.get("SIMCLR_HOME", "simclr-runs")).absolute())
    os.environ["PYTHONPATH"] = str(FIGURES.parent.parent)
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright, chdir(scratch):
        train()
        draw()
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        picture(browser, next(Path("study").absolute().glob("*.html")).as_uri(), "report", "h1", height=1040)
        picture(browser, Path("explore.html").absolute().as_uri(), "explorer", "#legend", width=1360)
        with mlflow() as address:
            picture(browser, address, "mlflow-study", f"text={STUDY}", width=1400)
            folded = ("Visualizations", "Parameters")  # so that the metrics are in sight
            picture(browser, comparison(address), "mlflow-compare", "text=Run details", *folded, width=1680, height=930)
        browser.close()


if __name__ == "__main__":
    main()
