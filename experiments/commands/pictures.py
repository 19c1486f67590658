"""`simclr views`, `plot`, `tsne` and `neighbours`: pictures."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.commands import complete
from experiments.commands.names import names_in
from experiments.commands.options import (
    FROM_PRESET,
    BadImage,
    ConfigFile,
    DataDir,
    DatasetName,
    Device,
    Drop,
    EncoderName,
    ImageSettings,
    Labels,
    Layer,
    NewestEncoder,
    PictureFile,
    PictureFiles,
    Preset,
    Recheck,
    RunBadImage,
    RunDataDir,
    RunLabels,
    RunNames,
    SearchFile,
    Settings,
    Transfer,
    Unlabelled,
    check_number,
)
from experiments.commands.output import Json, describe_files, show
from experiments.commands.terminal import Terminal, find_encoder_or_newest, offer_unlabelled, open_store
from simclr.errors import UserError, printable

METRICS = names_in("experiments.runs.compare.SHORT_NAMES")


def views(
    out: PictureFile = Path("views.png"),
    preset: Preset = None,
    config: ConfigFile = None,
    dataset: DatasetName = None,
    data_dir: DataDir = None,
    labels: Labels = None,
    on_bad_image: BadImage = None,
    recheck: Recheck = False,  # noqa: ARG001 (its callback does the work)
    unlabelled: Unlabelled = False,
    drop: Drop = [],  # noqa: B006 (Typer copies it)
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of the augmentations. The images stay the same.", show_default=FROM_PRESET),
    ] = None,
    settings: Settings = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Draw the augmented views that training uses.

    The picture shows some images, the views of each, and the effect of each augmentation alone.

    Example: simclr views --preset cifar10 --drop grayscale --out views.png
    """
    from experiments.configs.resolve import resolve_timed
    from experiments.runs.view_grid import draw_view_grid
    from experiments.tracking.store import home
    from simclr.data.dataset import open_dataset

    chosen, _ = resolve_timed(
        preset,
        config,
        settings,
        drop,
        dataset=dataset,
        data_dir=data_dir,
        labels=labels,
        on_bad_image=on_bad_image,
        unlabelled=unlabelled or None,
        seed=seed,
    )
    with Terminal() as terminal:
        data = open_dataset(chosen.data, home(), terminal)
        offer_unlabelled(data, terminal)
        draw_view_grid(chosen, data, out)
    show({"files": [out]}, describe_files, as_json=as_json)


def plot(
    metric: Annotated[
        str,
        typer.Argument(
            help=f"Metric to draw: {', '.join(METRICS)}, or any logged metric.", autocompletion=complete.of(METRICS)
        ),
    ],
    runs: RunNames = [],  # noqa: B006 (Typer copies it)
    out: PictureFiles = Path("curves"),
    smooth: Annotated[
        int,
        typer.Option(metavar="N", min=0, max=10**6, help="Number of points in the running mean. 0: no smoothing."),
    ] = 0,
    as_json: Json = False,
) -> None:
    """Draw the training curves of runs in one figure.

    Writes the figure as .png and .svg, and its points as .csv.

    Example: simclr plot loss shapes-s0 shapes-s1 --smooth 5
    """
    from experiments.runs.compare import plot_metric

    if not runs:
        words = (metric, "RUN") if metric in METRICS or "/" in metric else ("loss", metric)
        raise UserError(f"the metric comes first, and then the runs: simclr plot {shlex.join(words)}")
    if metric not in METRICS and (given := [run for run in runs if run in METRICS]) and "/" not in metric:
        raise UserError(f"the metric comes first: simclr plot {given[0]} {shlex.quote(metric)}")
    show(plot_metric(metric, runs, open_store(), out, smooth), describe_files, as_json=as_json)


