"""The explorer's page in a real browser: pointer, keys, lasso, lists, colours, widths, and hostile names."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect
from sklearn.datasets import load_sample_images

from analysis.explorer import PALETTE, Column, explorer_page
from analysis.matches import Match, Query, matches_page

pytestmark = pytest.mark.slow

COUNT, NEAREST = 240, 12
DRAW = np.random.default_rng(0)
POINTS = DRAW.normal(size=(COUNT, 2))
EVIL = [
    "<img src=x onerror=window.hacked=1>.png",
    "</script><script>window.hacked=1</script>.png",
    "\"'><b>bold.png",
    "javascript:alert(1).png",
    "ｈ𝕒🖼.png",
    "a" * 250 + ".png",
]
SHORT = [*(f"{'ab'[i % 2]}/{i:03}.png" for i in range(COUNT - len(EVIL))), *(f"c/{name}" for name in EVIL)]
NAMES = [f"/my photos/{name}" for name in SHORT]
CODES = np.arange(COUNT) % 3 - 1  # none, x or y
FEATURES = DRAW.normal(size=(COUNT, 9))
FEATURES[7] = FEATURES[100]  # a copy
COSINE = FEATURES @ FEATURES.T / np.linalg.norm(FEATURES, axis=1) / np.linalg.norm(FEATURES, axis=1)[:, None]
NEAR = np.argsort(-(COSINE - 9 * np.eye(COUNT)), axis=1)[:, :NEAREST]
COLOURS = np.stack([np.arange(COUNT), 255 - np.arange(COUNT), np.full(COUNT, 90)], 1).astype(np.uint8)
SIZES = [(100 + row, 80, 5000 + row) if row % 3 else None for row in range(COUNT)]
COLUMNS = [
    Column("class", ["x", "y"], CODES),
    Column("error", ["right", "wrong"], np.arange(COUNT) % 2),
    Column("<b>many</b>", [f"<i>{number}" for number in range(40)], np.arange(COUNT) % 40),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("explorer") / "explore.html"
    thumbnails = COLOURS[:, None, None].repeat(32, 1).repeat(32, 2)
    similar = np.take_along_axis(COSINE, NEAR, 1)
    text = explorer_page(
        "photos, seen by <b>a</b>", ["<i>note"], NAMES, COLUMNS, POINTS, NEAR, similar, thumbnails, SIZES
    )
    path.write_text(text, "utf-8")
    return path.as_uri()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    yield from opened(browser, address, width=1440, height=900)


def opened(browser: Browser, address: str, width: int, height: int, **options: Any) -> Iterator[Page]:
    """A page that has drawn its map. At the end it must have reported no error and fetched nothing else."""
    page = browser.new_page(viewport={"width": width, "height": height}, **options)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("dialog", lambda dialog: faults.append(dialog.message))
    page.on(
        "request",
        lambda request: faults.append(request.url) if request.url[:5] not in ("file:", "data:", "blob:") else 0,
    )
    page.goto(address)
    until(page, "pictured.length > 0")
    yield page
    assert page.evaluate("window.hacked") is None
    assert faults == []
    page.close()


def until(page: Page, condition: str) -> None:
    """Wait for something in the page. (Playwright's own way evaluates texts, which the page's policy forbids.)"""
    page.evaluate(f"async () => {{ while (!({condition})) await new Promise(requestAnimationFrame); }}")


def place(page: Page, row: int) -> tuple[float, float]:
    """Where an image is on the screen."""
    x, y = page.evaluate(f"[left({row}), top_({row})]")
    box = page.locator("#map").bounding_box()
    assert box is not None
    return box["x"] + x, box["y"] + y


def without_pictures(page: Page) -> None:
    page.click("#pictures")
    until(page, "pictured.length === 0")


def titles(page: Page) -> list[str]:
    return [button.get_attribute("title") or "" for button in page.locator("#list .image").all()]


def saved(page: Page) -> list[str]:
    with page.expect_download() as download:
        page.click("#save")
    return download.value.path().read_text("utf-8").splitlines()


def test_hovering_shows_the_picture_and_the_path(page: Page) -> None:
    without_pictures(page)
    for row in (0, 57, COUNT - 6, COUNT - 5):
        page.mouse.move(*place(page, row))
        shown = page.locator("#tip")
        expect(shown).to_contain_text(SHORT[page.evaluate("hovered")])
        hovered = page.evaluate("hovered")
        assert np.hypot(*np.subtract(place(page, hovered), place(page, row))) < 1
        pixel = page.evaluate("[...tip.firstChild.getContext('2d').getImageData(16, 16, 1, 1).data]")
        assert np.abs(np.array(pixel[:3]) - COLOURS[hovered].astype(int)).max() < 12
    page.mouse.move(700, 20)
    expect(page.locator("#tip")).to_be_hidden()


def test_a_click_lists_the_nearest_images_and_a_click_on_one_goes_on(page: Page) -> None:
    without_pictures(page)
    page.mouse.click(*place(page, 7))
    row = page.evaluate("selected")
    expect(page.locator("#heading")).to_have_text("Nearest images")
    expect(page.locator("#about")).to_contain_text(SHORT[row])
    assert titles(page) == [NAMES[other] for other in NEAR[row]]
    assert page.locator("#list .image span:first-of-type").all_text_contents() == [
        f"{COSINE[row, other]:.3f}" for other in NEAR[row]
    ]
    page.locator("#list .image").nth(3).click()
    expect(page.locator("#about")).to_contain_text(SHORT[NEAR[row, 3]])
    assert titles(page) == [NAMES[other] for other in NEAR[NEAR[row, 3]]]


@pytest.mark.parametrize("way", ["the button", "Shift"])
def test_a_lasso_saves_the_names_of_the_images_inside(page: Page, way: str) -> None:
    middle = np.median(POINTS[:, 0])
    inside = [name for name, (x, _) in zip(NAMES, POINTS, strict=True) if x < middle]
    order = np.argsort(POINTS[:, 0])
    border = (place(page, order[COUNT // 2 - 1])[0] + place(page, order[COUNT // 2])[0]) / 2
    if way == "the button":
        page.click("#lasso")
    else:
        page.keyboard.down("Shift")
    box = page.locator("#map").bounding_box()
    assert box is not None
    left, top, bottom = box["x"] + 2, box["y"] + 2, box["y"] + box["height"] - 2
    page.mouse.move(left, top)
    page.mouse.down()
    for x, y in ((border, top), (border, bottom), (left, bottom)):
        page.mouse.move(x, y)
    page.mouse.up()
    expect(page.locator("#heading")).to_have_text(f"Lasso: {COUNT // 2} images")
    assert saved(page) == inside
    assert len(titles(page)) == 60
    page.click("#more")
    assert titles(page) == inside


def test_names_and_categories_filter_what_is_shown_and_listed(page: Page) -> None:
    page.fill("#filter", "A/0")
    expect(page.locator("#count")).to_have_text(f"50 of {COUNT} images shown")
    page.locator("#legend button", has_text="y").click()
    wanted = [
        name for name, short, code in zip(NAMES, SHORT, CODES, strict=True) if short.startswith("a/0") and code == 1
    ]
    expect(page.locator("#count")).to_have_text(f"{len(wanted)} of {COUNT} images shown")
    page.click("#shown")
    assert saved(page) == titles(page) == wanted
    page.locator("#legend button", has_text="y").click()
    page.fill("#filter", "")
    expect(page.locator("#count")).to_have_text(f"{COUNT} of {COUNT} images shown")
    expect(page.locator("#heading")).to_have_text(f"Shown: {COUNT} images")  # the list follows
    page.fill("#filter", "b/")
    assert saved(page) == [name for name in NAMES if "/b/" in name]


def test_colours_are_those_of_the_category(page: Page) -> None:
    without_pictures(page)
    for number, column in enumerate(COLUMNS):
        page.select_option("#colour", str(number))
        names = ["none"] * bool((column.codes < 0).any()) + list(column.categories)
        legend = page.locator("#legend button").all_text_contents()
        counts = [int((column.codes == code).sum()) for code in range(-(-1 in column.codes), len(column.categories))]
        assert legend == [f"{name} ({count})" for name, count in zip(names, counts, strict=True)]
    page.select_option("#colour", "1")
    until(page, "!due")
    rows = alone(page)
    assert len(rows) > 10
    for row in rows:
        pixel = page.evaluate(f"[...map.getContext('2d').getImageData(left({row}), top_({row}), 1, 1).data]")
        wanted = PALETTE[COLUMNS[1].codes[row]].lstrip("#")
        assert np.abs(np.array(pixel[:3]) - [int(wanted[i : i + 2], 16) for i in (0, 2, 4)]).max() < 8


def alone(page: Page) -> list[int]:
    """Images that have no other near them on the screen."""
    places = np.array([place(page, row) for row in range(0, COUNT)])
    gaps = np.hypot(*(places[:, None] - places).transpose(2, 0, 1)) + 1e9 * np.eye(COUNT)
    return [int(row) for row in np.flatnonzero(gaps.min(1) > 20)]


def test_duplicates_and_outliers_are_ranked(page: Page) -> None:
    page.click("#duplicates")
    header, *rows = [line.split("\t") for line in saved(page)]
    assert header == ["file 1", "file 2", "difference", "kind", "pixels 1", "pixels 2", "bytes 1", "bytes 2"]
    assert rows[0] == [NAMES[7], NAMES[100], "0.0000", "similar", "107x80", "200x80", "5007", "5100"]  # other pixels
    assert {row[4] for row in rows if row[0] == NAMES[9]} <= {""}
    pairs = [sorted(NAMES.index(name) for name in row[:2]) for row in rows]
    assert pairs[0] == [7, 100]
    expect(page.locator("#list .image span").first).to_have_text("0.0000")
    listed = {tuple(sorted((row, int(other)))) for row in range(COUNT) for other in NEAR[row]}
    assert {tuple(pair) for pair in pairs} <= listed
    assert len({tuple(pair) for pair in pairs}) == len(pairs) == 600
    apart = {(a, b): (1 - COSINE[a, b]) * np.abs(COLOURS[a] - COLOURS[b].astype(int)).sum() for a, b in listed}
    found = [apart[a, b] for a, b in pairs]
    np.testing.assert_allclose(found, sorted(apart.values())[:600], rtol=0.1, atol=1)
    page.click("#outliers")
    score = np.take_along_axis(COSINE, NEAR, 1).mean(1)
    found = [score[NAMES.index(name)] for name in saved(page)]
    np.testing.assert_allclose(found, np.sort(score)[: ceil(COUNT / 20)], atol=1e-4)


def test_the_map_is_used_with_the_keys_alone(page: Page) -> None:
    page.locator("#map").focus()
    page.keyboard.press("ArrowRight")
    first = page.evaluate("hovered")
    expect(page.locator("#tip")).to_contain_text(SHORT[first])
    for key, axis, sign in (("ArrowRight", 0, 1), ("ArrowUp", 1, -1), ("ArrowLeft", 0, -1), ("ArrowDown", 1, 1)):
        before = page.evaluate("hovered")
        page.keyboard.press(key)
        after = page.evaluate("hovered")
        assert sign * (POINTS[after] - POINTS[before])[axis] > 0
    page.keyboard.press("Enter")
    assert titles(page) == [NAMES[other] for other in NEAR[page.evaluate("hovered")]]
    scale = page.evaluate("view.scale")
    page.keyboard.press("+")
    assert page.evaluate("view.scale") == pytest.approx(1.5 * scale)
    page.keyboard.press("0")
    assert page.evaluate("view.scale") == pytest.approx(page.evaluate("fitting()"))


def test_the_wheel_zooms_at_the_pointer_and_a_drag_moves_the_map(page: Page) -> None:
    row = page.evaluate("pictured[5]")
    at = place(page, row)
    page.mouse.move(*at)
    page.mouse.wheel(0, -400)
    until(page, "view.scale > 1.2 * fitting()")
    np.testing.assert_allclose(place(page, row), at, atol=1)
    page.mouse.down()
    page.mouse.move(at[0] + 80, at[1] + 50)
    page.mouse.up()
    np.testing.assert_allclose(place(page, row), np.add(at, (80, 50)), atol=1)
    expect(page.locator("#heading")).not_to_have_text("Nearest images")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1440, 900), (800, 1000), (390, 844)])
def test_the_page_fits_and_is_accessible(browser: Browser, address: str, width: int, height: int, scheme: str) -> None:
    for page in opened(browser, address, width, height, color_scheme=scheme):
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (int(background[4:].split(",")[0]) > 127) == (scheme == "light")
        page.evaluate("document.querySelector('h1').textContent = 'many photos '.repeat(8)")
        tools = page.locator("header label, header button").all()
        middles = {box["y"] + box["height"] / 2 for box in map(Locator.bounding_box, tools) if box is not None}
        assert width < 1440 or max(middles) - min(middles) < 2  # in one row
        for action in ("#duplicates", "#outliers", "#shown"):
            page.click(action)
        page.locator("#list .image").first.click()
        page.locator("summary").click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        found = Axe().run(page).response["violations"]
        assert [(each["id"], [node["html"][:90] for node in each["nodes"]]) for each in found] == []


def test_on_a_phone_the_pictures_of_a_list_are_on_the_screen(browser: Browser, address: str) -> None:
    for page in opened(browser, address, 390, 800):
        page.click("#duplicates")
        expect(page.locator("#list .image canvas").first).to_be_in_viewport(ratio=1)
        page.evaluate("scrollTo(0, 0)")
        page.mouse.click(*place(page, 7))
        expect(page.locator("#heading")).to_have_text("Nearest images")
        expect(page.locator("#list .image canvas").first).to_be_in_viewport(ratio=1)


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (800, "dark"), (390, "light")])
def test_similar_images_fit_and_are_accessible(browser: Browser, tmp_path: Path, width: int, scheme: str) -> None:
    wide, high = np.zeros((60, 160, 3), np.uint8), np.full((160, 40, 3), 99, np.uint8)
    matches = [Match(name, wide, 0.5, EVIL[row]) for row, name in enumerate(EVIL)]
    (tmp_path / "similar.html").write_text(matches_page(EVIL[0], [Query(EVIL[1], high, matches)] * 2), "utf-8")
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    page.goto((tmp_path / "similar.html").as_uri())
    assert page.locator("li span").all_text_contents() == EVIL * 2
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert [each["id"] for each in Axe().run(page).response["violations"]] == []
    page.close()


def photos(count: int, side: int) -> NDArray[np.uint8]:
    """Crops of two photos, which are as hard to compress as any."""
    images = [Image.fromarray(image) for image in load_sample_images().images]
    found = np.empty((count, side, side, 3), np.uint8)
    for row in range(count):
        image, crop = images[row % 2], int(DRAW.integers(side, 300))
        x, y = DRAW.integers(0, image.width - crop), DRAW.integers(0, image.height - crop)
        found[row] = np.asarray(image.resize((side, side), box=(x, y, x + crop, y + crop)))
    return found


# The time in ms from the next movement of the pointer to the frame that shows what it did.
NEXT_ANSWER = """() => ({answer: new Promise(done => map.addEventListener("pointermove", event =>
    requestAnimationFrame(() => setTimeout(() => done(performance.now() - event.timeStamp))),
{once: true, capture: true}))})"""


def hovers(browser: Browser, folder: Path, count: int, side: int) -> list[float]:
    """The time in ms that the page of so many photos takes to answer each of 40 movements of the pointer."""
    names = [f"photos/some album/{row:05}.jpg" for row in range(count)]
    near = DRAW.integers(0, count, (count, 20))
    columns = [Column("class", [str(number) for number in range(10)], np.arange(count) % 10)]
    points, similar = DRAW.normal(size=(count, 2)), np.ones((count, 20))
    path = folder / "explore.html"
    path.write_text(
        explorer_page("photos", [], names, columns, points, near, similar, photos(count, side), [None] * count), "utf-8"
    )
    assert path.stat().st_size < 40e6
    times = []
    for page in opened(browser, path.as_uri(), 1440, 900):
        for row in range(0, count, count // 40):
            waiting = page.evaluate_handle(NEXT_ANSWER)
            page.mouse.move(*place(page, row))
            times.append(page.evaluate("waiting => waiting.answer", waiting))
            assert page.evaluate("tip.textContent.startsWith(short[hovered])")
    return times


def test_a_large_map_is_small_enough_and_shows_what_is_below_the_pointer(browser: Browser, tmp_path: Path) -> None:
    assert len(hovers(browser, tmp_path, 10_000, 64)) == 40


@pytest.mark.long  # it measures time, and so needs a quiet machine
@pytest.mark.parametrize(("count", "side"), [(10_000, 64), (50_000, 32)])
def test_a_large_map_answers_at_once(browser: Browser, tmp_path: Path, count: int, side: int) -> None:
    assert median(hovers(browser, tmp_path, count, side)) < 50
