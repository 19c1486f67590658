"""`simclr eval` and `simclr compare`: accuracies and other figures of trained encoders."""

from __future__ import annotations

from math import isnan
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.commands.options import (
    Device,
    Format,
    Layer,
    NewestEncoder,
    Recheck,
    RunBadImage,
    RunDataDir,
    RunLabels,
    RunNames,
    Transfer,
)
from experiments.commands.terminal import Terminal, find_encoder_or_newest
from simclr.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from simclr.data.dataset import Dataset


def evaluate(  # over 60 lines, because of its signature
    run: NewestEncoder = None,
    knn: Annotated[bool, typer.Option("--knn", help="Classify by weighted k nearest neighbours.")] = False,
    linear: Annotated[
        bool, typer.Option("--linear", help="Train a logistic regression on the frozen features.")
    ] = False,
    linear_sgd: Annotated[
        bool,
        typer.Option("--linear-sgd", help="Train a linear classifier with SGD on random crops, as in the paper."),
    ] = False,
    finetune: Annotated[
        str | None,
        typer.Option(
            metavar="FRACTIONS",
            help="Train the whole network with these fractions of the labels, such as 0.01,0.1,1.0.",
            show_default="not done",
        ),
    ] = None,
    no_labels: Annotated[
        bool,
        typer.Option(
            "--no-labels",
            help="Measure contrastive accuracy, alignment, uniformity and effective rank, which need no labels.",
        ),
    ] = False,
    transfer: Transfer = None,
    layer: Layer = None,
    data_dir: RunDataDir = None,
    labels: RunLabels = None,
    on_bad_image: RunBadImage = None,
    recheck: Recheck = False,  # noqa: ARG001 (its callback does the work)
    device: Device = None,
    settings: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="SETTING=VALUE",
            help="Setting of the evaluation protocol, such as knn.k=[20,200], or of the images of --transfer, such as "
            "data.label_column=species. Can be repeated.",
            show_default="none",
        ),
    ] = [],  # noqa: B006 (Typer copies it)
) -> None:
    """Evaluate an encoder next to its baselines.

    The encoder stays frozen, except that --finetune trains a copy of it. The baselines are chance, raw pixels and the
    untrained network. Without options, evaluates by --knn and --linear.

    Example: simclr eval shapes-s0 --knn --linear
    """
    from experiments.runs.encoders import open_subject
    from experiments.runs.evaluate import evaluate_encoder
    from experiments.tracking.store import Store, home
    from simclr.evaluate.protocol import make_protocol

    asked = {"knn": knn, "linear": linear, "linear-sgd": linear_sgd, "finetune": finetune, "no-labels": no_labels}
    names = [name for name, value in asked.items() if value not in (None, False)] or ["knn", "linear"]
    fractions = []
    if finetune is not None:
        _check_fractions(finetune)
        fractions = [f"finetune.fractions=[{finetune}]"]
    own = [text for text in settings if not text.startswith("data.")]
    protocol = make_protocol([*fractions, *own], layer=layer)
    store = Store(home())
    found = find_encoder_or_newest(run, store)
    with Terminal() as terminal:
        subject = open_subject(
            found,
            store,
            protocol,
            data_dir=data_dir,
            labels=labels,
            changes=[text for text in settings if text.startswith("data.")],
            on_bad_image=on_bad_image,
            transfer=transfer,
            device=device,
            observer=terminal,
        )
        report = evaluate_encoder(found, subject, store, names, transfer)
    images = _describe_images(subject.data)
    evaluated = "the file" if report.run_id is None else f"run {report.run_id[:8]}"
    typer.echo(f"{evaluated} on {images}, layer {protocol.layer}, protocol {protocol.version}")
    typer.echo(_format_results(report.table))
    for warning in report.warnings:
        typer.echo(f"warning: {warning}", err=True)


def _check_fractions(text: str) -> None:
    try:
        [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--finetune '{text}': expected fractions such as 0.01,0.1") from None


def _describe_images(data: Dataset) -> str:
    labelled = [f"{len(data.parts[part])} {part}" for part in ("train", "val", "test") if len(data.parts[part])]
    images = ", ".join(labelled) or f"{len(data.parts['pretrain'])} without labels"
    return f"{data.name} (digest {data.digest[:8]}; images: {images})"


def _format_results(table: pd.DataFrame) -> str:
    """Accuracies in percent with their 95 % intervals, and other figures as they are. Empty columns are left out."""
    from tabulate import tabulate

    from analysis.tables import is_accuracy

    rows = []
    for row in table.to_dict("records"):
        percent = is_accuracy(row["metric"]) or row["metric"].endswith("_std")
        interval = "" if isnan(row["low"]) else f"{row['low']:.2%} to {row['high']:.2%}"
        others = [_format_number(row[column], percent) for column in ("untrained", "pixels", "chance")]
        rows.append([row["metric"], _format_number(row["trained"], percent), interval, *others, row["protocol"]])
    headers = ["", "trained", "95 % interval", "untrained", "pixels (kNN)", "chance", "protocol"]
    columns = [(header, cells) for header, cells in zip(headers, zip(*rows, strict=True), strict=True) if any(cells)]
    alignment = ["left", *["right"] * (len(columns) - 1)]
    return str(tabulate(dict(columns), headers="keys", disable_numparse=True, colalign=alignment))


def _format_number(value: float, percent: bool) -> str:
    return "" if isnan(value) else f"{value:.2%}" if percent else f"{value:.4g}"


def compare(runs: RunNames, form: Format = "terminal") -> None:
    """Compare runs that have been evaluated.

    Shows the settings that differ, the accuracies with their intervals, and McNemar's test of each pair of runs.

    Example: simclr compare shapes-s0 shapes-s1 --format markdown
    """
    from analysis.tables import FORMATS
    from experiments.runs.compare import compare as compare_runs
    from experiments.tracking.store import Store, home

    result = compare_runs(runs, Store(home()))
    tested = len(result.tests) > 0
    typer.echo(FORMATS[form](result.table, [] if tested else result.notes))
    if tested:
        typer.echo(FORMATS[form](result.tests, result.notes))
