"""MLflow's pages in the browser: their addresses, and the server that makes them open on the runs."""

from __future__ import annotations

import json
import os
import signal
import warnings
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from socket import socket
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

import uvicorn
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Mount, Route

from experiments.tracking.store import Store

TRAINING = "machine_learning"  # how MLflow calls its pages about training; otherwise it shows those about chatbots
ANSWER_SECONDS = 2  # in which a server on this machine says what it serves
GRACE_SECONDS = 2  # for answers that are on their way when the server stops
# The kNN accuracy that training logs, and those of linear classifiers in studies and on test images.
METRICS = ("val/knn_top1", "eval/val/linear_top1", "eval/linear_top1")
COLUMNS = ("attributes.`Dataset`", *(f"metrics.`{name}`" for name in METRICS))
# MLflow keeps these in the browser. Without the first, its pages change to those about chatbots on the way to a run.
# The last are the columns of the list of runs, which shows no metrics by default; it keeps what the user has changed.
START_SCRIPT = """<script>
localStorage.setItem("mlflow.workflowType_v1", '"{training}"');
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
const list = 'MLflowLocalStorage-1.1-ExperimentPage-["{experiment}"]-ReactComponentState';
if (!localStorage.getItem(list)) localStorage.setItem(list, '{columns}');
if (!location.hash) location.hash = "{place}";
</script>"""


def shared_server() -> str | None:
    """The address of the server that MLFLOW_TRACKING_URI names, without the password that it may hold; None if none."""
    parts = urlsplit(os.environ.get("MLFLOW_TRACKING_URI", ""))
    if parts.scheme not in ("http", "https"):
        return None
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"


def address(server: str, experiment: str, run_id: str | None = None) -> str:
    """The address of the list of all runs on a server (such as http://127.0.0.1:5000), or of a run's page."""
    return f"{server}/{_place(experiment, run_id)}"


def _place(experiment: str, run_id: str | None = None) -> str:
    run = f"/{run_id}" if run_id else ""
    return f"#/experiments/{experiment}/runs{run}?workflowType={TRAINING}"


def is_served(store: Store, server: str) -> bool:
    """Whether a server on this machine shows the runs of a store."""
    place = store.client.get_experiment(store.experiment).artifact_location
    asked = f"{server}/api/2.0/mlflow/experiments/get?experiment_id={store.experiment}"
    try:
        with build_opener(ProxyHandler({})).open(asked, timeout=ANSWER_SECONDS) as answer:
            return bool(json.load(answer)["experiment"]["artifact_location"] == place)
    except (OSError, HTTPException, ValueError, LookupError, TypeError):  # it is another program, or none
        return False


def serve(store: Store, listening: socket) -> None:
    """Answer the browsers that connect to a socket of this machine, until Ctrl-C, SIGTERM or a closed terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow uses what Starlette no longer recommends
        from mlflow.server import ARTIFACT_ROOT_ENV_VAR, BACKEND_STORE_URI_ENV_VAR  # type: ignore[attr-defined]
        from mlflow.server import app as flask_app
        from mlflow.server.fastapi_app import app as mlflow_app

    # MLflow's server reads these when it first needs the store.
    os.environ[BACKEND_STORE_URI_ENV_VAR] = store.uri
    os.environ[ARTIFACT_ROOT_ENV_VAR] = (store.folder / "artifacts").as_uri()
    front = Path(str(flask_app.static_folder)) / "index.html"
    start = START_SCRIPT.format(
        training=TRAINING,
        experiment=store.experiment,
        columns=json.dumps({"selectedColumns": COLUMNS}),
        place=_place(store.experiment),
    )
    page = HTMLResponse(
        front.read_text(encoding="utf-8").replace("<head>", f"<head>{start}", 1), headers={"Cache-Control": "no-store"}
    )
    pages = Starlette(routes=[Route("/", lambda request: page), Mount("/", mlflow_app)])
    server = uvicorn.Server(
        uvicorn.Config(pages, lifespan="off", log_level="warning", timeout_graceful_shutdown=GRACE_SECONDS)
    )
    for name in ("SIGTERM", "SIGHUP"):  # the second comes when the terminal is closed; Windows has none
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listening])
