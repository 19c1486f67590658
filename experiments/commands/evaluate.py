"""`simclr eval`: accuracies and other metrics of trained encoders."""

from __future__ import annotations

from math import isnan
from typing import TYPE_CHECKING, Annotated, Any

import typer

from experiments.commands import complete
from experiments.commands.options import (
    Device,
    Layer,
    NewestEncoder,
    On,
    Recheck,
    RunBadImage,
    RunDataDir,
    RunLabels,
    Transfer,
    Unlabelled,
)
from experiments.commands.output import Json, show
from experiments.commands.terminal import Terminal, find_encoder_or_newest, open_store
from simclr.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from experiments.runs.encoders import FoundEncoder
    from experiments.tracking.store import Store
    from simclr.data.dataset import Dataset
    from simclr.evaluate.subject import Subject
    from simclr.model import Network


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
            show_default=False,
        ),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the fine-tuned network (of the first seed), for --method distill.")
    ] = False,
    few_shot: Annotated[
        bool, typer.Option("--few-shot", help="Classify with 1, 5 and 10 labelled images per class, drawn 100 times.")
    ] = False,
    retrieval: Annotated[
        bool, typer.Option("--retrieval", help="Search for images of the same class: mean average precision.")
    ] = False,
    robustness: Annotated[
        bool, typer.Option("--robustness", help="Classify images with noise, blur and other corruptions.")
    ] = False,
    no_labels: Annotated[
        bool,
        typer.Option(
            "--no-labels",
            help="Measure contrastive accuracy, alignment, uniformity and effective rank, which need no labels.",
        ),
    ] = False,
    spectrum: Annotated[
        bool,
        typer.Option("--spectrum", help="Measure effective rank and alpha-ReQ of whole images, without labels."),
    ] = False,
    lidar: Annotated[
        bool,
        typer.Option(
            "--lidar",
            help="Measure LiDAR (the effective rank of the differences between images) from 50 views of each of 1,000 "
            "images, without labels.",
        ),
    ] = False,
    transformations: Annotated[
        bool,
        typer.Option(
            "--transformations",
            help="Measure how well features predict which transformation an image went through (paper, Table 3).",
        ),
    ] = False,
    snapshots: Annotated[
        bool, typer.Option("--snapshots", help="Evaluate each snapshot that the run kept (train.keep_every).")
    ] = False,
    on: On = "test",
    stock: Annotated[
        str | None,
        typer.Option(
            help="Also evaluate a stock encoder on the same images: a weights file, as for `simclr import`, or the "
            "name of a torchvision network, such as resnet18, whose weights are in PyTorch's cache.",
            show_default=False,
        ),
    ] = None,
    transfer: Transfer = None,
    layer: Layer = None,
    data_dir: RunDataDir = None,
    labels: RunLabels = None,
    unlabelled: Unlabelled = False,
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
            show_default=False,
            autocompletion=complete.protocol_settings,
        ),
    ] = [],  # noqa: B006 (Typer copies it)
    as_json: Json = False,
) -> None:
    """Evaluate an encoder next to its baselines.

    The encoder stays frozen, except that --finetune trains a copy of it. The baselines are chance, raw pixels, the
    untrained network, the weights of `pretrain --init` if training started from some, and another encoder with --stock.
    Without options, runs --knn and --linear, or --no-labels if the images have no labels.

    Example: simclr eval shapes-s0 --knn --linear
    """
    from analysis.text import paragraph
    from experiments.runs.encoders import open_subject
    from experiments.runs.evaluate import evaluate_encoder
    from experiments.runs.stock import stock_encoder
    from simclr.evaluate.evaluations import usual
    from simclr.evaluate.protocol import make_protocol
    from simclr.methods import METHODS

    asked = {"knn": knn, "linear": linear, "linear-sgd": linear_sgd, "finetune": finetune, "few-shot": few_shot}
    asked |= {"retrieval": retrieval, "robustness": robustness}
    asked |= {"no-labels": no_labels, "spectrum": spectrum, "lidar": lidar, "transformations": transformations}
    names = [name for name, value in asked.items() if value not in (None, False)]
    fractions = []
    if finetune is not None:
        _check_fractions(finetune)
        fractions = [f"finetune.fractions=[{finetune}]"]
    if keep and (finetune is None or "," in finetune):
        raise UserError("--keep keeps one fine-tuned network: add --finetune with one fraction, such as --finetune 0.1")
    if snapshots and (keep or stock is not None):
        raise UserError("--snapshots can't be combined with --keep or --stock: leave them out")
    own = [text for text in settings if not text.startswith("data.")]
    protocol = make_protocol([*fractions, *own], layer=layer, on=on)
    store = open_store()
    found = find_encoder_or_newest(run, store)
    with Terminal() as terminal:
        subject = open_subject(
            found,
            store,
            protocol,
            data_dir=data_dir,
            labels=labels,
            unlabelled=unlabelled,
            changes=[text for text in settings if text.startswith("data.")],
            on_bad_image=on_bad_image,
            transfer=transfer,
            device=device,
            observer=terminal,
        )
        names = names or usual(subject.data, terminal)
        if snapshots:
            result = _snapshots(found, subject, store, names, transfer)
        else:
            beside = None if stock is None else stock_encoder(stock, subject)
            report = evaluate_encoder(found, subject, store, names, transfer, beside, keep=keep)
    if snapshots:
        show(result, _describe_snapshots, as_json=as_json)
        return
    result = {
        "run": None if report.run_id is None else store.get(report.run_id).name,
        "id": report.run_id,
        "reads_labels": METHODS[subject.config.method].reads_labels,
        "data": {**_images(subject.data, protocol.on), "matched": report.matched},
        "layer": protocol.layer,
        "on": protocol.on,
        "features": protocol.features,
        "protocol": protocol.version,
        "finetune_seeds": protocol.finetune.seeds if finetune is not None else None,
        "dimensions": _dimensions(subject.model),
        "results": _results(report.table),
        "warnings": [*terminal.warnings(), *report.warnings],
    }
    show(result, _describe, as_json=as_json)
    for warning in report.warnings:
        typer.echo(paragraph(f"warning: {warning}"), err=True)


