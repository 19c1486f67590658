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
from contextlib import chdir, contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

FIGURES = Path(__file__).parent.parent / "docs" / "figures"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
SMALLER = ["--preset", "shapes", "--set", "data.limit=2400"]
STUDY, RUN = "colour", "shapes-limit=2400-s0"


def simclr(*arguments: str) -> None:
    """Run a command."""
    subprocess.run([sys.executable, "-m", "cli", *arguments], check=True)


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


def picture(browser: Browser, address: str, name: str, ready: str, width: int = 1200) -> None:
    """Write what a page shows, once the element `ready` is visible, to docs/figures/NAME.png."""
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto(address)
    page.locator(ready).first.wait_for()
    page.wait_for_timeout(3000)  # a picture needs no more care: animations have ended, and figures are drawn
    page.screenshot(path=FIGURES / f"{name}.png")
    page.close()


def main() -> None:
    """Train, write the pages, and take the pictures."""
    os.environ["SIMCLR_HOME"] = str(Path(os.environ.get("SIMCLR_HOME", "simclr-runs")).absolute())
    os.environ["PYTHONPATH"] = str(FIGURES.parent.parent)
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright, chdir(scratch):
        simclr(
            "ablate",
            *SMALLER,
            "--drop",
            "color_jitter",
            "--drop",
            "grayscale",
            "--together",
            "--seeds",
            "3",
            "--name",
            STUDY,
        )
        simclr("views", "--preset", "shapes", "--out", str(FIGURES / "views.png"))
        simclr("report", STUDY, "--out", "report")
        simclr("explore", RUN, "--images", "1000")
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        picture(browser, next(Path("report").absolute().glob("*.html")).as_uri(), "report", "h1")
        picture(browser, Path("explore.html").absolute().as_uri(), "explorer", "#legend")
        with mlflow() as address:
            picture(browser, address, "mlflow-study", f"text={STUDY}", width=1400)
        browser.close()


if __name__ == "__main__":
    main()
