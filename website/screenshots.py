"""Makes pictures of the suite's pages from real runs: `python -m website.screenshots` writes them to docs/figures/.

It trains a small study on `shapes` (a few minutes on two CPU cores; the runs stay in the home folder, so that a second
time takes seconds), and needs Chromium, whose path CHROMIUM names.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from simclr.data.shapes import render

FIGURES = Path(__file__).parent.parent / "docs" / "figures"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
SMALLER = ["--preset", "shapes", "--set", "data.limit=2400"]
STUDY, RUN = "colour", "shapes-limit=2400-s0"
PHOTOS = 400


def simclr(*arguments: str) -> None:
    """Run a command."""
    subprocess.run([sys.executable, "-m", "cli", *arguments], check=True)


@contextmanager
def mlflow() -> Iterator[str]:
    """MLflow's pages, served by `simclr ui` while the block runs: the address of the list of runs."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-u", "-m", "cli", "ui", "--no-browser", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield next(word for line in server.stdout for word in line.split() if word.startswith("http"))
        finally:
            server.terminate()


def picture(browser: Browser, address: str, name: str, ready: str, width: int = 1200, height: int = 800) -> None:
    """Write what a page shows, once the element `ready` is visible, to docs/figures/NAME.png."""
    page = browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=1)
    page.goto(address)
    page.locator(ready).first.wait_for()
    page.wait_for_timeout(3000)  # a picture needs no more care: animations have ended, and figures are drawn
    page.screenshot(path=FIGURES / f"{name}.png")
    page.close()


def main() -> None:
    """Train, write the pages, and take the pictures."""
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        folder = Path(scratch)
        simclr("ablate", *SMALLER, "--drop", "color_jitter", "--drop", "grayscale", "--together", "--name", STUDY)
        simclr("views", "--preset", "shapes", "--out", str(FIGURES / "views.png"))
        simclr("report", STUDY, "--out", str(folder / "report"))
        simclr("explore", RUN, "--images", "2000", "--out", str(folder / "explorer.html"))
        (folder / "photos").mkdir()
        images = render(PHOTOS, seed=1)[0]
        for number, image in enumerate(images):
            Image.fromarray(np.moveaxis(image, 0, -1)).save(folder / "photos" / f"{number:03}.png")
        queries = [str(folder / "photos" / f"{number:03}.png") for number in range(3)]
        found = str(folder / "similar.html")
        simclr("neighbours", RUN, *queries, "--among", str(folder / "photos"), "--out", found)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        picture(browser, next((folder / "report").glob("*.html")).as_uri(), "report", "h1")
        picture(browser, (folder / "explorer.html").as_uri(), "explorer", "#legend")
        picture(browser, Path(found).as_uri(), "similar", "img", height=620)
        with mlflow() as address:
            picture(browser, address, "mlflow-runs", f"text={STUDY}", width=1400)
        browser.close()


if __name__ == "__main__":
    main()
