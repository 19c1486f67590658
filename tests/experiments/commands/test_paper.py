"""experiments/commands/paper.py. The studies are replaced; tests/experiments/studies/test_paper.py runs real ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from experiments.studies.paper import Cost, Part
from experiments.studies.paper_report import FILES
from experiments.tracking.store import Store
from experiments.workers.engines import ENGINES
from experiments.workers.pool import Pool
from simclr.progress import Observer
from tests.experiments.commands.helpers import Run, assert_one_line

WIDE = ("--config", "tiny.toml", "--set", "model.width=0.25")  # a network of which one of half the width can be made


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces the prediction (half an hour for each table) and the studies. The list holds those that were run."""
    done: list[str] = []

    def predict(parts: Sequence[Part], store: Store, observer: Observer) -> list[Cost]:
        return [Cost(part, 10, 4, 1800.0) for part in parts]

    def run_part(part: Part, store: Store, command: str, observer: Observer, pool: Pool) -> list[str]:
        done.append(f"{part.study} on {'a cluster' if pool.several else 'this machine'}")
        return ["Table 4: 'margin', seed 0: no luck"] if part.study.endswith("table4") else []

    monkeypatch.setattr("experiments.studies.paper.predict", predict)
    monkeypatch.setattr("experiments.studies.paper.run_part", run_part)
    return done


def test_a_dry_run_lists_tables_runs_and_time(run: Run, ran: list[str]) -> None:
    planned = json.loads(run("paper", *WIDE, "--dry-run", "--json").stdout)
    titles = ["Figure 5", "Table 1", "Figure 7", "Figure 8", "Table 3", "Table 4", "Table 5", "Figure 9"]
    assert [table["table"] for table in planned["tables"]] == titles
    assert planned["seconds"] == 8 * 1800
    shown = run("paper", *WIDE, "--dry-run").stdout
    assert "80 runs, 32 of them done; about 4.0 h" in " ".join(shown.split())
    assert ran == []


def test_tables_with_more_seeds_come_first_and_a_failure_comes_last(run: Run, ran: list[str], tmp_path: Path) -> None:
    done = run("paper", *WIDE, "--name", "mine", "--yes")
    assert_one_line(done, 1, "Table 4: 'margin', seed 0: no luck")
    keys = ["table1", "fig8", "table4", "table5", "fig5", "fig7", "table3", "fig9"]
    assert ran == [f"mine-{key} on this machine" for key in keys]
    assert {path.name for path in (tmp_path / "mine").iterdir()} == set(FILES)
    assert "report: mine/report.html" in done.stdout
    result = json.loads(run("paper", *WIDE, "--quick", "--yes", "--json").stdout)
    assert {Path(file).name for file in result["files"]} == set(FILES)
    (quick,) = {Path(file).parent.name for file in result["files"]}
    assert quick.endswith("-quick")  # it doesn't replace the page of the whole paper


def test_only_the_chosen_tables_are_made_and_the_page_shows_all(run: Run, ran: list[str]) -> None:
    planned = json.loads(run("paper", *WIDE, "--table", "fig8", "--table", "fig5", "--dry-run", "--json").stdout)
    assert [table["key"] for table in planned["tables"]] == ["fig5", "fig8"]
    assert planned["seconds"] == 2 * 1800
    result = json.loads(run("paper", *WIDE, "--name", "mine", "--table", "fig5", "--yes", "--json").stdout)
    assert ran == ["mine-fig5 on this machine"]
    assert "Figure 8" in Path(result["files"][0]).read_text()  # it is not started
    assert_one_line(
        run("paper", *WIDE, "--table", "fig6"), 2, "unknown table 'fig6': did you mean 'fig9'? choose from fig5, fig7"
    )
    assert_one_line(run("paper", *WIDE, "--quick", "--table", "fig5"), 2, "--quick makes only table1 and table4: leave")


def test_a_cluster_trains_all_tables(run: Run, ran: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    class Engine(nullcontext[None]):
        check = staticmethod(lambda: None)

        def __init__(self, gpus_per_run: float | None, **options: Any) -> None:
            super().__init__()
            asked.append({"gpus_per_run": gpus_per_run, **options})

    monkeypatch.setitem(ENGINES, "slurm", Engine)  # type: ignore[arg-type]
    options = "--threads", 2, "--gpus-per-run", 1, "--cluster-option", "time=60"
    done = run("paper", *WIDE, "--name", "mine", "--quick", "--yes", "--cluster", "slurm", *options)
    assert asked == [{"gpus_per_run": 1.0, "cores": 2, "options": ["time=60"]}], done.stderr
    assert ran == ["mine-table1 on a cluster", "mine-table4 on a cluster"]


def test_quick_takes_few_tables_and_one_seed(run: Run, ran: list[str]) -> None:
    done = run("paper", *WIDE, "--quick", "--dry-run", "--json")
    planned = json.loads(done.stdout)["tables"]
    assert [(table["table"], len(table["seeds"])) for table in planned] == [("Table 1", 1), ("Table 4", 1)]
