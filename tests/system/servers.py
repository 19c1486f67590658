"""An `mlflow server` and a PostgreSQL database of a test's own, on free ports of the loopback device."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.simclr.several import free_port

POSTGRES = [Path(found).resolve().parent for found in filter(None, [shutil.which("initdb"), shutil.which("pg_config")])]
POSTGRES += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
BINARIES = next((folder for folder in POSTGRES if (folder / "initdb").exists()), None)


class Server:
    """An `mlflow server`, on a sqlite database in the folder unless another one is named."""

    def __init__(self, folder: Path, database: str | None = None, port: int | None = None) -> None:
        port = port or free_port()
        self.uri, self.log = f"http://127.0.0.1:{port}", (folder / "server.log").open("ab")
        self.command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        self.command += ["--workers", "1", "--backend-store-uri", database or f"sqlite:///{folder / 'server.db'}"]
        self.command += ["--artifacts-destination", str(folder / "kept")]

    def start(self) -> None:
        quiet = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        self.process = subprocess.Popen(
            self.command, stdout=self.log, stderr=self.log, env=quiet, start_new_session=True
        )
        while True:
            assert self.process.poll() is None
            with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=10):
                return
            time.sleep(0.2)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the server and its workers."""
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        with suppress(ProcessLookupError):
            self.kill()
        self.log.close()


class Postgres:
    """A PostgreSQL server with an empty database, in a folder that belongs to a user who isn't root."""

    def __init__(self, folder: Path) -> None:
        assert BINARIES is not None
        self.folder, self.port = folder, free_port()
        self.user = "postgres" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
        self.uri = f"postgresql+psycopg://team@127.0.0.1:{self.port}/postgres"
        if self.user:
            shutil.chown(folder, self.user)
        self._run("initdb", "--username", "team", "--auth", "trust", "--no-sync", "--no-locale", "--encoding", "UTF8")

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(BINARIES / program), "--pgdata", str(self.folder / "data"), *arguments]  # type: ignore[operator]
        subprocess.run(command, check=True, user=self.user, cwd=self.folder, stdout=subprocess.DEVNULL)

    def start(self) -> None:
        options = f"-h 127.0.0.1 -p {self.port} -k {self.folder}"
        self._run("pg_ctl", "start", "--wait", "--log", str(self.folder / "log"), "--options", options)

    def kill(self) -> None:
        """End it at once, as if the machine lost its power. What was committed is restored at the next start."""
        self._run("pg_ctl", "stop", "--wait", "--mode", "immediate")


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server that runs. Skips the test where PostgreSQL or its driver isn't installed."""
    pytest.importorskip("psycopg", reason="needs the extra `team`")
    if BINARIES is None or (os.geteuid() == 0 and not _knows_user("postgres")):
        pytest.skip("needs PostgreSQL")
    folder = Path(tempfile.mkdtemp(prefix="simclr-postgres-"))  # pytest's folders are closed to other users
    try:
        database = Postgres(folder)
        database.start()
        try:
            yield database
        finally:
            with suppress(subprocess.CalledProcessError):
                database.kill()
    finally:
        shutil.rmtree(folder)


def _knows_user(name: str) -> bool:
    import pwd

    with suppress(KeyError):
        return bool(pwd.getpwnam(name))
    return False
