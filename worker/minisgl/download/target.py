"""The directory that a model is downloaded into: who may write to it, what is there, and whether it is whole."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from minisgl.download.failure import Failure, Status

MARKER = ".minisgl-complete.json"
LOCK = ".minisgl-download.lock"
PARTS = ".cache/huggingface/download"
"""Where the hub's client keeps what it has of a file, as ``*.incomplete``, until the file is whole."""

NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}
"""Errors of a file system that has no locks."""


@dataclass(frozen=True)
class Snapshot:
    """One revision of a repository, as the hub lists it."""

    repo: str
    revision: str
    """As it was asked for: a branch, a tag or a commit."""
    commit: str
    files: Mapping[str, int]
    """The size in bytes of each file that a model needs, by its name."""

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(self.files.values())


class Target:
    """The directory, which need not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def whole(self, repo: str, revision: str) -> Snapshot | None:
        """What the directory holds, if a download of this revision has ended and no file has gone since.

        A branch may have moved on: a model that is there is not replaced under the feet of who reads it. Raises
        `Failure` when the directory was filled with anything else.
        """
        try:
            snapshot = Snapshot(**json.loads((self.path / MARKER).read_bytes()))
        except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
            return None
        if (snapshot.repo, snapshot.revision) != (repo, revision):
            raise Failure(Status.USAGE, f"{self.path}: holds {snapshot.repo} at {snapshot.revision} already")
        return snapshot if self.lacks(snapshot.files) is None else None

    def lacks(self, files: Mapping[str, int]) -> str | None:
        """The first of `files` that is missing or of another size."""
        return next((name for name, size in files.items() if self._length(self.path / name) != size), None)

    def bytes_done(self, files: Mapping[str, int]) -> int:
        """Bytes that are on the disk, of whole files and of parts."""
        whole = sum(self._length(self.path / name) or 0 for name in files)
        parts = sum(self._written(path) for path in (self.path / PARTS).glob("*.incomplete"))
        return min(whole + parts, sum(files.values()))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Make the directory, and keep every other download out of it; waits until they have ended.

        The lock goes with its process, however that ends. On a file system without locks there is none: the hub's
        client gives each process parts of its own, so two downloads waste each other's work but do no harm.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / LOCK).open("wb") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX)
                # Of a download that was ended; the next one would start those files again.
                for part in (self.path / PARTS).glob("*.incomplete"):
                    part.unlink(missing_ok=True)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
            yield

    def check_space(self, files: Mapping[str, int]) -> None:
        """Raise `Failure` when what is missing of `files` does not fit on the disk."""
        needed = sum(files.values()) - self.bytes_done(files)
        free = shutil.disk_usage(self.path).free
        if needed > free:
            raise Failure(
                Status.NO_SPACE, f"{self.path}: {needed} bytes more are needed, but only {free} bytes are free"
            )

    def remove_broken(self, files: Mapping[str, int]) -> None:
        """Remove those of `files` that have another size: the hub's client would take them for whole."""
        for name, size in files.items():
            if self._length(self.path / name) not in (None, size):
                (self.path / name).unlink()

    def finish(self, snapshot: Snapshot) -> None:
        """Note that the directory is whole. The files reach the disk first: a crash must not leave a lone note."""
        for name in snapshot.files:
            with (self.path / name).open("rb") as stream:
                os.fsync(stream.fileno())
        draft = self.path / f"{MARKER}.part"
        with draft.open("w") as stream:
            json.dump(asdict(snapshot), stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(self.path / MARKER)

    def _length(self, path: Path) -> int | None:
        try:
            return path.stat().st_size
        except OSError:
            return None

    def _written(self, path: Path) -> int:
        """Bytes of a part that are there: it may be made at its full length first, and filled later."""
        try:
            status = path.stat()
        except FileNotFoundError:  # it has just become a file
            return 0
        return min(status.st_size, status.st_blocks * 512)
