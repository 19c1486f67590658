"""`simclr embed`, `export` and `import`: encoders in and out of files."""

from __future__ import annotations

import os
from functools import reduce
from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.commands import complete
from experiments.commands.names import names_in
from experiments.commands.options import (
    DATASETS,
    BadImage,
    DataDir,
    Device,
    EncoderName,
    ImageSettings,
    Labels,
    NewestEncoder,
    Recheck,
    RunBadImage,
    Unlabelled,
    absolute,
    check_new_name,
    check_out,
)
from experiments.commands.output import Json, show
from experiments.commands.terminal import Terminal, find_encoder_or_newest, open_store
from simclr.errors import printable

EXPORTS = names_in("simclr.weights.export.EXPORTS")
LAYOUTS = names_in("simclr.weights.foreign.LAYOUTS")
NORMALIZATIONS = names_in("simclr.data.dataset.NORMALIZATIONS")
STEMS = names_in("simclr.model.STEMS")
WRITERS = names_in("simclr.weights.features.WRITERS")


def embed(  # over 60 lines, because of its signature
    run: EncoderName,
    folder: Annotated[
        Path,
        typer.Argument(help="Folder of images, with its subfolders, or any other form that --data-dir accepts."),
    ],
    out: Annotated[Path, typer.Option(callback=check_out, help=f"File to write ({', '.join(WRITERS)}).")] = Path(
        "features.parquet"
    ),
    batch_size: Annotated[
        int, typer.Option(metavar="N", min=1, max=2**20, help="Number of images to process at a time.")
    ] = 256,
    on_bad_image: RunBadImage = None,
    device: Device = None,
    settings: ImageSettings = [],  # noqa: B006 (Typer copies it)
    as_json: Json = False,
) -> None:
    """Write the features of images to a file.

    Writes one row per image, with the encoder's features (h) and the path of the image file: relative to FOLDER in a
    CSV file, absolute in other formats.

    Example: simclr embed shapes-s0 photos --out features.parquet
    """
    from experiments.runs.encoders import find_encoder
    from experiments.tracking.store import home
    from simclr import device as devices
    from simclr.config import make
    from simclr.data.dataset import most_skipped
    from simclr.data.formats import OPTIONS, list_images
    from simclr.evaluate.subject import model_fingerprint
    from simclr.settings import merge, nested, parse_setting
    from simclr.weights.encoder import Encoder, embed_files
    from simclr.weights.features import write_features

    data = make(
        reduce(merge, (nested(*parse_setting(text)) for text in settings), {"data": {"dataset": "folder"}})
    ).data
    options = {name: getattr(data, name) for name in OPTIONS}
    found = find_encoder(run, open_store())
    encoder = Encoder(found.config, found.weights).to(devices.resolve(device or found.config.device))
    most = most_skipped(on_bad_image or found.config.data.on_bad_image)
    skipped: list[str] | None = [] if most else None
    remedy = f"lower --batch-size (now {batch_size})"
    with Terminal() as terminal, devices.memory_errors(f"{remedy}, or use --device cpu", remedy):
        files, notes = list_images(absolute(folder) or folder, home(), terminal, **options)
        for note in notes:
            terminal.note(note)
        features = embed_files(encoder, files, batch_size, terminal, skipped, most)
        if out.suffix == ".csv" and folder.is_dir():  # so that it can be joined with other tables about the folder
            root = absolute(folder) or folder
            features = (([os.path.relpath(name, root) for name in names], x) for names, x in features)
        write_features(out, features, model_fingerprint(encoder.model))
    for file in skipped or []:
        typer.echo(f"skipped: {printable(file)}", err=True)
    count = len(files.names) - len(skipped or [])
    show(
        {"files": [out], "images": count, "features": encoder.features, "skipped": skipped or []},
        lambda _: printable(f"wrote {out}: {count:,} image{'s' * (count != 1)}, {encoder.features} features each"),
        as_json=as_json,
    )


def export(
    run: NewestEncoder = None,
    form: Annotated[
        str,
        typer.Option(
            "--format", help=f"Format of the file: {', '.join(EXPORTS)}.", autocompletion=complete.of(EXPORTS)
        ),
    ] = "safetensors",
    out: Annotated[
        Path, typer.Option(callback=check_out, help="File to write, or the folder to write it to.")
    ] = Path(),
    as_json: Json = False,
) -> None:
    """Export an encoder for other programs.

    Also writes a model card that says how to load the file and what is known about the encoder. To check the file,
    loads it as the card describes and compares the features.

    Example: simclr export shapes-s0 --format onnx --out exported
    """
    from experiments.runs.exchange import export_run

    store = open_store()
    parity = export_run(find_encoder_or_newest(run, store), store, out, form)
    result = {
        "files": [parity.file, parity.file.with_suffix(".md")],
        "difference": parity.difference,
        "tolerance": parity.tolerance,
    }
    show(result, _describe_export, as_json=as_json)


