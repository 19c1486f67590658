"""Copy the runs of a home's own record to an MLflow server, and compare what arrived with what was sent."""

from __future__ import annotations

import filecmp
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar
from urllib.parse import urlparse

from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from mlflow.version import VERSION

from experiments.tracking import local
from experiments.tracking.datasets import datasets_of, log_datasets
from experiments.tracking.faults import first_line
from experiments.tracking.sending import MOST_POINTS
from experiments.tracking.store import GROUPS, PARENT, Store, patiently
from simclr.errors import RunFailed, UserError
from simclr.progress import SILENT, Observer

SOURCE = "mlflow.simclr.source"  # the tag of a copy with the id of its original. MLflow's pages hide it
COPIED = "mlflow.simclr.copied"  # the tag with the digest of the original, set when all of it has arrived
REFERENCES = (PARENT, "copied_from")  # tags that hold the id of another run
MOST_VALUES = 100  # params or tags in one request

T = TypeVar("T")


def open_server(folder: Path, url: str) -> Store:
    """The record on an MLflow server. Raises UserError if there is none, or one that can't be used."""
    if local.database_of(folder) is None:
        raise UserError("MLFLOW_TRACKING_URI names a server, and only a record on this disk can be copied: unset it")
    if not _is_address(url):
        raise UserError(f"'{url}' is not the address of an MLflow server: expected http://HOST:PORT or https://HOST")
    url = url.rstrip("/")
    check = f"check the address, and whether `curl {url}/version` prints the version of MLflow"
    try:
        request: Any = http_request
        credentials: Any = get_default_host_creds
        answer = request(credentials(url), "/version", "GET")
    except MlflowException as error:
        raise UserError(f"can't reach an MLflow server at {url}: {first_line(error)}. Start it, or {check}") from None
    if answer.status_code in (401, 403):
        raise UserError(
            f"{url} refuses to answer (status {answer.status_code}): set MLFLOW_TRACKING_USERNAME and "
            f"MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    theirs = answer.text.strip()
    if answer.status_code != 200 or not theirs[:1].isdigit() or len(theirs) > 50:
        raise UserError(f"{url} does not answer like an MLflow server (status {answer.status_code}): {check}")
    if theirs.split(".")[0] != VERSION.split(".")[0]:
        raise UserError(f"{url} runs MLflow {theirs}, and this is MLflow {VERSION}: install the same major version")
    return Store(folder, server=url)


def _is_address(url: str) -> bool:
    """Whether a text names a host that speaks HTTP."""
    try:
        return urlparse(url).scheme in ("http", "https") and bool(urlparse(url).hostname)
    except ValueError:  # such as a bracket without its partner
        return False


@dataclass(frozen=True)
class Content:
    """Everything that a record knows of a run."""

    store: Store
    run: Run

    @property
    def id(self) -> str:
        return str(self.run.info.run_id)

    @cached_property
    def points(self) -> list[tuple[str, int, int, str]]:
        """Metric, step, time in milliseconds and value of each point, sorted. As a text, NaN is equal to itself."""
        names = self.run.data.metrics
        return sorted((p.key, p.step, p.timestamp, repr(p.value)) for n in names for p in self.store.points(self.id, n))

    @cached_property
    def files(self) -> list[str]:
        """The names of its files, those in folders with slashes."""
        if self.store.artifacts is None:
            return sorted(self._listed(None))
        folder = self.store.artifact_folder(self.store.artifacts, self.id)
        names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        return sorted(name for name in names if not name.startswith("."))  # of a process that was killed

    def _listed(self, folder: str | None) -> Iterator[str]:
        for each in self.store.sender.call(self.store.client.list_artifacts, self.id, folder):
            if each.is_dir:
                yield from self._listed(each.path)
            else:
                yield each.path

    @property
    def sizes(self) -> list[int]:
        """The bytes of each file, for a record on this disk."""
        return [self.store.artifact(self.id, name).stat().st_size for name in self.files]

    def facts(self, ids: Mapping[str, str] = {}) -> dict[str, Any]:
        """All but points and files, as plain values. `ids` are those that other runs have in the copy."""
        info, data = self.run.info, self.run.data
        tags = {key: ids.get(value, value) if key in REFERENCES else value for key, value in data.tags.items()}
        return {
            "name": info.run_name,
            "status": info.status,
            "started": info.start_time,
            "ended": info.end_time,
            "params": dict(data.params),
            "tags": {key: value for key, value in tags.items() if key not in (SOURCE, COPIED)},
            "inputs": sorted(datasets_of(self.run), key=json.dumps),
            "metrics": {key: repr(value) for key, value in data.metrics.items()},  # the latest value of each
        }

    @cached_property
    def digest(self) -> str:
        """Changes with anything that the record knows of the run."""
        known = hashlib.blake2b(json.dumps([self.facts(), self.points], sort_keys=True).encode(), digest_size=16)
        for name in self.files:
            with self.store.artifact(self.id, name).open("rb") as file:
                known.update(f"\n{name} ".encode() + hashlib.file_digest(file, "blake2b").digest())
        return known.hexdigest()


class Upload:
    """What of a home's record is missing on a server, and the copying of it.

    It can be repeated at any time: runs that have arrived whole are left alone, unless their originals have changed.
    """

    def __init__(self, source: Store, target: Store) -> None:
        """Raises UserError if no run exists, if one has not ended, or if the server has another study with its name."""
        self.source, self.target = source, target
        self.runs = {run.info.run_id: Content(source, run) for run in source.runs()}
        if not self.runs:
            raise UserError(f"there is no run in {source.folder}: set SIMCLR_HOME to a folder that has some")
        others = [run for run in target.runs() if run.data.tags.get(SOURCE) not in self.runs]
        copies = [run for run in target.runs(f"tags.`{SOURCE}` != ''") if run.data.tags[SOURCE] in self.runs]
        self.ids = {run.data.tags[SOURCE]: run.info.run_id for run in copies}  # of the copies, by those of originals
        self._copied = {run.data.tags[SOURCE]: run.data.tags.get(COPIED) for run in copies}
        taken = {_group_of(run) for run in others} - {None}
        trained = {_config_of(run) for run in others} - {None}
        self.known_configs = sum(_config_of(content.run) in trained for content in self.runs.values())
        for content in self.runs.values():
            name, group = content.run.info.run_name, _group_of(content.run)
            if content.run.info.status == "RUNNING":
                raise UserError(f"run {name} ({content.id[:8]}) has not ended: wait until it ends, or stop it")
            if group is not None and group in taken:
                raise UserError(
                    f"{target.uri} has another {group[0]} '{group[1]}', and commands find it by that name. Upload to "
                    f"another server, or run this {group[0]} again with another --name in a new SIMCLR_HOME and upload "
                    f"that"
                )

    @cached_property
    def missing(self) -> list[Content]:
        """The runs that are not on the server, or differ there from the original. Runs that others name come first."""
        ordered: dict[str, Content] = {}

        def add(content: Content) -> None:
            for key in REFERENCES:
                if (other := self.runs.get(content.run.data.tags.get(key, ""))) is not None:
                    add(other)
            ordered.setdefault(content.id, content)

        for content in reversed(self.runs.values()):  # from the oldest to the newest
            add(content)
        return [content for content in ordered.values() if self._copied.get(content.id) != content.digest]

    def copy(self, observer: Observer = SILENT) -> None:
        """Copy what is missing. Raises RunFailed if something else arrives than was sent, or if the server is gone."""
        for done, content in enumerate(self.missing):
            observer.progress("copying runs", done, len(self.missing))
            self._send(content)
            self._compare(content)
            self._call("set_tag", COPIED, content.digest, of=content)
        observer.progress("copying runs", 1, 1)

    def _call(self, method: str, *arguments: Any, of: Content, **options: Any) -> Any:
        """Call MLflow for the copy of a run, for as long as a file may take. Repeated if the server is gone."""
        function = patiently()(getattr(self.target.client, method))
        return self.target.sender.call(lambda: function(self.ids[of.id], *arguments, **options))

    def _send(self, content: Content) -> None:
        client, facts = self.target.client, content.facts(self.ids)

        def create() -> str:
            """The server may have carried out an attempt whose answer was lost."""
            same = client.search_runs([self.target.experiment], f"tags.`{SOURCE}` = '{content.id}'")
            tags = {SOURCE: content.id, "kind": facts["tags"].get("kind", "")}
            new = same[0] if same else client.create_run(self.target.experiment, facts["started"], tags, facts["name"])
            return str(new.info.run_id)

        if content.id not in self.ids:
            self.ids[content.id] = self.target.sender.call(create)
        for metrics in _parts(content.points, MOST_POINTS):
            some = [Metric(key, float(value), time, step) for key, step, time, value in metrics]
            self._call("log_batch", of=content, metrics=some)
        for params in _parts(list(facts["params"].items()), MOST_VALUES):
            self._call("log_batch", of=content, params=[Param(*pair) for pair in params])
        if facts["inputs"]:
            self.target.sender.call(log_datasets, client, self.ids[content.id], facts["inputs"])
        for name in content.files:
            folder = Path(name).parent.as_posix()
            path = str(self.source.artifact(content.id, name))
            self._call("log_artifact", path, None if folder == "." else folder, of=content)
        for tags in _parts(list(facts["tags"].items()), MOST_VALUES):
            self._call("log_batch", of=content, tags=[RunTag(*pair) for pair in tags])
        self._call("set_terminated", facts["status"], facts["ended"], of=content)

    def _compare(self, content: Content) -> None:
        """Raise RunFailed if the copy lacks something of a run, or has something else."""
        copy = Content(self.target, self._call("get_run", of=content))
        sent, arrived = content.facts(self.ids), copy.facts()
        wrong = [key for key in sent if key not in ("params", "tags", "metrics") and sent[key] != arrived[key]]
        wrong += [key for key in ("params", "tags", "metrics") if not sent[key].items() <= arrived[key].items()]
        if not set(content.points) <= set(copy.points):
            wrong.append("points of metrics")
        with TemporaryDirectory() as folder:
            for name in content.files:
                there = self._call("download_artifacts", name, folder, of=content)
                if not filecmp.cmp(self.source.artifact(content.id, name), there, shallow=False):
                    wrong.append(name)
                Path(there).unlink()
        if wrong:
            raise RunFailed(
                f"the copy of run {content.run.info.run_name} ({content.id[:8]}) differs in {', '.join(wrong)}: run "
                f"the same command again"
            )


def _group_of(run: Run) -> tuple[str, str] | None:
    """The kind of a study or search, and what commands find it by: its name, or that which a search began with."""
    kind = run.data.tags.get("kind")
    if kind not in GROUPS:
        return None
    return kind, run.data.tags.get("search", run.info.run_name) if kind == "search" else run.info.run_name


def _config_of(run: Run) -> tuple[str, str] | None:
    """What a run has trained, if it is one that trains and finished."""
    tags = run.data.tags
    trained = tags.get("kind") == "pretrain" and run.info.status == "FINISHED" and "config_key" in tags
    return (tags["config_key"], tags.get("data_digest", "")) if trained else None


def _parts(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (values[start : start + size] for start in range(0, len(values), size))
