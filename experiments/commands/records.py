"""`simclr ui`: the record of all runs in the browser."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from typing import Annotated

import typer

from simclr.errors import RunFailed, UserError


def ui(
    port: Annotated[
        int, typer.Option(metavar="N", min=1, max=65535, help="Port to listen on. Only this machine can connect to it.")
    ] = 5000,
) -> None:
    """Show the runs in the browser, with MLflow.

    Open http://127.0.0.1:5000 (or the port that you chose) in a browser. Press Ctrl-C to stop.

    Example: simclr ui --port 5001
    """
    from experiments.tracking.store import Store, home

    if (server := os.environ.get("MLFLOW_TRACKING_URI", "")).startswith("http"):
        raise UserError(f"the runs are on the server {server} (MLFLOW_TRACKING_URI): open that address in a browser")
    uri = Store(home()).uri
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise UserError(f"can't listen on port {port}: {error.strerror}. Choose another --port") from None
    for name in ("SIGTERM", "SIGHUP"):  # the second comes when the terminal is closed; Windows has none
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    _serve(uri, port)


def _serve(uri: str, port: int) -> None:
    """Run MLflow's server until it is interrupted. Raises RunFailed if it ends by itself."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    off = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with subprocess.Popen(command, env=os.environ | off, start_new_session=True) as server:
        try:
            while server.poll() is None and not _answers(port):
                time.sleep(0.2)
            if server.returncode is None:
                typer.echo(f"MLflow: http://127.0.0.1:{port}  (Ctrl-C to stop)")
            code = server.wait()
            raise RunFailed(
                f"MLflow's server ended by itself, with exit code {code}: its messages above say why. Another --port "
                f"helps if another program has taken {port}"
            )
        except KeyboardInterrupt:
            pass
        finally:  # the server starts processes of its own
            if sys.platform == "win32":
                server.terminate()
            else:
                with suppress(ProcessLookupError):  # they may have ended by themselves
                    os.killpg(server.pid, signal.SIGTERM)


def _answers(port: int) -> bool:
    """Whether something on this machine accepts connections on a port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
