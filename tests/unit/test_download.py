"""``python -m minisgl.download`` against a real HTTP server that speaks the hub's API."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from minisgl.download.failure import Failure, Status
from minisgl.download.hub import explain
from minisgl.download.target import MARKER, PARTS, Snapshot, Target
from support.hub import Hub, running

REPO = "tiny/model"
WEIGHTS = 1 << 20
WANTED = {"config.json": 21, "model.safetensors": WEIGHTS, "tokenizer.json": 14, "chat_template.jinja": 5}
LARGE = 40 << 20
"""Bytes of weights that come in several steps: the client writes 10 MiB at a time."""


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    """A repository with the files of a model, and some that a model does not need."""
    directory = tmp_path / "repository"
    (directory / "original").mkdir(parents=True)
    (directory / "config.json").write_text('{"model_type": "tiny"}'[:21])
    (directory / "model.safetensors").write_bytes(os.urandom(WEIGHTS))
    (directory / "tokenizer.json").write_text('{"version": 1}')
    (directory / "chat_template.jinja").write_text("hello")
    for name in ("README.md", "pytorch_model.bin", "consolidated.safetensors", "original/params.json"):
        (directory / name).write_text("not needed")
    return Hub(REPO, directory)


@pytest.fixture
def endpoint(hub: Hub) -> Iterator[str]:
    """The address that `hub` serves on."""
    with running(hub) as address:
        yield address


def start(endpoint: str, into: Path, *more: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start a download of `REPO`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return subprocess.Popen(
        [sys.executable, "-m", "minisgl.download", "--repo", REPO, "--into", str(into), *more],
        env={**clean, "HF_ENDPOINT": endpoint, "HF_HOME": str(into.parent / "home"), **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def fetch(endpoint: str, into: Path, *more: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Run a download; its exit status, its last report and its last line of error."""
    process = start(endpoint, into, *more, env=env)
    output, errors = process.communicate(timeout=120)
    return process.returncode, last_line(output), last_line(errors)


def last_line(text: str) -> str:
    """Empty for no line."""
    return (text.splitlines() or [""])[-1]


def visible(directory: Path) -> dict[str, int]:
    """The sizes of the files that are not hidden."""
    return {path.name: path.stat().st_size for path in directory.iterdir() if not path.name.startswith(".")}


def test_a_plain_directory_of_the_models_files(hub: Hub, endpoint: str, tmp_path: Path) -> None:
    into = tmp_path / "models" / REPO / "main"
    status, report, errors = fetch(endpoint, into)
    assert (status, errors) == (0, "")
    assert visible(into) == WANTED
    assert (into / "model.safetensors").read_bytes() == (hub.directory / "model.safetensors").read_bytes()
    assert json.loads(report) == {"bytes_done": sum(WANTED.values()), "bytes_total": sum(WANTED.values())}


def test_whole_means_no_request(hub: Hub, endpoint: str, tmp_path: Path) -> None:
    assert fetch(endpoint, tmp_path / "model")[0] == 0
    hub.requests.clear()
    status, report, _ = fetch(endpoint, tmp_path / "model", env={"HF_HUB_OFFLINE": "1"})
    assert (status, hub.requests) == (0, [])
    assert json.loads(report)["bytes_done"] == sum(WANTED.values())


@pytest.mark.parametrize("harm", ["gone", "short"])
def test_a_lost_file_is_fetched_again(hub: Hub, endpoint: str, tmp_path: Path, harm: str) -> None:
    into = tmp_path / "model"
    assert fetch(endpoint, into)[0] == 0
    hub.requests.clear()
    if harm == "gone":
        (into / "model.safetensors").unlink()
    else:
        (into / "model.safetensors").write_bytes(b"short")
    assert fetch(endpoint, into)[0] == 0
    assert visible(into) == WANTED
    fetched = [request for request in hub.requests if request.startswith("GET") and "/resolve/" in request]
    assert [request.rpartition("/")[2] for request in fetched] == ["model.safetensors"]


def test_a_commit_is_a_revision(hub: Hub, endpoint: str, tmp_path: Path) -> None:
    assert fetch(endpoint, tmp_path / "model", "--revision", hub.commit())[0] == 0
    assert visible(tmp_path / "model") == WANTED


