"""`simclr views`, `plot`, `tsne` and `neighbours`: pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
    Labels,
    Layer,
    NewestEncoder,
    PictureFile,
    PictureFiles,
    Preset,
    RunBadImage,
    RunDataDir,
    RunLabels,
    RunNames,
    Settings,
    Transfer,
    TransferSettings,
    Unlabelled,
    check_number,
)
from experiments.commands.terminal import Terminal, find_encoder_or_newest, offer_unlabelled
from simclr.errors import printable

METRICS = names_in("experiments.runs.compare.SHORT_NAMES")


def views(
    out: PictureFile = Path("views.png"),
    preset: Preset = None,
    config: ConfigFile = None,
    dataset: DatasetName = None,
    data_dir: DataDir = None,
    labels: Labels = None,
    on_bad_image: BadImage = None,
    unlabelled: Unlabelled = False,
    drop: Drop = [],  # noqa: B006 (Typer copies it)
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of the augmentations. The images stay the same.", show_default=FROM_PRESET),
    ] = None,
    settings: Settings = [],  # noqa: B006
) -> None:
    """Draw the augmented views that training uses.

    The picture shows some images, both views of each, and the effect of each augmentation alone.

    Example: simclr views --preset cifar10 --drop grayscale --out views.png
    """
    from experiments.configs.resolve import resolve
    from experiments.runs.view_grid import draw_view_grid
    from experiments.tracking.store import home
    from simclr.data.dataset import open_dataset

    chosen = resolve(
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
    typer.echo(printable(f"wrote {out}"))


def plot(
    metric: Annotated[str, typer.Argument(help=f"Metric to draw: {', '.join(METRICS)}, or any logged metric.")],
    runs: RunNames,
    out: PictureFiles = Path("curves"),
    smooth: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, max=10**6, help="Number of points that a running mean is taken over. 0: no smoothing."
        ),
    ] = 0,
) -> None:
    """Draw the training curves of runs in one figure.

    Writes the figure as .png and .svg, and its points as .csv.

    Example: simclr plot loss shapes-s0 shapes-s1 --smooth 5
    """
    from experiments.runs.compare import plot_metric
    from experiments.tracking.store import Store, home

    files = plot_metric(metric, runs, Store(home()), out, smooth)
    typer.echo(printable(f"wrote {', '.join(map(str, files))}"))


def tsne(  # over 60 lines, because of its signature
    run: NewestEncoder = None,
    out: PictureFiles = Path("tsne"),
    part: Annotated[
        str,
        typer.Option(
            help="Part of the data set to draw: train, val, test, or pretrain (all images that are trained on, with or "
            "without labels)."
        ),
    ] = "test",
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
            help="Perplexity of t-SNE: roughly the number of neighbours that each image has. "
            "It has to be below the number of images.",
        ),
    ] = 30,
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, max=2**32 - 1, help="Seed of the choice of images and of t-SNE.")
    ] = 0,
    transfer: Transfer = None,
    layer: Layer = None,
    data_dir: RunDataDir = None,
    labels: RunLabels = None,
    on_bad_image: RunBadImage = None,
    device: Device = None,
    settings: TransferSettings = [],  # noqa: B006
) -> None:
    """Draw a t-SNE map of an encoder's features.

    A note below the map says how well neighbours on it agree with neighbours among the features. Writes the map as
    .png and .svg, and its points as .csv.

    Example: simclr tsne shapes-s0 --images 2000 --thumbnails
    """
    from experiments.runs.encoders import open_subject
    from experiments.runs.pictures import draw_tsne
    from experiments.tracking.store import Store, home
    from simclr.evaluate.evaluations import check
    from simclr.evaluate.protocol import make_protocol

    store = Store(home())
    found = find_encoder_or_newest(run, store)
    with Terminal() as terminal:
        subject = open_subject(
            found,
            store,
            make_protocol([], layer=layer),
            data_dir=data_dir,
            labels=labels,
            changes=settings,
            on_bad_image=on_bad_image,
            transfer=transfer,
            device=device,
            observer=terminal,
        )
        check(subject, [])
        note, files = draw_tsne(
            subject, out, part=part, images=images, perplexity=perplexity, seed=seed, thumbnails=thumbnails
        )
    typer.echo(note)
    typer.echo(printable(f"wrote {', '.join(map(str, files))}"))


def neighbours(
    run: EncoderName,
    images: Annotated[list[Path], typer.Argument(help="Image files to find neighbours of.")],
    out: PictureFile = Path("neighbours.png"),
    count: Annotated[int, typer.Option(metavar="N", min=1, max=50, help="Number of neighbours of each image.")] = 8,
    layer: Layer = None,
    data_dir: RunDataDir = None,
    labels: RunLabels = None,
    on_bad_image: RunBadImage = None,
    device: Device = None,
) -> None:
    """Draw the training images that are nearest to an image.

    Images are near if the cosine similarity of their features is high.

    Example: simclr neighbours shapes-s0 photo.jpg --count 10
    """
    from experiments.runs.encoders import find_encoder, open_subject
    from experiments.runs.pictures import draw_neighbours
    from experiments.tracking.store import Store, home
    from simclr.evaluate.evaluations import check
    from simclr.evaluate.protocol import make_protocol

    store = Store(home())
    protocol = make_protocol([], layer=layer)
    with Terminal() as terminal:
        subject = open_subject(
            find_encoder(run, store),
            store,
            protocol,
            data_dir=data_dir,
            labels=labels,
            on_bad_image=on_bad_image,
            device=device,
            observer=terminal,
        )
        check(subject, [])
        draw_neighbours(subject, images, out, count)
    typer.echo(printable(f"wrote {out}"))
