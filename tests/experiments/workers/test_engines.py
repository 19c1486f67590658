"""Options of a cluster that don't fit together."""

from __future__ import annotations

import sys

import pytest

from experiments.workers.engines import check_cluster
from simclr.errors import UserError
from tests.experiments.commands.helpers import assert_one_line, invoke


def test_options_that_would_do_nothing_or_slow_others_down_are_refused() -> None:
    with pytest.raises(UserError, match=r"--gpus-per-run says .*: add --cluster, or leave it out"):
        check_cluster(None, 0.5, None)
    with pytest.raises(UserError, match=r"--threads auto .*: give a number"):
        check_cluster("ray", None, "auto")
    check_cluster(None, None, "auto")


@pytest.mark.parametrize("command", [["ablate", "--drop", "flip"], ["search"], ["paper"]])
def test_options_are_for_clusters_that_have_some(command: list[str]) -> None:
    result = invoke(*command, "--preset", "shapes", "--cluster", "ray", "--cluster-option", "time=60")
    assert_one_line(result, 2, "--cluster-option is for --cluster slurm: leave it out")


@pytest.mark.parametrize("command", [["ablate", "--drop", "flip"], ["search"], ["paper"]])
def test_a_cluster_that_is_missing_is_named_before_anything_is_timed(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = invoke(*command, "--preset", "shapes", "--cluster", "ray", "--dry-run")
    assert_one_line(result, 2, "--cluster ray needs Ray")


def test_a_run_takes_at_most_one_gpu() -> None:
    result = invoke("ablate", "--preset", "shapes", "--drop", "flip", "--cluster", "ray", "--gpus-per-run", "1.5")
    assert_one_line(result, 2, "--gpus-per-run")
