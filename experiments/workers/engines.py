"""The clusters that a study or a search can use, by the name that --cluster gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from experiments.workers.pool import HERE, Pool
from experiments.workers.ray import Ray
from experiments.workers.remote import Engine, Remote

ENGINES: dict[str, Callable[[float | None], Engine]] = {"ray": Ray}  # each is made with the GPUs that a run takes


@contextmanager
def open_pool(cluster: str | None, gpus_per_run: float | None = None) -> Iterator[Pool]:
    """The pool that does jobs: this process, or a cluster. Raises UserError if the cluster can't be used."""
    if cluster is None:
        yield HERE
        return
    with ENGINES[cluster](gpus_per_run) as engine:
        yield Remote(engine)
