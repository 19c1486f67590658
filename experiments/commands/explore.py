"""`simclr explore`: a page to look through images with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from experiments.commands.options import (
    Device,
    ImageSettings,
    Layer,
    NewestEncoder,
    PageFile,
    Recheck,
    RunBadImage,
    RunDataDir,
    RunLabels,
    Unlabelled,
    check_suffix,
)
from experiments.commands.output import Json, describe_files, show
from experiments.commands.terminal import Terminal, describe_size, find_encoder_or_newest, open_store


def _check_table(path: Path | None) -> Path | None:
    return path if path is None else check_suffix(path, "write", (".csv",))


def explore(  # over 60 lines, because of its signature
    run: NewestEncoder = None,
    folder: Annotated[
        str | None,
        typer.Argument(
            help="Other images to explore: a folder, any other form that --data-dir accepts, or the name of a data "
            "set.",
            show_default="those of the run",
        ),
    ] = None,
    out: PageFile = Path("explore.html"),
    table: Annotated[
        Path | None,
        typer.Option(
            callback=_check_table,
            help="CSV file to write as well, with what the page shows about each image.",
            show_default=False,
        ),
    ] = None,
    copies: Annotated[
        Path | None,
        typer.Option(
            callback=_check_table,
            help="CSV file to write as well, with the pairs of images that are copies of each other.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        int, typer.Option(metavar="N", min=4, max=50_000, help="Largest number of images to show.")
    ] = 10_000,
    clusters: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=2, max=1000, help="Number of clusters.", show_default="the number of classes, or 10"
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, max=2**32 - 1, help="Seed for choosing the images, and for the map and the clusters."
        ),
    ] = 0,
    layer: Layer = None,
    data_dir: RunDataDir = None,
    labels: RunLabels = None,
    unlabelled: Unlabelled = False,
    on_bad_image: RunBadImage = None,
    recheck: Recheck = False,  # noqa: ARG001 (its callback does the work)
    device: Device = None,
    settings: ImageSettings = [],  # noqa: B006 (Typer copies it)
    as_json: Json = False,
) -> None:
    """Write a page to explore images in the browser.

    The page shows a map of the images, the nearest images of each, possible duplicates and outliers. It colours them by
    class, folder, split, error or cluster, finds file names, and saves those of the images that you select. The page is
    a single file that needs no server. With --table, a CSV file lists the images for other programs: the class, cluster
    and errors of each, the nearest image, and the similarities that reveal copies and outliers. With --copies, another
    one lists the pairs of copies.

    Example: simclr explore shapes-s0 photos --out photos.html
    """
    from experiments.runs.encoders import open_subject
    from experiments.runs.explore import explore as write_explorer
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
            transfer=folder,
            only_shown=True,
            device=device,
            observer=terminal,
        )
        check(subject, [])
        shown = write_explorer(
            found,
            subject,
            store,
            out,
            table=table,
            copies=copies,
            transfer=folder,
            images=images,
            clusters=clusters,
            seed=seed,
        )
    note = f"{shown}, {describe_size(out.stat().st_size)}: open it in a browser"
    show({"files": [out, *filter(None, [table, copies])], "note": note}, describe_files, as_json=as_json)