def test_reports_say_how_far_it_is(hub: Hub, endpoint: str, tmp_path: Path) -> None:
    os.truncate(hub.directory / "model.safetensors", LARGE)
    hub.bytes_per_second = LARGE / 3
    process = start(endpoint, tmp_path / "model")
    output, _ = process.communicate(timeout=120)
    reports = [json.loads(line) for line in output.splitlines()]
    done = [report["bytes_done"] for report in reports]
    assert process.returncode == 0
    assert {report["bytes_total"] for report in reports} == {sum(WANTED.values()) - WEIGHTS + LARGE}
    assert done == sorted(done) and done[-1] == reports[-1]["bytes_total"]
    assert any(LARGE / 10 < value < LARGE for value in done)


def test_sigterm_ends_it_at_once_and_the_next_run_keeps_whole_files(
    hub: Hub, endpoint: str, tmp_path: Path
) -> None:
    into = tmp_path / "model"
    os.truncate(hub.directory / "model.safetensors", LARGE)
    hub.bytes_per_second = LARGE / 4
    process = start(endpoint, into)
    deadline = time.monotonic() + 60
    while Target(into).bytes_done({"tokenizer.json": 14, "model.safetensors": LARGE}) < LARGE / 5:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert time.monotonic() - began < 2
    assert process.returncode == 128 + signal.SIGTERM
    assert not (into / MARKER).exists()
    assert not (into / "model.safetensors").exists()

    hub.bytes_per_second = None
    hub.requests.clear()
    assert fetch(endpoint, into)[0] == 0
    assert visible(into) == WANTED | {"model.safetensors": LARGE}
    assert not any(request.endswith("tokenizer.json") for request in hub.requests)
    assert not list((into / PARTS).glob("*.incomplete"))


def test_two_at_once_are_one_download(hub: Hub, endpoint: str, tmp_path: Path) -> None:
    into = tmp_path / "model"
    hub.bytes_per_second = WEIGHTS
    processes = [start(endpoint, into) for _ in range(2)]
    reports = [last_line(process.communicate(timeout=120)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert visible(into) == WANTED
    assert sum(r.startswith("GET") and r.endswith("/model.safetensors") for r in hub.requests) == 1
    assert {json.loads(report)["bytes_done"] for report in reports} == {sum(WANTED.values())}


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["--revision", "v9"], 10, "tiny/model: no revision v9"),
        (["--repo", "tiny/other"], 11, "tiny/other: no such repository, or a private one; HF_TOKEN is not set"),
        (["--repo", "not a name"], 2, "--repo not a name"),
    ],
)
def test_what_is_not_there(endpoint: str, tmp_path: Path, arguments: list[str], status: int, text: str) -> None:
    code, _, error = fetch(endpoint, tmp_path / "model", *arguments)
    assert (code, error[: len("minisgl.download: error: ")]) == (status, "minisgl.download: error: ")
    assert text in error


def test_a_repository_that_a_token_cannot_find(endpoint: str, tmp_path: Path) -> None:
    code, _, error = fetch(endpoint, tmp_path / "model", "--repo", "tiny/other", env={"HF_TOKEN": "mine"})
    assert (code, "tiny/other: no such repository" in error) == (10, True)


def test_a_repository_without_a_model(hub: Hub, endpoint: str, tmp_path: Path) -> None:
    for name in WANTED:
        (hub.directory / name).unlink()
    code, _, error = fetch(endpoint, tmp_path / "model")
    assert (code, "tiny/model at main holds no model" in error) == (10, True)


@pytest.mark.parametrize("gated", [True, False])
def test_the_token_decides(hub: Hub, endpoint: str, tmp_path: Path, gated: bool) -> None:
    hub.token, hub.gated = "secret", gated
    code, _, error = fetch(endpoint, tmp_path / "model")
    assert (code, "HF_TOKEN is not set" in error, "gated" in error) == (11, True, gated)
    if gated:
        code, _, error = fetch(endpoint, tmp_path / "model", env={"HF_TOKEN": "wrong"})
        assert (code, "HF_TOKEN is not accepted" in error) == (11, True)
    assert fetch(endpoint, tmp_path / "model", env={"HF_TOKEN": "secret"})[0] == 0


