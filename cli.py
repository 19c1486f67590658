"""The command line: a table of commands that are imported when they are called, and errors turned into exit codes."""

from __future__ import annotations

import os
import shlex
import sys
import warnings
from contextlib import suppress
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from simclr.errors import Deserted, RunFailed, UserError, printable, unknown

UNREAD = 141  # how a shell reports a program that SIGPIPE ended
SECTIONS = {  # of the list of commands. name: (module of experiments.commands and function, what it does)
    "Train": {
        "pretrain": ("pretrain:pretrain", "Train an encoder on images."),
        "ablate": ("ablate:ablate", "Run an ablation study and report it."),
        "search": ("search:search", "Search for better settings that fit into memory."),
        "paper": ("paper:paper", "Reproduce tables of the SimCLR paper with your images."),
    },
    "Evaluate": {
        "eval": ("evaluate:evaluate", "Evaluate an encoder next to its baselines."),
        "compare": ("compare:compare", "Compare evaluated runs, or the cells of a study."),
        "report": ("report:report", "Make the page of a run, a study or a search."),
        "plot": ("pictures:plot", "Draw the training curves of runs in one figure."),
        "measures": ("measures:measures", "Show which label-free metrics rank your encoders best."),
    },
    "Explore images": {
        "explore": ("explore:explore", "Write a page to explore images in the browser."),
        "neighbours": ("pictures:neighbours", "Find the images that are most similar to an image."),
        "tsne": ("pictures:tsne", "Draw a t-SNE map of an encoder's features."),
        "embed": ("encoders:embed", "Write the features of images to a file."),
    },
    "Prepare": {
        "doctor": ("doctor:doctor", "Show what this machine can do, and what slows it down."),
        "presets": ("presets:presets", "List the presets, or show one in full."),
        "views": ("pictures:views", "Draw the augmented views that training uses."),
        "budget": ("budget:budget", "Predict how much memory a config needs, and what fits."),
    },
    "Runs and encoders": {
        "ui": ("ui:ui", "Show the runs in the browser, with MLflow."),
        "runs": ("runs:runs", "List all runs, newest first."),
        "rename": ("rename:rename", "Give a run another name."),
        "delete": ("delete:delete", "Delete runs with their files."),
        "upload": ("upload:upload", "Copy all runs to an MLflow server, and verify them."),
        "export": ("encoders:export", "Export an encoder for other programs."),
        "import": ("encoders:import_", "Import an encoder that another program trained."),
    },
}
COMMANDS = {name: row for section in SECTIONS.values() for name, row in section.items()}


HELP = {"help_option_names": ["-h", "--help"]}
USAGE_ERROR: Any = typer.BadParameter.__base__  # what Typer raises for any mistake in options and arguments


def load(name: str) -> Any:
    """A command with its options, which imports its module."""
    module, _, function = COMMANDS[name][0].partition(":")
    single = typer.Typer(add_completion=False, rich_markup_mode=None, context_settings=HELP)
    single.command(name)(getattr(import_module(f"experiments.commands.{module}"), function))
    command: Any = typer.main.get_command(single)
    for parameter in command.params:
        if parameter.param_type_name == "argument":  # help shows its name without a type such as <list[str]>
            parameter.display_type = lambda _: ""
    return command


def _has(command: Any, option: str) -> bool:
    return any(option in parameter.opts for parameter in command.params)


class LazyCommand(TyperCommand):
    """The name and help of a command. Its module is imported when it is called, or when its own help is shown."""

    def make_context(self, info_name: Any, args: Any, parent: Any = None, **extra: Any) -> Any:
        return load(str(self.name)).make_context(info_name, args, parent, **extra)


class Commands(TyperGroup):
    """The group of all commands. It prints errors in one line and ends with an exit code: 2 for a wrong request, 1 for
    a run that failed, and 130 after Ctrl-C."""

    def main(self, *args: Any, **extra: Any) -> Any:
        if os.environ.get("_SIMCLR_COMPLETE") == "complete_bash":
            from experiments.commands.complete import join_words

            extra["obj"] = join_words(os.environ)
        return super().main(*args, **extra)

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 (an override)
        width = max(map(len, COMMANDS))
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), text) for name, (_, text) in commands.items()])

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except USAGE_ERROR as error:
            first = next((place for place, word in enumerate(given) if word in COMMANDS), 0)
            if not (first and hasattr(error, "possibilities") and _has(load(given[first]), error.option_name)):
                raise
            moved = shlex.join([given[first], *given[:first], *given[first + 1 :]])
            _exit(2, f"error: options go after the command: simclr {moved}")

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in COMMANDS and not ctx.resilient_parsing:  # parsing is resilient when a shell completes a word
            raise unknown("command", args[0], COMMANDS, "`simclr --help` lists all commands")
        launched = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"
        if launched and args[0] != "pretrain":  # each process would do all of the work, into the same store
            raise UserError(
                f"simclr {args[0]} runs in one process: start it without torchrun, which only pretrain supports"
            )
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        warnings.filterwarnings("ignore", module=r"PIL\.")  # they don't say which file they are about
        try:
            return super().invoke(ctx)
        except USAGE_ERROR as error:
            from experiments.commands.usage import describe

            _exit(2, f"error: {describe(error, ctx.invoked_subcommand, load, COMMANDS)}")
        except UserError as error:
            _exit(2, f"error: {error}")
        except Deserted:
            raise typer.Exit(Deserted.exit_code) from None
        except RunFailed as error:
            _exit(1, f"failed: {error}")
        except KeyboardInterrupt as stopped:
            _exit(130, str(stopped) or "stopped")
        except BrokenPipeError:  # typical of `simclr runs | head`
            for stream in (sys.stdout, sys.stderr):  # what Python still has to write is not an error
                with suppress(OSError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            raise typer.Exit(UNREAD) from None
        except OSError as error:
            file = f" {error.filename}" if error.filename else ""
            remedy = "check the folder's permissions and the free space on its disk, or choose another path"
            _exit(1, f"failed: can't read or write{file}: {error.strerror or error}; {remedy}")


def _exit(code: int, message: str) -> NoReturn:
    typer.echo(printable(message), err=True)
    raise typer.Exit(code)


app = typer.Typer(
    name="simclr",
    cls=Commands,
    help="Pre-train SimCLR on your images, and find out why it works.",
    epilog="Example: simclr pretrain --preset shapes",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=HELP,
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"simclr {version('simclr-suite')}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Pre-train SimCLR on your images, and find out why it works."""


for _name, (_, _text) in COMMANDS.items():
    app.command(_name, cls=LazyCommand, help=_text)(lambda: None)

if __name__ == "__main__":
    app(prog_name="simclr")