def _snapshots(
    found: FoundEncoder, subject: Subject, store: Store, names: list[str], transfer: str | None
) -> dict[str, Any]:
    """The results of each snapshot of a run, accuracies in percent, and the files that are kept with the run."""
    from analysis.tables import as_shown
    from experiments.runs.snapshots import FILE, evaluate_snapshots

    if found.run_id is None:
        raise UserError(f"--snapshots evaluates the snapshots of a run, and {found.path} is a file: name a run")
    record = store.get(found.run_id)
    table = evaluate_snapshots(record, subject, store, names, transfer)
    for column in ("value", "low", "high", "chance"):
        table[column] = [as_shown(metric, value) for metric, value in zip(table["metric"], table[column], strict=True)]
    files = [record.find_artifact(f"{FILE}{suffix}") for suffix in (".png", ".csv")]
    about = {"run": record.name, "id": record.id, "on": subject.protocol.on}
    return {**about, "snapshots": table, "files": [file for file in files if file]}


def _describe_snapshots(result: dict[str, Any]) -> str:
    """A table with a row for each epoch and a column for each metric."""
    from analysis.tables import in_percent
    from analysis.text import paragraph, text_table

    table = result["snapshots"].pivot(index="epoch", columns="metric", values="value")
    table = table[list(dict.fromkeys(result["snapshots"]["metric"]))]
    rows = [
        [f"{epoch} (before training)" if epoch == 0 else str(epoch)]
        + [_format(value, in_percent(metric)) for metric, value in row.items()]
        for epoch, row in table.iterrows()
    ]
    images = "validation" if result["on"] == "val" else "test"
    title = f"snapshots of run {result['run']} ({result['id'][:8]}), on {images} images"
    files = [f"kept: {file}" for file in result["files"]]
    return "\n".join([paragraph(title), text_table(["epoch", *table.columns], rows), *files])


