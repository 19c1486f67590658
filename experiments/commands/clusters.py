"""The options of commands whose runs can be trained on a cluster."""

from __future__ import annotations

from typing import Annotated

import typer

from experiments.commands.names import names_in
from experiments.commands.options import check_number, choice

CLUSTERS = names_in("experiments.workers.engines.ENGINES")
Cluster = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        help=f"Train several runs at the same time on a cluster: {', '.join(CLUSTERS)} (docs/guides/cluster-ray.md, "
        "docs/guides/slurm.md).",
        show_default="on this machine, one after another",
        **choice("--cluster", *CLUSTERS),
    ),
]
GpusPerRun = Annotated[
    float | None,
    typer.Option(
        metavar="N",
        min=0,
        max=1,  # a run uses one
        callback=check_number,
        help="GPUs for each run with --cluster. With 0.5, two runs share a GPU on Ray.",
        show_default="1, or 0 if there are none",
    ),
]
ClusterOptions = Annotated[
    list[str],
    typer.Option(
        "--cluster-option",
        metavar="KEY=VALUE",
        help="Option of sbatch for --cluster slurm, without its dashes, such as time=4:00:00 or partition=gpu, or "
        "jobs=N for at most N jobs at the same time. Can be repeated.",
        show_default=False,
    ),
]
