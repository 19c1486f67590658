"""How often the test set of a data set was used: each use makes later choices depend on it a little more."""

from __future__ import annotations

from analysis.findings import count
from analysis.tables import is_classification
from experiments.tracking.store import Record, Store
from simclr.data.dataset import digest_of

TEST_TAG = "test/"  # an evaluation on test has a tag of this and its protocol, whose value is the digest of the images


def describe_uses(store: Store, digest: str) -> str:
    """A sentence that says how often the test set of the images with this digest was used. See `count_uses`."""
    evaluations, runs = count_uses(store, digest)
    if not evaluations:
        return "The test set of this data has not been used yet."
    return f"The test set of this data has been used for {count(evaluations, 'evaluation')} of {count(runs, 'run')}."


def count_uses(store: Store, digest: str) -> tuple[int, int]:
    """How many evaluations of recorded runs used the test set of these images, and of how many runs.

    An evaluation counts once for each run and protocol, and one of snapshots for each of them. Evaluations on
    validation images, and those that use no test images, don't count. Deleted runs count until `mlflow gc`.
    """
    uses = {(run.id, protocol) for run in store.records_with_deleted() for protocol in _protocols(run, digest)}
    return len(uses), len({run for run, _ in uses})


def _protocols(run: Record, digest: str) -> set[str]:
    """The protocols under which a run was evaluated on a test set. In earlier versions they follow from its figures."""
    if "copied_from" in run.tags:  # the original counts
        return set()
    tags = run.tags.items()
    tagged = {key.removeprefix(TEST_TAG) for key, value in tags if key.startswith(TEST_TAG) and value == digest}
    if digest_of(run.tags.get("data_digest", "")) != digest:
        return tagged
    return tagged | {protocol for metric, protocol in run.protocols.items() if _is_on_own_test_set(metric)}


def _is_on_own_test_set(metric: str) -> bool:
    """Whether a metric was measured on the test set of the run's own data: its name may have a layer, and no other."""
    *places, _ = metric.split("/")
    return is_classification(metric) and all(place == "z" or place.startswith("head.") for place in places)