def tsne(  # over 60 lines, because of its signature
    run: NewestEncoder = None,
    out: PictureFiles = Path("tsne"),
    part: Annotated[
        str | None,
        typer.Option(
            help="Part of the data set to draw: train, val, test, or pretrain (all images used for pre-training, with "
            "or without labels).",
            show_default="test, or pretrain if there are no labels",
            autocompletion=complete.of(["train", "val", "test", "pretrain"]),
        ),
    ] = None,
    images: Annotated[
        int, typer.Option(metavar="N", min=4, max=10**6, help="Largest number of images to draw.")
    ] = 5000,
    thumbnails: Annotated[bool, typer.Option("--thumbnails", help="Draw some of the images on the map.")] = False,
    perplexity: Annotated[
        float,
        typer.Option(
            metavar="N",
            min=1,
            max=10_000,
            callback=check_number,
            help="Perplexity of t-SNE: roughly the number of neighbours that each image has. It has to be below the "
            "number of images.",
        ),
    ] = 30,
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, max=2**32 - 1, help="Seed for choosing the images and for t-SNE.")
    ] = 0,
    transfer: Transfer = None,
    layer: Layer = None,
    data_dir: RunDataDir = None,
    labels: RunLabels = None,
    unlabelled: Unlabelled = False,
    on_bad_image: RunBadImage = None,
    recheck: Recheck = False,  # noqa: ARG001 (its callback does the work)
    device: Device = None,
    settings: ImageSettings = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Draw a t-SNE map of an encoder's features.

    A note below the map says how well neighbours on the map agree with neighbours in feature space. Writes the map as
    .png and .svg, and its points as .csv.

    Example: simclr tsne shapes-s0 --images 2000 --thumbnails
    """
    from experiments.runs.encoders import open_subject
    from experiments.runs.pictures import draw_tsne, keep
    from simclr.evaluate.evaluations import check
    from simclr.evaluate.protocol import make_protocol

    store = open_store()
    found = find_encoder_or_newest(run, store)
    with Terminal() as terminal:
        subject = open_subject(
            found,
            store,
            make_protocol([], layer=layer),
            data_dir=data_dir,
            labels=labels,
            unlabelled=unlabelled,
            changes=settings,
            on_bad_image=on_bad_image,
            transfer=transfer,
            device=device,
            observer=terminal,
        )
        check(subject, [])
        note, files = draw_tsne(
            subject,
            out,
            name=found.name(),
            part=part or ("test" if len(subject.data.parts["test"]) else "pretrain"),
            images=images,
            perplexity=perplexity,
            seed=seed,
            thumbnails=thumbnails,
        )
    show({"files": files, "note": note}, describe_files, as_json=as_json)
    keep({f"tsne{file.suffix}": file for file in files}, found, store)


def neighbours(  # over 60 lines, because of its signature
    run: EncoderName,
    images: Annotated[list[Path], typer.Argument(help="Image files to find similar images for.")],
    among: Annotated[
        str | None,
        typer.Option(
            metavar="IMAGES",
            help="Other images to search: a folder, any other form that --data-dir accepts, or a Parquet file from "
            "`simclr embed`.",
            show_default="those that the run was trained on",
        ),
    ] = None,
    out: SearchFile = Path("neighbours.png"),
    count: Annotated[
        int, typer.Option(metavar="N", min=1, max=50, help="Number of similar images to find for each image.")
    ] = 8,
    layer: Layer = None,
    data_dir: RunDataDir = None,
    labels: RunLabels = None,
    unlabelled: Unlabelled = False,
    on_bad_image: RunBadImage = None,
    recheck: Recheck = False,
    device: Device = None,
    settings: ImageSettings = [],  # noqa: B006 (Typer copies it)
    as_json: Json = False,
) -> None:
    """Find the images that are most similar to an image.

    Images are similar if the cosine similarity of their features is high. Prints the file names, and writes them with
    the pictures or as a table. The image itself is left out of the results, but its copies are not.

    Example: simclr neighbours shapes-s0 photo.jpg --among photos --out similar.html
    """
    from experiments.runs.encoders import find_encoder, open_subject
    from experiments.runs.pictures import keep
    from experiments.runs.similar import bank_in, bank_of, below_folder, read_queries, search, write_found
    from simclr.data.dataset import decoding_of
    from simclr.evaluate.evaluations import check
    from simclr.evaluate.protocol import make_protocol
    from simclr.weights.features import holds_features

    store = open_store()
    found = find_encoder(run, store)
    place = among or data_dir or found.config.data.dir or ""
    read_queries(images, decoding_of(found.config.data), str(place))  # raises for those that can't be read
    with Terminal() as terminal:
        if among is not None and holds_features(Path(among)):
            of_images: dict[str, object] = {
                "--layer": layer,
                "--data-dir": data_dir,
                "--labels": labels,
                "--unlabelled": unlabelled,
                "--set": settings,
            }
            of_images |= {"--on-bad-image": on_bad_image, "--recheck": recheck}
            if extra := [option for option, value in of_images.items() if value]:
                raise UserError(f"{extra[0]} has no effect on {among}, which holds features: leave it out")
            bank = bank_in(Path(among), found, device)
        else:
            subject = open_subject(
                found,
                store,
                make_protocol([], layer=layer),
                data_dir=data_dir,
                labels=labels,
                unlabelled=unlabelled,
                changes=settings,
                on_bad_image=on_bad_image,
                transfer=among,
                only_shown=True,
                device=device,
                observer=terminal,
            )
            check(subject, [])
            bank = bank_of(subject, "pretrain" if among is None else None)
        results = search(bank, images, count)
        write_found(results, bank, out, found.config.run_name())
    matches = [
        {
            "query": query,
            "similar": [{"file": file, "similarity": round(near, 6), "class": name} for file, near, name in similar],
        }
        for query, similar in below_folder(results, bank.root)
    ]
    show({"folder": bank.root or None, "matches": matches, "files": [out]}, _describe_matches, as_json=as_json)
    keep({f"neighbours{out.suffix}": out}, found, store)


def _describe_matches(result: dict[str, Any]) -> str:
    """The images that are similar to each query, and the file that shows them."""
    lines, folder = [], result["folder"] or ""
    for match in result["matches"]:
        lines.append(os.path.join(folder, match["query"]))
        for each in match["similar"]:
            label = f"  ({each['class']})" if each["class"] else ""
            lines.append(f"  {each['similarity']:.4f}  {os.path.join(folder, each['file'])}{label}")
    return "\n".join([*map(printable, lines), describe_files(result)])
