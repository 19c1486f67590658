"""The engine for clusters that Slurm manages: tasks become jobs of arrays, through submitit."""

from __future__ import annotations

import getpass
import io
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from experiments.tracking.store import home
from experiments.workers.task import Lost, Outcome, Said, Task
from simclr.errors import UserError

MINUTES = "60"  # of a job, unless the user says otherwise
JOBS = "16"  # that wait or run at the same time, unless the user says otherwise
REQUEUES = 1000  # how often a job may go on after its time limit
POLL_SECONDS = 0.5  # how often answers are looked for
QUEUE_SECONDS = 10.0  # how often Slurm is asked which jobs it has, which costs the whole cluster time
LOST_SECONDS = 90.0  # how long an answer may take to appear on a shared disk after its job has left the queue
OPTION = re.compile(r"[a-z]+(?:-[a-z]+)*")  # of sbatch
OURS = {"array", "error", "nodes", "ntasks", "ntasks-per-node", "open-mode", "output", "signal", "wait"}  # options


class Slurm:
    """Sends tasks to Slurm. Their files are in a folder of the home, which all machines have to share."""

    def __init__(self, gpus_per_run: float | None = None, options: Iterable[str] = (), cores: int = 1) -> None:
        """`options` are those of sbatch, such as time=4:00:00, and jobs=N: how many wait or run at the same time.
        `cores` are those that each run takes, unless an option says so.

        Raises UserError for options that can't be passed on, and as `check` does.
        """
        parameters: dict[str, Any] = {"jobs": JOBS, "time": MINUTES}
        if cores > 1:
            parameters["cpus-per-task"] = cores
        parameters |= dict(map(parse_option, options))
        jobs = str(parameters.pop("jobs"))
        if not (jobs.isascii() and jobs.isdigit() and int(jobs)):
            raise UserError(f"--cluster-option 'jobs={jobs}': expected a number of jobs, 1 or more")
        self.slots = int(jobs)
        if gpus_per_run is not None:
            if not gpus_per_run.is_integer():
                raise UserError(f"--gpus-per-run {gpus_per_run:g}: Slurm allocates whole GPUs: expected 0 or 1")
            parameters["gpus-per-node"] = int(gpus_per_run)
        self.check()
        import submitit

        (home() / "slurm").mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix=time.strftime("%Y-%m-%d-"), dir=home() / "slurm"))
        self._executor = submitit.SlurmExecutor(self.folder, max_num_timeout=REQUEUES)
        self._executor.update_parameters(job_name="simclr", stderr_to_stdout=True, additional_parameters=parameters)
        self._new: list[Task] = []  # not submitted yet
        self._jobs: dict[str, Any] = {}  # submitit's jobs, by the token of their task
        self._left: dict[str, float] = {}  # by token: when the job was first seen to have left the queue
        self._cancelled: set[str] = set()
        self._asked = 0.0  # when Slurm was asked for its queue

    @staticmethod
    def check() -> None:
        """Raise UserError if this machine can't submit jobs."""
        if find_spec("submitit") is None:
            raise UserError("--cluster slurm needs submitit: pip install 'simclr-suite[cluster]'")
        if missing := [name for name in ("sbatch", "srun", "squeue", "scancel") if shutil.which(name) is None]:
            raise UserError(
                f"--cluster slurm: there is no program {missing[0]} here: run the command where jobs are submitted, "
                f"such as on a login node"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the jobs that have not ended. Those that train save a checkpoint first."""
        self._cancel(*self._jobs)

    def start(self, task: Task) -> None:
        """See Engine.start. Tasks that start one after the other become one array of jobs."""
        self._new.append(task)

    def ended(self, seconds: float) -> list[tuple[str, Outcome | Lost]]:
        """See Engine.ended. Raises UserError if sbatch refuses the jobs."""
        self._submit()
        until = time.monotonic() + seconds
        while not (found := dict(self._lost()) | dict(self._answered())) and time.monotonic() < until:
            time.sleep(POLL_SECONDS)  # a task whose answer comes late can be in both
        for token in found:
            del self._jobs[token]
        return list(found.items())

    def cancel(self, token: str) -> None:
        """See Engine.cancel."""
        self._submit()
        self._cancel(token)
        self._cancelled.add(token)

    def _submit(self) -> None:
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        if not self._new:
            return
        try:
            with redirect_stderr(io.StringIO()), self._executor.batch():  # submitit prints what sbatch says
                jobs = [self._executor.submit(Attempt(task)) for task in self._new]
        except (FailedJobError, FailedSubmissionError) as error:
            reason = str(error).strip().splitlines()[-1].removeprefix("sbatch: ").removeprefix("error: ")
            raise UserError(f"sbatch refuses the jobs: {reason}. Change --cluster-option") from None
        self._jobs |= {task.token: job for task, job in zip(self._new, jobs, strict=True)}
        self._new = []

    def _answered(self) -> list[tuple[str, Outcome | Lost]]:
        """The tasks whose answers are there. Raises submitit's error if one is a traceback."""
        return [(token, job.result()) for token, job in self._jobs.items() if job.paths.result_pickle.exists()]

    def _lost(self) -> list[tuple[str, Outcome | Lost]]:
        """The tasks whose jobs left the queue so long ago that no answer will come."""
        now = time.monotonic()
        if now - self._asked > QUEUE_SECONDS:
            self._asked = now
            if (queued := in_queue()) is not None:
                gone = [token for token, job in self._jobs.items() if job.job_id not in queued]
                self._left = {token: self._left.get(token, now) for token in gone}
        late = {token for token, since in self._left.items() if now - since >= LOST_SECONDS}
        return [
            (token, Lost(f"job {job.job_id} of Slurm ended without a result (its output is in {job.paths.stdout})"))
            for token, job in self._jobs.items()
            if token in late | self._cancelled
        ]

    def _cancel(self, *tokens: str) -> None:
        if jobs := [self._jobs[token].job_id for token in tokens]:
            subprocess.run(["scancel", *jobs], capture_output=True, check=False)


def parse_option(text: str) -> tuple[str, str | bool]:
    """An option of sbatch, written as KEY=VALUE, or as KEY if it takes no value.

    Raises UserError unless it looks like one, and for those that this engine sets.
    """
    name, equals, value = text.partition("=")
    if not OPTION.fullmatch(name) or (equals and not value):
        raise UserError(
            f"--cluster-option '{text}': expected a long option of sbatch without its dashes, such as time=4:00:00"
        )
    if name in OURS:
        raise UserError(f"--cluster-option '{text}': {name} is fixed, because each run is one job: leave it out")
    return name, value if equals else True


def in_queue() -> set[str] | None:
    """The ids of the user's jobs that wait, run or end at this moment. None if Slurm doesn't say."""
    command = ["squeue", "--noheader", "--array", "--format=%i", "--user", getpass.getuser()]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return set(found.stdout.split()) if found.returncode == 0 else None


@dataclass(frozen=True)
class Attempt:
    """A task as a job of Slurm, which sends a signal before it ends a job. The task then stops, and saves a checkpoint.

    At the time limit, submitit puts the job back into the queue, and it continues from there. A job that Slurm itself
    puts back (it was preempted, or its machine died) is called again too.
    """

    task: Task

    def __call__(self) -> Outcome:
        requeue: Any = signal.getsignal(signal.SIGUSR2)  # submitit's
        watch = Stoppable()
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, watch.on_signal)
        outcome = None
        try:
            outcome = self.task(watch)
        except KeyboardInterrupt:  # it waited for another process
            if not watch.stop():
                raise
        if outcome is not None and (outcome.stopped is None or not watch.stop()):
            return outcome
        if signal.SIGUSR2 in watch.signals:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # scontrol, too, must not end before it has an answer
            with suppress(subprocess.SubprocessError):
                requeue(signal.SIGUSR2, None)  # calls `checkpoint`, and exits
        sys.exit(1)  # without an answer: unless Slurm puts it back into the queue, it is lost

    def checkpoint(self) -> Any:
        """What submitit puts back into the queue: the same, because the state is in the run's checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class Stoppable(Said):
    """Asks to stop after a signal."""

    def __init__(self) -> None:
        super().__init__()
        self.signals: set[int] = set()

    def on_signal(self, number: int, _: object) -> None:
        self.signals.add(number)

    def stop(self) -> bool:
        return bool(self.signals)
