"""How often a test set was used, counted from the records of runs."""

from __future__ import annotations

from experiments.runs.use_of_test_set import describe_uses
from experiments.tracking.deleting import delete, find_deletable
from experiments.tracking.store import Store
from experiments.tracking.writing import copy_run, start_run
from tests.experiments.studies.helpers import write_previous_study

DIGITS = "1e0fa6549f1a87a7b5920ccb288ea4d5"


def test_figures_of_earlier_versions_are_counted_once_for_each_run_and_protocol(store: Store) -> None:
    assert describe_uses(store, DIGITS) == "The test set of this data has not been used yet."
    study = write_previous_study(store)
    used = "The test set of this data has been used for 4 evaluations of 2 runs."  # linear and kNN of two runs, of
    assert describe_uses(store, DIGITS) == used  # which one was also copied into the study
    run = store.find("elsewhere-s0")
    copy_run(store, run, "cell", {"cell": "again"}, parent=study.id)
    tracker = start_run(store, "other", "pretrain", {}, {"data_digest": DIGITS})
    tracker.tag_protocols({"val/linear_top1": "3-a", "contrastive_h_top1": "3-b", "svhn/linear_top1": "3-c"})
    tracker.finish("FINISHED")
    assert describe_uses(store, DIGITS) == used
    tracker = start_run(store, "layer", "pretrain", {}, {"data_digest": f"{DIGITS}-0123"})
    tracker.tag_protocols({"z/knn_top1": "3-d"})
    tracker.finish("FINISHED")
    assert describe_uses(store, DIGITS) == "The test set of this data has been used for 5 evaluations of 3 runs."
    delete(find_deletable(["layer"], store), store)
    assert describe_uses(store, DIGITS) == "The test set of this data has been used for 5 evaluations of 3 runs."
    assert describe_uses(store, "another") == "The test set of this data has not been used yet."
