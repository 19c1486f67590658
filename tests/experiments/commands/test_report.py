"""`simclr report` of runs, studies and searches."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.tracking.store import Record, Store
from experiments.tracking.writing import start_run
from tests.experiments.commands.helpers import Run, assert_one_line


@pytest.mark.parametrize("kind", ["study", "search", "pretrain"])
def test_report_prints_the_tables_on_stdout_and_the_rest_on_stderr(
    kind: str, run: Run, trained: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = start_run(trained, f"a-{kind}", kind, {})
    record.finish("FINISHED")

    def report(record: Record, store: Store, form: str, out: Path | None) -> tuple[str, list[str]]:
        return f"{record.id} {form} {out}", ["a note"]

    module = {"study": "studies", "search": "search"}.get(kind, "runs")
    monkeypatch.setattr(f"experiments.{module}.report.report", report)
    done = run("report", f"a-{kind}", "--format", "latex", "--out", "tables")
    assert (done.stdout, done.stderr) == (
        f"{record.run_id} latex tables\n",
        f"a note\ncopied to {Path('tables/report.html')}\n",
    )
    assert run("report", f"a-{kind}").stdout == f"{record.run_id} terminal None\na note\n"


def test_studies_that_are_shown_together_have_titles(run: Run, trained: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("first", "second"):
        start_run(trained, name, "study", {}).finish("FINISHED")
    monkeypatch.setattr("experiments.studies.report.tables", lambda study, *_: (f"table of {study.name}", []))
    monkeypatch.setattr("experiments.studies.report.what_of", lambda study, _: "9 test images")
    done = run("compare", "first", "second")
    parts = [f"Study {name}: 9 test images\n\ntable of {name}\n" for name in ("first", "second")]
    assert done.stdout == "".join(parts)
    assert "2 studies are shown one by one" in done.stderr
    assert run("compare", "first").stdout == "table of first\n"


def test_mistakes_are_one_line(run: Run, trained: Store) -> None:
    start_run(trained, "another-study", "study", {}).finish("FINISHED")
    message = "no run, study or search has the name 'another-stud' or an id that starts with it: did you mean 'another-"
    assert_one_line(run("report", "another-stud"), 2, message)
    assert_one_line(run("report", "another-study", "--format", "html"), 2, "unknown format 'html'")
    for command in ("report", "compare"):
        refused = run(command, "another-study", "--format", "latex", "--json")
        assert_one_line(refused, 2, "--json and --format latex are two formats: leave out one of them")
    refused = run("report", "another-study", "--out", "out/rep.html")
    assert_one_line(refused, 2, "--out is the folder to write the page to: leave out the name rep.html")
    assert not Path("out").exists()
