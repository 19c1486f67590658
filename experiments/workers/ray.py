"""Ray as an engine: tasks are Ray tasks, on the cluster of RAY_ADDRESS or on one that lives as long as the command."""

from __future__ import annotations

import logging
import os
import platform
import signal
import socket
from math import floor
from types import TracebackType
from typing import Any, Self

from experiments.workers.task import Lost, Outcome, Task
from simclr.errors import RunFailed, UserError

CONNECT_SECONDS = 10.0  # how long a cluster may take to answer
SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # the frame with which both sides of HTTP/2, which Ray speaks, begin
# Ray's own names. It would try for a quarter of an hour to reach a cluster that is gone, and print its own messages.
IMPATIENT = {"RAY_NUM_REDIS_GET_RETRIES": "1", "RAY_py_gcs_connect_timeout_s": "10", "RAY_BACKEND_LOG_LEVEL": "fatal"}
OBJECT_BYTES = 100 * 2**20  # memory for what Ray passes between processes, which is little: tasks and their outcomes


class Ray:
    """An Engine. Each task gets its cores, computes with as many threads, and has a share of a GPU if there are any."""

    def __init__(self, gpus_per_run: float | None = None, cores: int = 1) -> None:
        """`gpus_per_run` may be a fraction, so that several runs share a GPU. None: 1, or 0 if no machine has a GPU.

        `cores` are those that each run takes.
        """
        self.gpus_per_run, self.cores = gpus_per_run, cores
        self._tokens: dict[Any, str] = {}  # by Ray's handle of the task

    @staticmethod
    def check() -> None:
        """Raise UserError if Ray is not installed, or if no cluster answers at RAY_ADDRESS."""
        _find()

    def __enter__(self) -> Self:
        handler = signal.getsignal(signal.SIGTERM)
        self.ray = _connect()
        signal.signal(signal.SIGTERM, handler)  # Ray's own would end this process without asking runs to stop
        gpus = self.gpus_per_run
        if gpus is None:
            gpus = float(any(node.get("GPU") for node in self._machines()))
        self.needs = {"CPU": float(self.cores), "GPU": gpus}
        for name, option in (("CPU", "--threads"), ("GPU", "--gpus-per-run")):
            most = max((node.get(name, 0.0) for node in self._machines()), default=0.0)
            if self.needs[name] > most:
                self.ray.shutdown()
                raise UserError(
                    f"{option} {self.needs[name]:g} is more than any machine of the Ray cluster has, which is "
                    f"{most:g} {name}s: lower it, or add a machine"
                )
        # The pool starts lost tasks again, and says so.
        self._call = self.ray.remote(num_cpus=self.cores, num_gpus=gpus, max_retries=0)(_call)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ray.shutdown()  # ends the tasks of this process, and the cluster if this process started it

    def _machines(self) -> list[dict[str, float]]:
        """The resources of each machine that is alive."""
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    @property
    def slots(self) -> int:
        """How many runs all machines together have room for."""
        needs = {name: amount for name, amount in self.needs.items() if amount}
        rooms = (
            min(floor(node.get(name, 0.0) / amount) for name, amount in needs.items()) for node in self._machines()
        )
        return max(1, sum(rooms))

    def start(self, task: Task) -> None:
        self._tokens[self._call.options(name=task.name).remote(task)] = task.token

    def ended(self, seconds: float) -> list[tuple[str, Outcome | Lost]]:
        ready, _ = self.ray.wait(list(self._tokens), num_returns=1, timeout=seconds)
        return [(self._tokens.pop(handle), self._outcome(handle)) for handle in ready]

    def _outcome(self, handle: Any) -> Outcome | Lost:
        errors = self.ray.exceptions
        try:
            outcome: Outcome = self.ray.get(handle)
        except errors.RayTaskError as error:
            if isinstance(error.cause, errors.TaskCancelledError):  # it had begun when it was cancelled
                return Lost("it was cancelled")
            return Outcome("", error=error.cause if isinstance(error.cause, Exception) else RunFailed(str(error)))
        except (errors.TaskCancelledError, errors.WorkerCrashedError):
            return Lost("its process is gone")
        except errors.NodeDiedError:
            return Lost("its machine is gone")
        except errors.OutOfMemoryError:
            return Lost("its process was ended because its machine ran out of memory")
        except errors.RayError as error:
            return Lost(str(error).splitlines()[0].rstrip("."))
        return outcome

    def cancel(self, token: str) -> None:
        for handle, own in self._tokens.items():
            if own == token:
                self.ray.cancel(handle)


def _call(task: Task) -> Outcome:
    return task()


def _find() -> tuple[Any, str | None]:
    """Ray, and the address of its cluster, if it isn't to be one on this machine. Raises UserError as `Ray.check`."""
    address = os.environ.get("RAY_ADDRESS") or None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would send statistics to its makers
    if address:
        os.environ.update(IMPATIENT | os.environ)  # before Ray is imported
    try:
        import ray
    except ImportError:
        raise UserError("--cluster ray needs Ray: pip install 'simclr-suite[cluster]'") from None
    if address not in (None, "auto") and not _answers(address):
        raise _no_answer(address)
    return ray, address


def _no_answer(address: str) -> UserError:
    return UserError(
        f"no Ray cluster answers at RAY_ADDRESS = {address}: start one with `ray start --head`, or unset RAY_ADDRESS "
        f"to use this machine alone"
    )


def _connect() -> Any:
    """Ray, connected to a cluster. Raises UserError if that can't be."""
    ray, address = _find()
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not address:
        local: dict[str, Any] = {
            "include_dashboard": False,
            "object_store_memory": OBJECT_BYTES,
            "_node_ip_address": "127.0.0.1",
            "_system_config": {"worker_niceness": 0},  # otherwise runs yield to everything else on this machine
        }
        ray.init("local", **local, **quiet)
        return ray
    try:
        ray.init(address, **quiet)
    except ConnectionError:
        raise _no_answer(address) from None
    except RuntimeError as error:
        text, own = " ".join(str(error).split()), f"Ray {ray.__version__} and Python {platform.python_version()}"
        if "version mismatch" not in text.lower():
            raise UserError(f"can't connect to the Ray cluster at {address}: {text}") from None
        raise UserError(
            f"the Ray cluster at {address} has other versions than {own}, which this process has: {text}. Install the "
            f"same versions on all machines"
        ) from None
    return ray


def _answers(address: str) -> bool:
    """Whether somebody who may be Ray answers at an address such as 10.0.0.1:6379. Raises UserError if it is none."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"RAY_ADDRESS is '{address}': expected HOST:PORT, or auto for the cluster on this machine")
    try:
        with socket.create_connection((host, int(port)), CONNECT_SECONDS) as there:
            if os.environ.get("RAY_USE_TLS", "0") != "0":
                return True  # a greeting would have to be encrypted
            there.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SETTINGS)
            return there.recv(len(SETTINGS))[3:5] == SETTINGS[3:5]
    except (OSError, OverflowError):
        return False
