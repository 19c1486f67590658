"""The options and arguments that several commands share, with help texts built from the tables of names."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.commands import complete
from experiments.commands.checks import bad_image, known_preset, of_known_run
from experiments.commands.names import names_in
from experiments.configs.presets import presets
from simclr import settings
from simclr.errors import UserError, unknown

AUGMENTATIONS = names_in("simclr.augment.AUGMENTATIONS")
DATASETS = names_in("simclr.data.sources.DATASETS")
FORMATS = names_in("analysis.tables.FORMATS")
HEADS = names_in("simclr.model.HEADS")
METHODS = names_in("simclr.methods.__init__.METHODS")
RESNETS = names_in("simclr.model.RESNETS")
VITS = names_in("simclr.model.VITS")
SUFFIXES = (".png", ".svg", ".pdf")  # of files that a picture can be written to
SEARCH_SUFFIXES = (".html", ".csv", *SUFFIXES)  # of files that the result of a search can be written to
OTHER_PICTURES = (".pdf", ".jpg", ".jpeg", ".gif", ".webp")  # that a command which writes .png and .svg doesn't write
FROM_PRESET = "from the preset or --config"
FROM_RUN = "that of the run"
FORMS = (
    "a folder, a .zip or .tar archive, Parquet files or NumPy arrays, or hf:NAME for a data set on the Hugging Face "
    "Hub (docs/guides/your-own-images.md lists all forms). Or the folder with the archive of a data set that you "
    "downloaded yourself."
)
ENCODER_HELP = "Name of a run, the first 4 or more characters of its id, or a weights file."
LABELS_HELP = "Table (.csv or .tsv) with the names of the image files and their labels."
BAD_IMAGE_HELP = (
    "What to do with files that can't be read as images: error, skip (up to a quarter of the files), or the share that "
    "may be skipped, such as 0.5."
)
BAD_IMAGE: dict[str, Any] = {"callback": bad_image, "autocompletion": complete.of(["error", "skip"])}


def _recheck(wanted: bool) -> bool:
    if wanted:
        from experiments.tracking.store import home
        from simclr.data.source import recheck

        recheck(home())
    return wanted


def _auto_or_number(parameter: typer.CallbackParam, text: str | None) -> Any:
    return None if text is None else settings.parse_value(text, parameter.opts[0])


def absolute(path: Path | None) -> Path | None:
    """Raises UserError for a path that can't be resolved: with the home of an unknown user, or a loop of links.

    The name of a data set on a hub, such as hf:NAME, is not a path, and stays as it is.
    """
    if path is not None and str(path).startswith("hf:"):
        return path
    try:
        return path and path.expanduser().resolve()
    except (RuntimeError, OSError) as error:
        raise UserError(f"can't find the folder {path}: {error}. Write the path in full") from None


def check_number(number: float | None) -> float | None:
    """Raises UserError for nan, which is within every range of Click."""
    if number is not None and math.isnan(number):
        raise UserError(f"'{number}' is not a number: expected one such as 0.5")
    return number


def check_new_name(name: str | None) -> str | None:
    """Raises UserError for a name that nothing new can have."""
    return None if name is None else settings.check_new_name(name)


def _check_format(name: str) -> str:
    if name not in FORMATS:
        raise unknown("format", name, FORMATS)
    return name


def choice(option: str, *names: str) -> dict[str, Any]:
    """What an option of typer needs to accept these names only."""

    def check(name: str | None) -> str | None:
        if name not in (None, *names):
            raise UserError(f"{option} '{name}': expected {' or '.join(names)}")
        return name

    return {"callback": check, "autocompletion": complete.of(list(names))}


def _check_picture(path: Path) -> Path:
    return check_suffix(path, "draw", SUFFIXES)


def _check_search(path: Path) -> Path:
    return check_suffix(path, "write", SEARCH_SUFFIXES)


def _check_page(path: Path) -> Path:
    return check_suffix(path, "write", (".html",))


def check_suffix(path: Path, verb: str, suffixes: tuple[str, ...]) -> Path:
    """Raises UserError, before any work, if a path doesn't end in one of these, or can't be written to."""
    if path.suffix not in suffixes:
        raise UserError(f"can't {verb} to {path}: expected a file that ends in {' or '.join(suffixes)}")
    return _check_file(path)


def _check_pictures(path: Path) -> Path:
    """Raises UserError, before any work, if no suffix of a picture can be added to this path."""
    if path.suffix in OTHER_PICTURES:
        raise UserError(
            f"can't draw to {path}: the files get the suffixes .png, .svg and .csv, so leave out the suffix"
        )
    return _check_file(path)


def _check_file(path: Path) -> Path:
    if path.is_dir():
        raise UserError(f"{path} is a folder: expected the name of a file")
    return check_out(path)


def check_out(path: Path) -> Path:
    """Raises UserError, before any work, if a path that is to be written lies in a file."""
    for folder in path.parents:
        if folder.is_file():
            raise UserError(f"{folder} is a file, not a folder: choose another path")
    return path


# What a config is made of.
Preset = Annotated[
    str | None,
    typer.Option(
        callback=known_preset,
        help=f"Preset to start from: {', '.join(presets())}. Without this and --config, it is shapes.",
        show_default=False,
        autocompletion=complete.presets,
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="TOML file with settings, in the format of the presets.", show_default=False),
]
Settings = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="SETTING=VALUE",
        help="Any other setting, such as optim.weight_decay=1e-4. Can be repeated.",
        show_default=False,
        autocompletion=complete.settings,
    ),
]
DatasetName = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        help=f"Data set to train on: {', '.join(DATASETS)}.",
        show_default=FROM_PRESET,
        autocompletion=complete.of(DATASETS),
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        callback=absolute, help=f"Your images: {FORMS} Without it, known data sets are downloaded.", show_default=False
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option(
        "--labels", callback=absolute, help=f"{LABELS_HELP} Without it, folders are classes.", show_default=False
    ),
]
Unlabelled = Annotated[
    bool,
    typer.Option(
        "--unlabelled",
        help="Don't take the subfolders of your images for classes. Folders named after splits (train, val, test) "
        "still count as splits.",
    ),
]
BadImage = Annotated[
    str | None,
    typer.Option(
        "--on-bad-image", help=f"{BAD_IMAGE_HELP} Without it, they are an error.", show_default=False, **BAD_IMAGE
    ),
]
Recheck = Annotated[
    bool,
    typer.Option(
        "--recheck",
        callback=_recheck,
        help="Check the size and date of every image file, and show all notes on the images again. Without it, a file "
        "that was overwritten in place may go unnoticed in a folder of 2,000 images or more.",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        help="Seed of the initial weights, the order of the images and the augmentations.", show_default=FROM_PRESET
    ),
]
Device = Annotated[
    str | None,
    typer.Option(help="Device to compute on: auto, cpu, cuda, cuda:1, mps, ...", show_default="auto, the GPU if any"),
]
Init = Annotated[
    str | None,
    typer.Option(
        help="Weights to start the encoder from: a run, a file of torchvision, timm (ResNets) or another program that "
        "`simclr import` reads, or the name of a torchvision network, such as resnet18, whose weights are in PyTorch's "
        "cache.",
        show_default="random weights",
        autocompletion=complete.encoders,
    ),
]
Backbone = Annotated[
    str | None,
    typer.Option(
        help=f"Network of the encoder: {', '.join([*RESNETS, *VITS])}, or another torchvision classifier.",
        show_default=FROM_PRESET,
        autocompletion=complete.of([*RESNETS, *VITS]),
    ),
]
Method = Annotated[
    str | None,
    typer.Option(
        help=f"Pre-training method: {', '.join(METHODS)}. supcon and supervised train on labels, and distill on "
        "the predictions of a fine-tuned network.",
        show_default=FROM_PRESET,
    ),
]
Head = Annotated[
    str | None,
    typer.Option(
        help=f"Kind of projection head: {', '.join(HEADS)}.",
        show_default=FROM_PRESET,
        autocompletion=complete.of(HEADS),
    ),
]
Epochs = Annotated[int | None, typer.Option(help="Number of passes over the images.", show_default=FROM_PRESET)]
BatchSize = Annotated[
    int | None,
    typer.Option(
        help="Number of images per training step. Each image contributes all of its views.", show_default=FROM_PRESET
    ),
]
MicroBatch = Annotated[
    str | None,
    typer.Option(
        callback=_auto_or_number,
        help="Number of images to hold in memory at the same time: auto, or a multiple of train.norm_batch that "
        "divides the batch size.",
        show_default="auto, as many as fit on the GPU",
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(help="Memory that the run may use, such as 8GiB.", show_default="that of the GPU; no limit on a CPU"),
]
Yes = Annotated[bool, typer.Option("--yes", help="Start work of more than an hour without asking for confirmation.")]
Threads = Annotated[
    str | None,
    typer.Option(
        metavar="N",
        callback=_auto_or_number,
        help="Number of CPU threads to train with, or auto: the fastest number, measured on a few steps. A resumed run "
        "keeps its number of threads, unless you give another one.",
        show_default="OMP_NUM_THREADS, or one per core",
    ),
]
PlannedMemory = Annotated[
    str | None,
    typer.Option(
        help="Memory that a run may use, such as 8GiB.", show_default="that of the GPU; without one, of an RTX 4060"
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        help="Number format of training: auto, bf16, fp16 or fp32.",
        show_default=FROM_PRESET,
        autocompletion=complete.of(["auto", "bf16", "fp16", "fp32"]),
    ),
]
Drop = Annotated[
    list[str],
    typer.Option(
        metavar="AUGMENTATION",
        help=f"Augmentation to leave out. Can be repeated. Choices: {', '.join(AUGMENTATIONS)}.",
        show_default=False,
        autocompletion=complete.of(AUGMENTATIONS),
    ),
]

# Encoders and what they are evaluated on.
ENCODER: dict[str, Any] = {
    "help": ENCODER_HELP,
    "callback": of_known_run(*complete.ENCODERS, files=True),
    "autocompletion": complete.encoders,
}
EncoderName = Annotated[str, typer.Argument(**ENCODER)]
NewestEncoder = Annotated[str | None, typer.Argument(show_default="the newest run outside studies", **ENCODER)]
RunNames = Annotated[
    list[str],
    typer.Argument(
        help="Names of finished runs, or the first 4 or more characters of their ids.",
        show_default=False,
        autocompletion=complete.evaluated,
    ),
]
Transfer = Annotated[
    str | None,
    typer.Option(
        help=f"Use the images of another data set ({', '.join(DATASETS)}), or your own images, given as for "
        "--data-dir. For a named data set, --data-dir says where it is.",
        show_default=FROM_RUN,
        autocompletion=complete.of(DATASETS),
    ),
]
ImageSettings = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="SETTING=VALUE",
        help="Setting for reading images other than the run's own, such as data.label_column=species. Can be repeated.",
        show_default=False,
        autocompletion=complete.image_settings,
    ),
]
RunDataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        callback=absolute,
        help=f"Where the images of the run are now, or others to use in their place: {FORMS}",
        show_default=FROM_RUN,
    ),
]
RunLabels = Annotated[Path | None, typer.Option("--labels", callback=absolute, help=LABELS_HELP, show_default=FROM_RUN)]
RunBadImage = Annotated[
    str | None, typer.Option("--on-bad-image", help=BAD_IMAGE_HELP, show_default=FROM_RUN, **BAD_IMAGE)
]
Layer = Annotated[
    str | None,
    typer.Option(
        help="Layer whose features are used: h (output of the encoder, which is the default), z (output of the head), "
        "or head.N (output of module N of the head).",
        show_default=False,
        autocompletion=complete.of(["h", "z", "head."]),
    ),
]
ON_HELP = "Images to measure accuracies on: test, or val for the validation images."
ON = choice("--on", "test", "val")
On = Annotated[str, typer.Option("--on", help=ON_HELP, **ON)]
StudyOn = Annotated[
    str | None, typer.Option("--on", help=ON_HELP, show_default="val, or what the study used before", **ON)
]

# Output.
Format = Annotated[
    str,
    typer.Option(
        "--format",
        callback=_check_format,
        help=f"Format of the tables: {', '.join(FORMATS)}.",
        autocompletion=complete.of(FORMATS),
    ),
]
PictureFile = Annotated[
    Path, typer.Option("--out", callback=_check_picture, help=f"Picture to write ({', '.join(SUFFIXES)}).")
]
PictureFiles = Annotated[
    Path,
    typer.Option(
        "--out",
        callback=_check_pictures,
        help="Path of the files to write, without a suffix: .png, .svg and .csv are added.",
    ),
]
SearchFile = Annotated[
    Path, typer.Option("--out", callback=_check_search, help=f"File to write ({', '.join(SEARCH_SUFFIXES)}).")
]
PageFile = Annotated[Path, typer.Option("--out", callback=_check_page, help="Page to write (.html).")]
