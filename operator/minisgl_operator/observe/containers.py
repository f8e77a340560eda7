"""What is wrong with one container, by its status as the kubelet writes it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from minisgl_operator.observe.times import parse_time

DOWNLOAD = "download"
"""The container that downloads the model, in a worker pod and in the download Job's."""
WORKER = "worker"
USER_ERROR = 2
"""Exit status of a worker that can never work as it was configured."""
DOWNLOAD_FAILURES = {10: "NotFound", 11: "AuthFailed", 12: "NoSpace", 13: "HubUnreachable"}

RETRY = timedelta(seconds=30)
"""A new attempt to download counts once it has lasted this long: until then it may fail as the one before."""
BACK_OFF_RESET = timedelta(minutes=10)
"""After a run of this length the kubelet restarts a container at once again."""
MAX_DETAIL = 512

_PULL_REASONS = {
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
    "RegistryUnavailable",
    "SignatureValidationFailed",
}
_NORMAL_REASONS = {"", "ContainerCreating", "PodInitializing"}
_BACK_OFF = re.compile(r'^Back-off pulling image "[^"]*":\s*(ErrImagePull:\s*)?')
_ERROR_LINE = re.compile(r"^minisgl(?:\.[a-z.]+)?: error: (.+)$", re.MULTILINE)
_JSON_LINE = re.compile(r"^\{.*\}$", re.MULTILINE)
_LOG_TIME = re.compile(r"^(\d{4}-\d\d-\d\d[T ])?\d\d:\d\d:\d\d\S*\s+")
_OPTION = re.compile(r"(?<![^\s'\"(])(--[a-z][a-z-]*|MINISGL_[A-Z_]+)")


@dataclass(frozen=True)
class Failure:
    """What makes a condition of this type unsatisfied."""

    type: Literal["Degraded", "ModelCached", "ConfigValid"]
    reason: str
    message: str


def container_failure(status: dict[str, Any], image: str, now: datetime) -> Failure | None:
    """None while the container runs well, is about to start, or has done its work."""
    state = status.get("state") or {}
    waiting = state.get("waiting") or {}
    reason = waiting.get("reason", "")
    if reason in _PULL_REASONS:
        # The kubelet alternates between the error and backing off from it; both are told in the same words.
        detail = _BACK_OFF.sub("", waiting.get("message", "")).strip()
        # The detail names the image: the container's own, or the one that the model's volume is made of.
        return Failure("Degraded", "ImagePullError", f"{status['name']}: cannot pull: {clipped(detail) or image}")
    if reason not in _NORMAL_REASONS and reason != "CrashLoopBackOff":
        return Failure("Degraded", reason, _joined(status["name"], waiting.get("message", "")))
    end = state.get("terminated") or (status.get("lastState") or {}).get("terminated")
    if end is None or _recovered(status, end, now):
        return None
    return _failed_run(status, end, in_back_off=reason == "CrashLoopBackOff")


def _recovered(status: dict[str, Any], end: dict[str, Any], now: datetime) -> bool:
    """Whether what ended the last run is over."""
    state = status.get("state") or {}
    if status["name"] != WORKER and end["exitCode"] == 0:
        return True
    if "running" not in state:
        return False
    if status["name"] == WORKER:
        return bool(status.get("started") or status.get("ready"))
    return now - parse_time(state["running"].get("startedAt")) > RETRY


def _failed_run(status: dict[str, Any], end: dict[str, Any], *, in_back_off: bool) -> Failure:
    code = int(end["exitCode"])
    log = end.get("message") or ""
    what = f"{status['name']} {_how(code)}"
    if end.get("reason") == "OOMKilled":
        return Failure("Degraded", "OOMKilled", f"{status['name']} was killed: out of memory")
    if status["name"] == DOWNLOAD:
        return Failure("ModelCached", DOWNLOAD_FAILURES.get(code, "DownloadFailed"), error_text(log) or what)
    if status["name"] == WORKER and code == USER_ERROR:
        text = error_text(log) or what
        return Failure("ConfigValid", _config_reason(text), text)
    if in_back_off or _crash_loops(status, end):
        return Failure("Degraded", "CrashLoopBackOff", _joined(f"{what}, again and again", error_text(log)))
    return Failure("Degraded", "EngineDied", _joined(what, error_text(log)))


def _crash_loops(status: dict[str, Any], end: dict[str, Any]) -> bool:
    """Whether the kubelet backed off before the present run, which would otherwise hide it."""
    lasted = parse_time(end.get("finishedAt")) - parse_time(end.get("startedAt"))
    return int(status.get("restartCount", 0)) > 1 and lasted < BACK_OFF_RESET


def _config_reason(text: str) -> str:
    option = _OPTION.search(text)
    if option is None or option[1] == "--model":
        return "InvalidModel"
    return "TensorParallelMismatch" if option[1] == "--tp" else "InvalidEngineOption"


def error_text(log: str) -> str:
    """The one line that says what was wrong: the last error of our own programs, or the last line of any."""
    log = _JSON_LINE.sub(_message, log)
    errors = _ERROR_LINE.findall(log)
    if errors:
        return clipped(str(errors[-1]).strip())
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return clipped(_LOG_TIME.sub("", lines[-1])) if lines else ""


def _message(line: re.Match[str]) -> str:
    """Of a line that a worker with ``--log-format=json`` wrote."""
    try:
        return str(json.loads(line[0])["message"])
    except (ValueError, KeyError):
        return line[0]


def clipped(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_DETAIL else text[: MAX_DETAIL - 1] + "…"


def _how(code: int) -> str:
    return f"was killed by signal {code - 128}" if code > 128 else f"exited with status {code}"


def _joined(what: str, detail: str) -> str:
    return f"{what}: {clipped(detail)}" if detail else what
