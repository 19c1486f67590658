"""The clusters that a study or a search can use, by the name that --cluster gives them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from experiments.workers.pool import HERE, Pool
from experiments.workers.ray import Ray
from experiments.workers.remote import Remote
from experiments.workers.slurm import Slurm
from simclr.errors import UserError

# Each is made with the GPUs and the cores that a run takes, and some with the options of the cluster's own programs.
ENGINES: dict[str, type[Ray | Slurm]] = {"ray": Ray, "slurm": Slurm}
WITH_OPTIONS = ("slurm",)


def check_cluster(
    cluster: str | None, gpus_per_run: float | None, threads: int | str | None, options: Sequence[str] = ()
) -> None:
    """Raise UserError for options that don't fit together, or for a cluster that isn't there, before anything is timed.

    `threads` are those of a run.
    """
    if options and cluster not in WITH_OPTIONS:
        raise UserError(f"--cluster-option is for --cluster {' and '.join(WITH_OPTIONS)}: leave it out")
    if cluster is None and gpus_per_run is not None:
        raise UserError("--gpus-per-run says how many GPUs a run of --cluster takes: add --cluster, or leave it out")
    if cluster is not None and threads == "auto":
        raise UserError(
            "--threads auto can't time a run while others of --cluster are running: give a number, or leave it out"
        )
    if cluster is not None:
        ENGINES[cluster].check()


@contextmanager
def open_pool(
    cluster: str | None,
    gpus_per_run: float | None = None,
    threads: int | str | None = None,
    options: Sequence[str] = (),
) -> Iterator[Pool]:
    """The pool that does jobs: this process, or a cluster. Raises UserError if the cluster can't be used.

    The options have passed `check_cluster`. `threads` are those of a run, which takes as many cores of a cluster.
    """
    if cluster is None:
        yield HERE
        return
    cores = threads if isinstance(threads, int) else 1
    with ENGINES[cluster](gpus_per_run, cores=cores, **({"options": options} if options else {})) as engine:
        yield Remote(engine)
