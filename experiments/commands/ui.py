"""`simclr ui`: the record of all runs in the browser."""

from __future__ import annotations

import os
import socket
import sys
import threading
import webbrowser
from typing import TYPE_CHECKING, Annotated

import typer

from simclr.errors import UserError

if TYPE_CHECKING:
    from experiments.tracking.store import Store


def ui(
    port: Annotated[
        int, typer.Option(metavar="N", min=1, max=65535, help="Port to listen on. Only this machine can connect to it.")
    ] = 5000,  # PORT in experiments/runs/pages.py
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the address.")] = False,
) -> None:
    """Show the runs in the browser, with MLflow.

    Opens the list of all runs in the browser, and prints its address and that of the newest study. Press Ctrl-C to
    stop.

    Example: simclr ui --port 5001
    """
    from experiments.runs.pages import PORT
    from experiments.tracking.pages import is_served, serve, shared_server
    from experiments.tracking.store import Store, home

    store = Store(home())
    if (server := shared_server()) is not None:
        _show(store, server, no_browser)
        return
    server = f"http://127.0.0.1:{port}"
    try:
        listening = socket.create_server(("127.0.0.1", port))
    except OSError as error:
        if is_served(store, server):
            _show(store, server, no_browser)
            typer.echo("these runs are already served there")
            return
        raise UserError(
            f"can't listen on port {port}: {os.strerror(error.errno or 0)}. Choose another --port"
        ) from None
    with listening:
        _show(store, server, no_browser)
        if port != PORT:
            typer.echo(f"links in reports lead to port {PORT}, not here")
        typer.echo("Ctrl-C stops the server")
        serve(store, listening)


def _show(store: Store, server: str, no_browser: bool) -> None:
    """Print where the runs and the newest study are on a server, and open the runs in the browser."""
    from experiments.tracking.pages import address

    runs = address(server, store.experiment)
    typer.echo(f"all runs: {runs}")
    for study in store.records(kind="study")[:1]:
        typer.echo(f"study {study.name}: {address(server, store.experiment, study.id)}")
    if not no_browser and _has_screen():
        threading.Thread(target=webbrowser.open, args=[runs], daemon=True).start()  # some only return when closed


def _has_screen() -> bool:
    """Whether a browser can open a window. Without one, Linux would start a browser in the terminal."""
    return sys.platform != "linux" or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
