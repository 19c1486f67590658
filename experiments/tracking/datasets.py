"""What MLflow keeps of the images that a run is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mlflow.entities import Dataset, DatasetInput, Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from experiments.tracking.faults import is_duplicate

DATASET = ("name", "digest", "source_type", "source", "schema", "profile")  # the arguments of MLflow's Dataset


def datasets_of(run: Run) -> list[dict[str, str]]:
    """The arguments of MLflow's Dataset, for each data set of a run."""
    given = run.inputs.dataset_inputs if run.inputs is not None else []
    return [{key: getattr(each.dataset, key) for key in DATASET} for each in given]


def log_datasets(client: MlflowClient, run_id: str, datasets: Sequence[Mapping[str, str]]) -> None:
    """Record the data sets of a run, as `datasets_of` returns them.

    When two processes add the same new images at once, MLflow lets both insert them, and the database refuses the
    second one. A second attempt finds what the other process has inserted.
    """
    inputs = [DatasetInput(Dataset(**each)) for each in datasets]
    try:
        client.log_inputs(run_id, inputs)
    except MlflowException as error:
        if not is_duplicate(error):
            raise
        client.log_inputs(run_id, inputs)
