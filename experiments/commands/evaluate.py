"""`simclr eval` and `simclr compare`: accuracies and other figures of trained encoders."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from math import isnan
from typing import Annotated, Any

import pandas as pd
import typer
from tabulate import tabulate

from analysis.tables import FORMATS, is_accuracy
from experiments.commands.options import (
    Device,
    Format,
    Layer,
    NewestEncoder,
    RunBadImage,
    RunDataDir,
    RunNames,
    Transfer,
)
from experiments.commands.terminal import Terminal, find_encoder_or_newest
from experiments.runs.compare import compare as compare_runs
from experiments.runs.encoders import open_subject
from experiments.runs.evaluate import evaluate_encoder
from experiments.tracking.store import Store, home
from simclr.data.dataset import Dataset
from simclr.evaluate.evaluations import EVALUATIONS
from simclr.evaluate.protocol import make_protocol

DEFAULT = ["knn", "linear"]  # the evaluations that run if none is asked for


def _evaluation_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each of EVALUATIONS, after its first argument. It gets them as `**asked`."""
    signature = inspect.signature(command, eval_str=True)
    first, *others = (each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD)
    options = []
    for name, kind in EVALUATIONS.items():
        annotation: Any = Annotated[bool, typer.Option(f"--{name}", help=kind.option_help)]
        default: Any = False
        if kind.option_setting is not None:
            metavar = kind.option_setting.upper()
            option = typer.Option(f"--{name}", metavar=metavar, help=kind.option_help, show_default="not done")
            annotation, default = Annotated[str | None, option], None
        options.append(first.replace(name=name.replace("-", "_"), default=default, annotation=annotation))
    vars(command)["__signature__"] = signature.replace(parameters=[first, *options, *others])
    return command


@_evaluation_options
def evaluate(
    run: NewestEncoder = None,
    transfer: Transfer = None,
    layer: Layer = None,
    data_dir: RunDataDir = None,
    on_bad_image: RunBadImage = None,
    device: Device = None,
    settings: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="SETTING=VALUE",
            help="Setting of the evaluation protocol, such as knn.k=[20,200]. Can be repeated.",
            show_default="none",
        ),
    ] = [],  # noqa: B006 (Typer copies it)
    **asked: Any,
) -> None:
    """Evaluate a frozen encoder next to its baselines.

    The baselines are chance, raw pixels and the untrained network. Without options, evaluates by --knn and --linear.

    Example: simclr eval shapes-s0 --knn --linear
    """
    chosen = {name: value for name in EVALUATIONS if (value := asked[name.replace("-", "_")]) not in (None, False)}
    values = [
        f"{EVALUATIONS[name].section_name}.{EVALUATIONS[name].option_setting}=[{value}]"
        for name, value in chosen.items()
        if value is not True
    ]
    protocol = make_protocol([*values, *settings], layer=layer)
    store = Store(home())
    found = find_encoder_or_newest(run, store)
    with Terminal() as terminal:
        subject = open_subject(
            found,
            store,
            protocol,
            data_dir=data_dir,
            on_bad_image=on_bad_image,
            transfer=transfer,
            device=device,
            observer=terminal,
        )
        report = evaluate_encoder(found, subject, store, list(chosen) or DEFAULT, transfer)
    images = _describe_images(subject.data)
    typer.echo(f"run {report.run_id[:8]} on {images}, layer {protocol.layer}, protocol {protocol.version}")
    typer.echo(_format_results(report.table))
    for warning in report.warnings:
        typer.echo(f"warning: {warning}", err=True)


def _describe_images(data: Dataset) -> str:
    labelled = [f"{len(data.parts[part])} {part}" for part in ("train", "val", "test") if len(data.parts[part])]
    images = ", ".join(labelled) or f"{len(data.parts['pretrain'])} without labels"
    return f"{data.name} (digest {data.digest[:8]}; images: {images})"


def _format_results(table: pd.DataFrame) -> str:
    """Accuracies in percent with their 95 % intervals, and other figures as they are. Empty columns are left out."""
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
    result = compare_runs(runs, Store(home()))
    tested = len(result.tests) > 0
    typer.echo(FORMATS[form](result.table, [] if tested else result.notes))
    if tested:
        typer.echo(FORMATS[form](result.tests, result.notes))
