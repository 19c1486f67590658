"""The reports of a study, a run and a search in a real browser, with hostile names, at three widths, light and dark."""

from __future__ import annotations

import copy
import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from analysis.strip import save_strip
from experiments.runs.report import report as report_run
from experiments.runs.view_grid import STRIP
from experiments.search.confirm import record_trials
from experiments.search.report import report as report_search
from experiments.search.space import Parameter
from experiments.search.trials import open_search, reference_accuracy, run_trials
from experiments.studies.report import report as report_study
from experiments.tracking.store import Record, Store
from experiments.tracking.writing import Tracker
from tests.experiments.search.conftest import trained  # noqa: F401 (a fixture)
from tests.experiments.studies.helpers import PREVIOUS_RUNS, like_the_baseline, write_previous_study
from tests.helpers import tiny

HOSTILE = "<img src=x onerror=alert(1)></style> & \"'$x$ `a` {{ 7 }} " + "long-name-without-spaces" * 4
CELLS = ["baseline", HOSTILE, "no color_jitter", *(f"temperature={value}" for value in range(7))]
SEEDS = range(3)
WIDTHS, MODES = (1440, 800, 390), ("light", "dark")
BACKGROUNDS = {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 24, 27)"}
SERIOUS = ("serious", "critical")
LARGEST = 5 * 2**20  # bytes of the page of a study of 30 runs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """A study of 30 runs, each like one that the suite recorded, with example views of photos of 64 pixels."""
    draw = np.random.default_rng(0)
    runs = {"study": copy.deepcopy(PREVIOUS_RUNS["study"]) | {"name": HOSTILE[:80]}}
    plan = json.loads(runs["study"]["files"]["plan.json"])
    template = plan["cells"][0]
    plan["cells"] = [template | {"cell": cell, "direction": None if cell == "baseline" else "lower"} for cell in CELLS]
    plan |= {"x": "loss.temperature", "log": False, "lines": {HOSTILE: {cell: i for i, cell in enumerate(CELLS)}}}
    runs["study"]["files"]["plan.json"] = json.dumps(plan)
    for place, cell in enumerate(CELLS):
        for seed in SEEDS:
            accuracy = float(0.7 - 0.03 * place + draw.normal(0, 0.004))
            runs[f"{cell} {seed}"] = _with_hostile_classes(like_the_baseline(cell, seed, accuracy))
    store = Store(tmp_path_factory.mktemp("browser") / "home")
    record = write_previous_study(store, runs)
    drawn: dict[str, list[np.ndarray]] = {}  # cells 0 and 1 have the same views
    for run in store.records(parent=record.id):
        cell = run.tags["cell"].replace("temperature=1", "temperature=0")
        views = drawn.setdefault(cell, [draw.random((6, 64, 64, 3))] * 3)
        Tracker(store, run.id).artifact(STRIP, lambda path, views=views: save_strip(views, path))  # type: ignore[misc]
    return record


def _with_hostile_classes(run: dict[str, Any]) -> dict[str, Any]:
    rows = "\n".join(f'"{HOSTILE.replace(chr(34), chr(34) * 2)} {name}",1,0' for name in range(10))
    run["files"]["linear_top1-classes.csv"] = f"class,images,accuracy\n{rows}\n"
    return run


def check(browser: Browser, path: Path) -> None:
    """Look at a page at each width, in light and dark mode."""
    for mode, width in product(MODES, WIDTHS):
        with browser.new_context(viewport={"width": width, "height": 900}, color_scheme=mode) as context:  # type: ignore[arg-type]
            check_page(context.new_page(), path, mode, width)


def check_page(page: Page, path: Path, mode: str, width: int) -> None:
    """Check that a page fits, with everything folded and opened, that nothing hostile runs, and that axe is content."""
    faults: list[str] = []
    page.on("dialog", lambda dialog: (faults.append(f"a script ran: {dialog.message}"), dialog.dismiss()))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: faults.append(request.url) if request.url.startswith("http") else None)
    page.goto(path.as_uri())
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == BACKGROUNDS[mode]
    assert page.evaluate("[...document.images].filter(each => !each.naturalWidth).length") == 0
    for table in page.locator("section .wide").all():  # fits without scrolling inside
        label = table.get_attribute("aria-label")
        assert table.evaluate("each => each.scrollWidth - each.clientWidth") <= 0, f"the table '{label}' at {width}"
    for opened in ("false", "true"):
        page.evaluate(f"document.querySelectorAll('details').forEach(each => each.open = {opened})")
        overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overflow <= 0, f"{path} is {overflow} pixels too wide at {width}"
    violations = Axe().run(page).response["violations"]
    serious = {each["id"]: each["nodes"][0]["html"][:300] for each in violations if each["impact"] in SERIOUS}
    assert (serious, faults) == ({}, [])


def test_the_page_of_a_study_of_30_runs(browser: Browser, study: Record, tmp_path: Path) -> None:
    report_study(study, study.store, out=tmp_path)
    page = tmp_path / "report.html"
    assert page.stat().st_size < LARGEST
    text = page.read_text()
    assert text.count("?workflowType=") == 2 * 30  # for each metric
    assert text.count("example views:") == len(CELLS) - 1
    assert "example views: temperature=0; temperature=1" in text
    check(browser, page)


def test_the_page_of_a_run(browser: Browser, study: Record, tmp_path: Path) -> None:
    (run,) = [run for run in study.store.records(parent=study.id, cell=HOSTILE, seed="1") if run.finished]
    report_run(run, study.store, out=tmp_path)
    assert "A linear classifier on the encoder&#39;s features classifies" in (tmp_path / "report.html").read_text()
    check(browser, tmp_path / "report.html")


@pytest.mark.long
@pytest.mark.usefixtures("trained")
def test_the_page_of_a_search(browser: Browser, tmp_path: Path) -> None:
    space = [
        Parameter(setting="optim.lr", low=1e-4, high=1e-2, log=True),
        Parameter(setting="train.batch_size", choices=(128, 256)),
        Parameter(setting="loss.temperature", low=0.05, high=1.0, log=True),
    ]
    store = Store(tmp_path / "home")
    brief = tiny(data={"limit": 300}, train={"epochs": 1})
    with open_search(HOSTILE[:80], brief, space, store, objectives="accuracy,time") as search:
        start = reference_accuracy(search)
        run_trials(search, 8)
        record_trials(search, start)
        record = search.tracker.record()
    report_search(record, store, out=tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "The best of 8 trials" in text
    assert "your config" in text
    check(browser, tmp_path / "report.html")