def test_no_space(hub: Hub, endpoint: str, tmp_path: Path) -> None:
    os.truncate(hub.directory / "model.safetensors", 1 << 43)  # 8 TiB that take no space
    code, _, error = fetch(endpoint, tmp_path / "model")
    assert (code, "bytes more are needed" in error) == (12, True)
    assert visible(tmp_path / "model") == {}


def test_a_hub_that_is_down(hub: Hub, endpoint: str, tmp_path: Path) -> None:
    hub.failure = 500
    assert fetch(endpoint, tmp_path / "model")[0] == 13
    code, _, error = fetch("http://127.0.0.1:9", tmp_path / "model")
    assert (code, "minisgl.download: error: " in error) == (13, True)


def test_a_hub_that_is_down_makes_nothing_whole(hub: Hub, endpoint: str, tmp_path: Path) -> None:
    """The client takes a directory that is not empty for the model, when it cannot ask the hub."""
    into = tmp_path / "model"
    into.mkdir()
    (into / "config.json").write_text("{}")
    hub.failure = 503
    assert fetch(endpoint, into, "--revision", hub.commit())[0] == 13
    assert not (into / MARKER).exists()
    hub.failure = None
    assert fetch(endpoint, into)[0] == 0
    assert visible(into) == WANTED


def test_a_connection_that_breaks_is_taken_up_where_it_was(hub: Hub, endpoint: str, tmp_path: Path) -> None:
    weights = hub.directory / "model.safetensors"
    weights.write_bytes(os.urandom(LARGE))
    hub.cut_after = LARGE * 3 // 5
    assert fetch(endpoint, tmp_path / "model")[0] == 0
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == weights.read_bytes()
    assert sum(r.startswith("GET") and r.endswith("/model.safetensors") for r in hub.requests) == 2


def test_offline_without_a_model(endpoint: str, tmp_path: Path) -> None:
    code, _, error = fetch(endpoint, tmp_path / "model", env={"HF_HUB_OFFLINE": "1"})
    assert (code, "HF_HUB_OFFLINE is set" in error) == (13, True)


def test_wrong_usage(endpoint: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, error = fetch(endpoint, tmp_path / "file")
    assert (code, str(tmp_path / "file") in error) == (2, True)
    code, _, error = fetch(endpoint, tmp_path / "model", "--number", "3")
    assert (code, error) == (2, "minisgl.download: error: unrecognized arguments: --number 3")


def test_a_directory_with_another_model_is_left_alone(endpoint: str, tmp_path: Path) -> None:
    Target(tmp_path).finish(Snapshot("some/other", "main", "0" * 40, {}))
    code, _, error = fetch(endpoint, tmp_path)
    assert (code, "holds some/other at main already" in error) == (2, True)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "model.safetensors"), Status.NO_SPACE),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "model.safetensors"), Status.NO_SPACE),
        (RuntimeError("I/O error: No space left on device (os error 28)"), Status.NO_SPACE),
        (PermissionError(errno.EACCES, "Permission denied", "/models"), Status.USAGE),
        (OSError(errno.EIO, "Input/output error"), Status.UNREACHABLE),
        (TimeoutError("timed out"), Status.UNREACHABLE),
    ],
)
def test_errors_of_the_disk_and_the_network(error: Exception, status: Status) -> None:
    outer = ValueError("something else went wrong")
    outer.__cause__ = error
    assert explain(outer, REPO, "main").status == status


def test_a_marker_that_was_cut_short_is_none(tmp_path: Path) -> None:
    target = Target(tmp_path)
    (tmp_path / MARKER).write_text('{"repo": "ti')
    assert target.whole(REPO, "main") is None


def test_parts_count_and_go_when_their_download_is_dead(tmp_path: Path) -> None:
    (tmp_path / PARTS).mkdir(parents=True)
    part = tmp_path / PARTS / "model.abc.incomplete"
    part.write_bytes(b"x" * 100)
    target = Target(tmp_path)
    assert target.bytes_done({"model.safetensors": 1000}) == 100
    with target.locked():
        assert target.bytes_done({"model.safetensors": 1000}) == 0


def test_failures_are_one_line() -> None:
    failure = explain(RuntimeError("first\n\nsecond   line"), REPO, "main")
    assert isinstance(failure, Failure)
    assert str(failure) == "tiny/model: the hub did not answer well: first second line"