def _describe_export(result: dict[str, Any]) -> str:
    from analysis.text import paragraph

    off = f", to within {result['difference']:.0e} of the largest one" * (result["difference"] > 0)
    checked = f"checked: the file, loaded as the card says, gives the same features{off}"
    file, card = result["files"]
    wrote = [printable(f"wrote {file}"), printable(f"wrote {card}, which says how to load it")]
    return "\n".join([*wrote, paragraph(checked)])


def import_(  # over 60 lines, because of its signature
    file: Annotated[
        Path,
        typer.Argument(help="Weights file of another program (.pth, .ckpt, .safetensors, ...)."),
    ],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help=f"Program that wrote the file: auto, {', '.join(LAYOUTS)}.",
            autocompletion=complete.of(["auto", *LAYOUTS]),
        ),
    ] = "auto",
    dataset: Annotated[
        str,
        typer.Option(
            help=f"Data set to evaluate the encoder on: {', '.join(DATASETS)}.", autocompletion=complete.of(DATASETS)
        ),
    ] = "cifar10",
    data_dir: DataDir = None,
    labels: Labels = None,
    unlabelled: Unlabelled = False,
    on_bad_image: BadImage = None,
    recheck: Recheck = False,  # noqa: ARG001 (its callback does the work)
    side: Annotated[
        int | None, typer.Option(help="Side of the images in pixels.", show_default="that of the data set")
    ] = None,
    normalize: Annotated[
        str,
        typer.Option(
            help=f"How images were normalised when the encoder was trained: {', '.join(NORMALIZATIONS)}.",
            autocompletion=complete.of(NORMALIZATIONS),
        ),
    ] = "imagenet",
    backbone: Annotated[
        str | None, typer.Option(help="Network of the encoder.", show_default="detected for ResNets")
    ] = None,
    stem: Annotated[
        str | None,
        typer.Option(
            help=f"First layers of a ResNet: {', '.join(STEMS)}.",
            show_default="detected from the weights",
            autocompletion=complete.of(STEMS),
        ),
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option(
            help="Prefix of the names of the encoder's weights, if the file contains several encoders.",
            show_default="detected if there is only one",
        ),
    ] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Accept a file with missing or unknown entries.")] = False,
    name: Annotated[
        str | None, typer.Option(callback=check_new_name, help="Name of the new run.", show_default="that of the file")
    ] = None,
    as_json: Json = False,
) -> None:
    """Import an encoder that another program trained.

    The encoder becomes a run, which you can evaluate like any other. No code in the file is run.

    Example: simclr import theirs.ckpt --dataset cifar10 --name theirs
    """
    from experiments.runs.exchange import import_run
    from experiments.tracking.store import Store, home
    from simclr.config import make

    places = {"dir": data_dir and str(data_dir), "labels": labels and str(labels)}
    data = {"dataset": dataset, **places, "side": side, "normalize": normalize}
    data |= {"unlabelled": unlabelled, "on_bad_image": on_bad_image or "error"}
    images = make({"data": data}).data
    with Terminal() as terminal:
        record, imported = import_run(
            file,
            Store(home()),
            data=images,
            name=name,
            layout=form,
            backbone=backbone,
            stem=stem,
            prefix=prefix,
            partial=partial,
            observer=terminal,
        )
    entries = {what: getattr(imported, what) for what in ("left_out", "missing", "unmatched")}
    run = {"run": record.name, "id": record.id, "model": imported.model, "normalize": normalize, **entries}
    show(run | {"next": [f"simclr eval {record.handle}"]}, _describe_import, as_json=as_json)


def _describe_import(run: dict[str, Any]) -> str:
    from simclr.errors import first_few

    model = run["model"]
    lines = [
        f"run {run['run']} ({run['id'][:8]}): {model['backbone']}, stem {model['stem']}, width {model['width']:g}",
        f"images are normalised with '{run['normalize']}': if the encoder was trained with another normalisation, add "
        "--normalize",
    ]
    for what in ("left_out", "missing", "unmatched"):
        if keys := run[what]:
            lines.append(f"{what.replace('_', ' ')}: {printable(first_few(keys))}")
    return "\n".join([*lines, f"next: {run['next'][0]}"])
