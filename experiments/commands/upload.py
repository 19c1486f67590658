"""`simclr upload`: the record of a home, copied to an MLflow server."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from experiments.commands.output import Json, show
from experiments.commands.terminal import Terminal, describe_size, resumable
from simclr.errors import printable


def upload(
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL", help="Address of the server, such as http://mlflow.example.org:5000.", show_default=False
        ),
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be copied.")] = False,
    as_json: Json = False,
) -> None:
    """Copy all runs to an MLflow server, and verify them.

    Copies runs with their metrics, parameters, tags, files and studies, reads the copies back and compares them. These
    have new ids and the same names. The home folder is not changed. Its checkpoints, snapshots, baselines and decoded
    images aren't copied. If the command is stopped, run it again: it copies only what is missing on the server or has
    changed in the home folder.

    Example: simclr upload http://mlflow.example.org:5000 --dry-run
    """
    from experiments.tracking.claims import claim_name
    from experiments.tracking.store import Store, home
    from experiments.tracking.uploading import Upload, open_server
    from simclr.weights.checkpoint import checkpoints, snapshots

    target = open_server(home(), url)
    source = Store(home())
    with (
        resumable(),
        Terminal() as terminal,
        claim_name(source, "upload to", target.uri, terminal, "wait until it ends"),
    ):
        work = Upload(source, target)
        result = {
            "server": target.uri,
            "runs": len(work.missing),
            "already_there": len(work.runs) - len(work.missing),
            "points": sum(len(content.points) for content in work.missing),
            "files": sum(len(content.files) for content in work.missing),
            "bytes": sum(sum(content.sizes) for content in work.missing),
            "trained_there_too": work.known_configs,
            "with_checkpoints": sum(bool(checkpoints(source.run_folder(run))) for run in work.runs),
            "with_snapshots": sum(bool(snapshots(source.run_folder(run))) for run in work.runs),
            "verified": not dry_run,
        }
        if not dry_run:
            work.copy(terminal)
        result["ids"] = work.ids
    show(result, _text, as_json=as_json)


def _text(result: dict[str, Any]) -> str:
    from analysis.findings import count
    from analysis.text import paragraph

    there, done = printable(result["server"]), result["verified"]
    what = f"{count(result['runs'], 'run')} with {count(result['points'], 'point')} of metrics and "
    what += f"{count(result['files'], 'file')} ({describe_size(result['bytes'])})"
    lines = [f"{'copied' if done else 'would copy'} {what} to {there}"]
    if done:
        lines[0] += ", read them back, and found no difference"
    if result["already_there"]:
        lines.append(f"{count(result['already_there'], 'run')} had been copied before")
    if result["trained_there_too"]:
        lines.append(
            f"{count(result['trained_there_too'], 'run')} of a config that somebody else has also trained there"
        )
    if stay := [
        f"{name} of {count(result[key], 'run')}"
        for name, key in (("checkpoints", "with_checkpoints"), ("snapshots", "with_snapshots"))
        if result[key]
    ]:
        lines.append(f"not copied: {' and '.join(stay)}")
    if done:
        lines.append(f"to record there from now on: export MLFLOW_TRACKING_URI={there}")
    return "\n".join([paragraph(lines[0]), *lines[1:]])
