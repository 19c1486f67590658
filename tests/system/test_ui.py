"""`simclr ui` serves MLflow's pages, which stay in model training, until it is stopped."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
from playwright.sync_api import Browser, Page, expect

from analysis.summary import summary
from experiments.studies.overview import show_results
from experiments.tracking.store import Store
from experiments.tracking.writing import start_run
from tests.helpers import ROOT, tiny


class Server(NamedTuple):
    """A running `simclr ui`, and what it printed until it was ready."""

    process: subprocess.Popen[str]
    port: int
    printed: str


@contextmanager
def ui(home: Path, *options: str, **environment: str) -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-u", str(ROOT / "cli.py"), "ui", "--port", str(port), *options],
        env=os.environ | {"SIMCLR_HOME": str(home)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        printed = ""
        while "Ctrl-C" not in printed:
            line = process.stdout.readline()
            assert line, f"the server ended: {printed}"
            printed += line
        yield Server(process, port, printed)
    finally:
        process.terminate()
        process.wait()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.parametrize("stop", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_one_process_serves_the_pages_until_ui_is_stopped(stop: str, tmp_path: Path) -> None:
    with ui(tmp_path / "home", "--no-browser") as server:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/health") as page:
            assert page.read() == b"OK"
        assert children_of(server.process.pid) == []
        assert len(server.printed.splitlines()) == 3
        server.process.send_signal(getattr(signal, stop))
        rest, _ = server.process.communicate()  # returns when every process that shares its output has ended
    assert (server.process.returncode, rest) == (0, "")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port))


def children_of(pid: int) -> list[int]:
    """The processes that a process has started and that still run."""
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
    return [child for child, parent in pairs if parent == pid]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a study of two cells."""
    store = Store(tmp_path_factory.mktemp("ui") / "home")
    study = start_run(store, "shapes-no-blur", "study", {})
    rows = []
    for cell, config in {
        "baseline": tiny(name="shapes"),
        "no blur": tiny(name="no-blur@shapes", augment={"blur": {"p": 0.0}}),
    }.items():
        run = start_run(store, config.run_name(), "pretrain", config.flat(), {"cell": cell}, parent=study.run_id)
        run.dataset("photos", "12345678", "/photos", {"train": 90})
        for step in (1, 2, 3):
            run.log({"train/loss": 1 / step, "val/knn_top1": 0.7, "system/cpu_utilization_percentage": 50.0}, step)
        run.log({"eval/val/linear_top1": 0.75})  # as studies do
        run.finish("FINISHED")
        rows += [{"cell": cell, "seed": seed, "val/linear_top1": 0.5 + seed / 10} for seed in (0, 1)]
    table = pd.DataFrame(rows).assign(status="FINISHED", seconds=1.0, images_per_second=1.0)
    cells = [
        {"cell": cell, "paper": None, "direction": None, "against": "baseline", "caveat": None, "source": None}
        for cell in ("baseline", "no blur")
    ]
    show_results(study, {"val/linear_top1": summary(table, cells, "val/linear_top1", {})}, "Nothing differs.")
    study.finish("FINISHED")
    return store.folder


@pytest.fixture(scope="module")
def page(browser: Browser) -> Page:
    return browser.new_page(viewport={"width": 1440, "height": 900})


def expect_training(page: Page) -> None:
    """Wait until the page has a menu, which must be that of model training."""
    menu = page.get_by_role("complementary").first
    expect(menu.get_by_role("link", name="Models", exact=True)).to_be_visible()
    expect(menu.get_by_text("Judges")).to_have_count(0)  # of chatbots


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_the_pages_stay_in_model_training(home: Path, page: Page, tmp_path: Path) -> None:
    page.set_default_timeout(60_000)
    expect.set_options(timeout=60_000)
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opening\nmv {tmp_path}/opening {tmp_path}/opened\n')
    browser.chmod(0o755)
    with ui(home, BROWSER=f"{browser} %s", DISPLAY=":0") as server:
        runs, study = re.findall(r"http://\S+", server.printed)
        page.goto(runs)
        expect_training(page)
        assert (tmp_path / "opened").read_text().strip() == runs
        for column in ("val/knn_top1", "eval/val/linear_top1"):
            expect(page.get_by_role("columnheader").get_by_text(column, exact=True)).to_be_visible()

        row = page.locator(".ag-row", has=page.get_by_role("link", name="shapes-no-blur"))
        row.locator("button").first.click()  # shows the runs of the study
        for name in ("shapes-s0", "no-blur-s0@shapes"):
            row = page.locator(".ag-row", has=page.get_by_role("link", name=name, exact=True))
            row.get_by_role("checkbox").first.check(force=True)
        expect(page.get_by_text("photos (12345678-")).to_have_count(2)
        expect(page.get_by_role("gridcell", name="0.75", exact=True)).to_have_count(2)  # the accuracies of both
        page.get_by_role("button", name="Compare").click()
        expect(page.get_by_text("Comparing 2 Runs")).to_be_visible()
        expect_training(page)
        values = page.locator("tr", has=page.get_by_text("augment.blur.p", exact=True)).get_by_role("cell")
        assert "0.0" in values.all_inner_texts()
        for row in page.locator("tr", has=page.get_by_text(re.compile(r"^augment\."))).all():
            name, *values = row.get_by_role("cell").all_inner_texts()
            assert all(text.strip() for text in values), f"{name} is blank"

        page.get_by_role("link", name=re.compile("^[0-9a-f]{32}$")).first.click()  # the id of a run
        expect(page.get_by_role("heading", name=re.compile("shapes"))).to_be_visible()
        expect_training(page)
        for metrics in ("Model metrics (3)", "System metrics (1)"):
            expect(page.get_by_text(metrics)).to_be_visible()

        page.goto(study.partition("?")[0])  # as MLflow's own links
        expect(page.get_by_text("Nothing differs.")).to_be_visible()
        expect(page.get_by_role("cell", name="+0.00")).to_be_visible()
        expect(page.get_by_text("val/linear_top1/no blur")).to_be_visible()
        expect_training(page)

        page.goto(f"http://127.0.0.1:{server.port}")
        expect(page.get_by_role("link", name="shapes-no-blur")).to_be_visible()
        expect_training(page)
