"""Why a download ended: the exit statuses, by which a caller decides what to do next."""

from __future__ import annotations

import errno
from enum import IntEnum


class Status(IntEnum):
    """Exit status of a download that failed. 1 is Python's own, for a defect of the program."""

    USAGE = 2
    """It can never work as it was called: a bad argument, or a directory that cannot be written to."""
    NOT_FOUND = 10
    """No such repository or revision, or no model in it."""
    NOT_AUTHORISED = 11
    """The repository is private or gated, and the token is missing or may not read it."""
    NO_SPACE = 12
    """The model does not fit where it should go."""
    UNREACHABLE = 13
    """The hub is not to be reached, or did not answer well. Worth another try."""


class Failure(Exception):
    """Ends the download with `status`; says in one line what was wrong and how to mend it."""

    def __init__(self, status: Status, text: str) -> None:
        super().__init__(text)
        self.status = status


NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR}


def disk_failure(error: BaseException) -> Failure | None:
    """The `Failure` that an error of the file system amounts to. None for another kind of error."""
    # Xet's client, which is not written in Python, has no error number for a full disk.
    if getattr(error, "errno", None) in NO_SPACE or "No space left on device" in str(error):
        return Failure(Status.NO_SPACE, "no space left on device")
    if isinstance(error, OSError) and error.errno in NOT_WRITABLE:
        return Failure(Status.USAGE, f"--into: {error.filename}: {error.strerror}")
    return None
