"""What the reports of runs, studies and searches share: their figures, their files, and links to runs."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from analysis.page import Link, Section
from experiments.tracking.pages import address, shared_server
from experiments.tracking.store import Record, Store
from experiments.tracking.writing import Tracker
from simclr.errors import UserError
from simclr.files import written_whole

PAGE = "report.html"
PORT = 5000  # on which `simclr ui` shows a local store by default, and to which reports link


@contextmanager
def report_folder(record: Record, store: Store, out: Path | None) -> Iterator[Path]:
    """A folder for the files of a report. At the end they are kept with its record, and copied to `out`.

    Where the store can't be written, they are not kept. Raises UserError if `out` can't be written to.
    """
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"can't write to {out}: {error.strerror or error}. Choose another --out") from None
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        yield folder
        tracker = Tracker(store, record.id) if store.writable else None
        for path in sorted(folder.iterdir()):
            if tracker is not None:
                tracker.artifact(path.name, lambda target, path=path: shutil.copy(path, target))  # type: ignore[misc]
            if out is not None:
                with written_whole(out / path.name) as copy:
                    shutil.copy(path, copy)
        if tracker is not None:
            tracker.flush()


def where(record: Record, store: Store) -> str:
    """A line that says where the page of a report is."""
    return f"report: {record.artifact(PAGE)}" if store.writable else f"not kept: {store.folder} is not writable"


def report_files(record: Record) -> list[Path]:
    """The page of a report, if it is kept."""
    return [record.artifact(PAGE)] if record.find_artifact(PAGE) is not None else []


def figure(folder: Path, name: str, caption: str, draw: Callable[[Path], object], heading: str = "") -> Section:
    """Draw a figure to name.svg and name.png, and return the page's section for it."""
    for suffix in (".png", ".svg"):
        draw(folder / f"{name}{suffix}")
    return Section(heading, "figure", (folder / f"{name}.svg", caption))


def link(record: Record, text: str) -> Link:
    """A link to the page of a run in MLflow, which `simclr ui` shows unless a server does."""
    return Link(text, address(shared_server() or f"http://127.0.0.1:{PORT}", record.store.experiment, record.id))


def linked_server() -> str:
    """What must be running for links to work, in words."""
    return shared_server() or f"simclr ui (port {PORT})"


def text_of(record: Record, name: str) -> str:
    """The text of a file of a run."""
    return record.artifact(name).read_text(encoding="utf-8")
