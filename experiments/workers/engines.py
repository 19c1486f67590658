"""The clusters that a study or a search can use, by the name that --cluster gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from experiments.workers.pool import HERE, Pool
from experiments.workers.ray import Ray
from experiments.workers.remote import Engine, Remote
from experiments.workers.slurm import Slurm
from simclr.errors import UserError

# Each is made with the GPUs that a run takes, and some with the options of the cluster's own programs.
ENGINES: dict[str, Callable[..., Engine]] = {"ray": Ray, "slurm": Slurm}
WITH_OPTIONS = ("slurm",)


@contextmanager
def open_pool(cluster: str | None, gpus_per_run: float | None = None, options: Sequence[str] = ()) -> Iterator[Pool]:
    """The pool that does jobs: this process, or a cluster. Raises UserError if the cluster can't be used."""
    if options and cluster not in WITH_OPTIONS:
        raise UserError(f"--cluster-option is for --cluster {' and '.join(WITH_OPTIONS)}: leave it out")
    if cluster is None:
        yield HERE
        return
    with ENGINES[cluster](gpus_per_run, *([options] if options else [])) as engine:
        yield Remote(engine)
