"""What is asked of the Hugging Face Hub, by its own client, and what its errors mean."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import disable_progress_bars, filter_repo_objects

from minisgl.download.failure import Failure, Status, disk_failure
from minisgl.download.target import Snapshot
from minisgl.models.checkpoint import HUB_FILES, NOT_HUB_FILES

ANSWER_SECONDS = 30.0
"""How long the hub may take to answer a question."""


def look_up(repo: str, revision: str) -> Snapshot:
    """What `repo` holds at `revision`. Raises `Failure`."""
    try:
        api = HfApi()
        commit = str(api.model_info(repo, revision=revision, timeout=ANSWER_SECONDS).sha)
        listed = api.list_repo_tree(repo, revision=commit)
        sizes = {entry.path: entry.size for entry in listed if isinstance(entry, RepoFile)}
    except Exception as error:  # the client raises dozens of kinds, its HTTP library's among them
        raise explain(error, repo, revision) from error
    names = filter_repo_objects(sizes, allow_patterns=HUB_FILES, ignore_patterns=NOT_HUB_FILES)
    files = {name: sizes[name] for name in names}
    if not files:
        raise Failure(Status.NOT_FOUND, f"{repo} at {revision} holds no model: no {', '.join(HUB_FILES)}")
    return Snapshot(repo, revision, commit, files)


def fetch(snapshot: Snapshot, directory: Path) -> None:
    """Download the files of `snapshot` that `directory` does not hold yet. Raises `Failure`.

    The client may content itself with the files of a directory that is not empty, when the hub has gone: whether
    they are all there is for the caller to see.
    """
    disable_progress_bars()
    try:
        snapshot_download(
            snapshot.repo,
            revision=snapshot.commit,
            local_dir=directory,
            allow_patterns=HUB_FILES,
            ignore_patterns=NOT_HUB_FILES,
        )
    except Exception as error:
        raise explain(error, snapshot.repo, snapshot.revision) from error


def explain(error: BaseException, repo: str, revision: str) -> Failure:
    """The `Failure` that an error of the hub's client, or what caused it, amounts to."""
    causes = list(_causes(error))
    for cause in causes:
        failure = _explain_one(cause, repo, revision)
        if failure is not None:
            return failure
    text = " ".join(str(causes[-1]).split()) or type(causes[-1]).__name__
    return Failure(Status.UNREACHABLE, f"{repo}: the hub did not answer well: {text[:300]}")


def _explain_one(error: BaseException, repo: str, revision: str) -> Failure | None:
    if isinstance(error, OfflineModeIsEnabled):
        return Failure(Status.UNREACHABLE, f"{repo}: not downloaded yet, and HF_HUB_OFFLINE is set")
    if isinstance(error, HFValidationError):
        return Failure(Status.USAGE, f"--repo {repo}: {' '.join(str(error).split())}")
    if isinstance(error, RevisionNotFoundError):
        return Failure(Status.NOT_FOUND, f"{repo}: no revision {revision}")
    if isinstance(error, HfHubHTTPError):
        return _explain_answer(error, repo)
    return disk_failure(error)


def _explain_answer(error: HfHubHTTPError, repo: str) -> Failure:
    status = error.response.status_code
    token = "HF_TOKEN is not accepted" if os.environ.get("HF_TOKEN") else "HF_TOKEN is not set"
    if isinstance(error, GatedRepoError):
        text = f"{repo} is gated: its terms must be accepted on the hub, and a token given; {token}"
        return Failure(Status.NOT_AUTHORISED, text)
    if status == 401:
        return Failure(Status.NOT_AUTHORISED, f"{repo}: no such repository, or a private one; {token}")
    if status == 403:
        return Failure(Status.NOT_AUTHORISED, f"{repo}: the hub refuses it (403); {token}")
    if status in (404, 410):
        return Failure(Status.NOT_FOUND, f"{repo}: no such repository, or the token may not see it")
    return Failure(Status.UNREACHABLE, f"{repo}: the hub answers with status {status}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