def _check_fractions(text: str) -> None:
    try:
        fractions = [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--finetune '{text}': expected fractions such as 0.01,0.1") from None
    if percent := [each for each in fractions if 1 < each <= 100]:
        raise UserError(f"--finetune '{text}': expected fractions, so write {percent[0] / 100:g} for {percent[0]:g} %")


def _images(data: Dataset, on: str) -> dict[str, Any]:
    """The images that an encoder is evaluated on, and how many there are in each part."""
    from simclr.evaluate.protocol import ROLES

    counts = {role: len(data.parts[part]) for part, role in ROLES[on].items() if len(data.parts[part])}
    return {"name": data.title, "digest": data.digest, "images": counts or {"pretrain": len(data.parts["pretrain"])}}


def _dimensions(model: Network) -> dict[str, int]:
    """The dimensions of h, and of z if there is a head."""
    return {"h": model.features, **({"z": model.z_width} if len(model.head) else {})}


def _results(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table of results, with accuracies in percent."""
    from analysis.tables import as_shown

    texts = ("metric", "protocol")
    return [
        {str(key): value if key in texts else as_shown(row["metric"], value) for key, value in row.items()}
        for row in table.to_dict("records")
    ]


def _describe(result: dict[str, Any]) -> str:
    """What was evaluated, and a table of the results."""
    from analysis.label_free import explain
    from analysis.tables import is_choice
    from analysis.text import paragraph, text_table

    data = result["data"]
    images = ", ".join(
        f"{count:,} {'without labels' if part == 'pretrain' else part}" for part, count in data["images"].items()
    )
    known = [key for key in ("start", "stock") if not all(isnan(row[key]) for row in result["results"])]
    columns = ["untrained", *known, "pixels", "chance"]
    rows = []
    for row in (row for row in result["results"] if not is_choice(row["metric"])):  # --json has all
        interval = "" if isnan(row["low"]) else f"{row['low']:.1f} to {row['high']:.1f}"
        others = [_format_number(row, column) for column in columns]
        rows.append([row["metric"], _format_number(row, "trained"), interval, *others, row["protocol"]])
    what = "the file" if result["run"] is None else f"run {result['run']} ({result['id'][:8]})"
    what += ", trained on labels," * result["reads_labels"]
    scaled = "" if result["features"] == "raw" else f", {result['features']} features"
    title = (
        f"{what} on {'validation images of ' * (result['on'] == 'val')}{data['name']} (digest "
        f"{data['digest'][:8]}; images: {images}), layer {result['layer']}{scaled}"
    )
    texts = [*explain(result["results"], result["dimensions"], data["matched"]), title, _legend(result)]
    header = ["", "trained", "95% interval", *columns, "protocol"]
    return "\n".join([*map(paragraph, texts), text_table(header, rows)])


def _legend(result: dict[str, Any]) -> str:
    """What the names in the table mean, where they don't say it."""
    from analysis.findings import count

    metrics = [row["metric"] for row in result["results"]]
    parts = ["Compare values only if they have the same protocol: the same images, split, layer and settings."]
    images = result["data"]["images"]
    if result["on"] == "test" and any(metric.startswith(("knn", "linear_top")) for metric in metrics):
        labels = images.get("train", 0) + images.get("val", 0)
        parts.append(f"kNN and the linear classifier use the labels of the {labels:,} train and val images.")
    if any(metric.startswith("finetune") for metric in metrics):
        parts.append(f"Fine-tuning is a mean over {count(result['finetune_seeds'], 'seed')}.")
    if "contrastive_own_top1" in metrics:
        parts.append("contrastive_own and softmax_entropy use the similarity and temperature of the training loss.")
    if any(not isnan(row["stock"]) for row in result["results"]):
        parts.append("stock is the encoder that --stock names, on the same images (--json has its intervals).")
    if any(not isnan(row["pixels"]) for row in result["results"]):
        parts.append("pixels is kNN on the raw pixels.")
    return " ".join(parts)


def _format_number(row: dict[str, Any], column: str) -> str:
    from analysis.tables import in_percent

    return _format(row[column], in_percent(row["metric"]))


def _format(value: float, percent: bool) -> str:
    return "" if isnan(value) else f"{value:.2f}%" if percent else f"{value:.4g}"
