"""What an error of a tracking store means: whether it may pass, whether what was refused is kept, and what to do."""

from __future__ import annotations

import errno
import re
import sqlite3

from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from simclr.errors import RunFailed

REMEDIES = {  # by what a database, MLflow or the network says
    "disk is full": ". Free some space there",
    "disk I/O error": ". Free some space there",  # what SQLite says if it can't make the files beside a database
    "No space left": ". Free some space there",
    "locked": ". Close the program that is using the database",
    "readonly": ". Make the folder writable, or set SIMCLR_HOME to another one",
    "not a database": ". It is damaged, or of another program: restore a copy of it, or use another one",
    "malformed": ". It is damaged: restore a copy of it, or use another one",
    "Connection refused": ". Start the server, or change MLFLOW_TRACKING_URI",
    "Name or service not known": ". Check the host in MLFLOW_TRACKING_URI",
    "Permission denied": ". Make it writable, and run the command again",
    "Current state is deleted": " It was deleted in MLflow: restore it there, and run the command again",
}
LASTING = ("disk is full", "disk I/O error", "No space left", "readonly", "no such")  # waiting does not help
MENDABLE = ("Current state is deleted", "[Errno")  # refusals that end when somebody removes their cause


class Refused(RunFailed):
    """The store will never do what it was asked, however often that is repeated."""


def first_line(error: Exception) -> str:
    """The first line of an error of MLflow or of a database, without the SQL that led to it or the layers of HTTP."""
    error = getattr(error.__cause__ or error, "orig", None) or error
    text = (str(error).splitlines() or [type(error).__name__])[0]
    unreachable = re.search(r"Max retries exceeded.*\[Errno -?\d+\] ([^\"')]+)", text)
    broken = re.search(r"Max retries exceeded.*too many (5\d\d) error responses", text)
    if broken:
        return f"the server answers with an error {broken[1]}, perhaps because its database does not respond"
    return unreachable[1] if unreachable else text


def remedy(reason: str) -> str:
    """What to do about a reason, as the end of its sentence. Empty if there is nothing that would always help."""
    return next((remedy for part, remedy in REMEDIES.items() if part in reason), "")


def is_lasting(reason: str) -> bool:
    """Whether waiting would not help."""
    return any(text in reason for text in LASTING)


def is_mendable(reason: str) -> bool:
    """Whether an entry that was refused for this reason may be accepted later, so that it must be kept."""
    return any(text in reason for text in MENDABLE)


def is_duplicate(error: Exception) -> bool:
    """Whether a database refused a row because it has one with the same key."""
    return any(text in str(error) for text in ("UNIQUE constraint", "unique constraint", "Duplicate entry"))


def may_pass(error: Exception) -> bool:
    """Whether a call may succeed later: the server does not respond, the database is locked, or the disk is full."""
    if isinstance(error, MlflowException):
        status: int = error.get_http_status_code()  # type: ignore[no-untyped-call]
    elif isinstance(error, OSError) and error.filename is not None:  # of a file on this machine
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    elif isinstance(error, OSError):  # the errors of requests are among these
        status = getattr(getattr(error, "response", None), "status_code", 500)
    else:
        status = 500 if isinstance(error, SQLAlchemyError | sqlite3.Error) else 400
    return status >= 500 or status in (401, 403, 408, 429)  # a new password may be set
