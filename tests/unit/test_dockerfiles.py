"""What can be said of the images without building them."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

REPOSITORY = Path(__file__).parent.parent.parent
DOCKERFILES = ["Dockerfile.operator", "Dockerfile.worker"]
EXTRAS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def lock(name: str) -> dict[str, str]:
    """The pinned version of each package in a lock file."""
    lines = (REPOSITORY / name).read_text().splitlines()
    pins = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(package): version for package, version in pins}


def pulled_in(extra: str) -> set[str]:
    """Every package that the extra installs, by what is installed here."""
    found: set[tuple[str, frozenset[str]]] = set()
    todo = [Requirement(text) for text in EXTRAS[extra]]
    while todo:
        requirement = todo.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in found:
            continue
        found.add(key)
        for needed in map(Requirement, distribution(requirement.name).requires or []):
            extras = requirement.extras or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": name}) for name in extras):
                todo.append(needed)
    return {name for name, _ in found}


def stages(dockerfile: str) -> list[str]:
    """The text of each stage, without comments and with long lines joined."""
    text = re.sub(r"^#.*\n", "", (REPOSITORY / dockerfile).read_text(), flags=re.M)
    return re.split(r"^FROM ", re.sub(r"\\\n\s*", "", text), flags=re.M)[1:]


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_hadolint_has_nothing_to_say(dockerfile: str) -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    result = subprocess.run([hadolint, REPOSITORY / dockerfile], check=False, capture_output=True, text=True)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


@pytest.mark.parametrize("extra", ["operator", "worker"])
def test_the_lock_pins_what_the_extra_pulls_in_and_no_more(extra: str) -> None:
    # A build of torch for CUDA pulls in its libraries, which are pinned for the image that has them.
    others = set(lock("requirements-cuda.lock")) if extra == "worker" else set()
    assert pulled_in(extra) - others == set(lock(f"requirements-{extra}.lock"))


@pytest.mark.parametrize("extra", ["operator", "worker"])
def test_the_lock_satisfies_the_extra(extra: str) -> None:
    pins = lock(f"requirements-{extra}.lock")
    for requirement in map(Requirement, EXTRAS[extra]):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


@pytest.mark.parametrize("name", ["requirements-operator.lock", "requirements-worker.lock"])
def test_images_hold_the_versions_that_are_tested(name: str) -> None:
    tested, pins = lock("requirements.lock"), lock(name)
    both = set(pins) & set(tested)
    assert {"pydantic", "prometheus-client"} <= both
    assert {package: pins[package] for package in both} == {package: tested[package] for package in both}


def test_the_cuda_lock_fits() -> None:
    pins = lock("requirements-cuda.lock")
    assert not set(pins) & set(lock("requirements-worker.lock"))
    assert len({pins[f"flashinfer-{part}"] for part in ("python", "cubin", "jit-cache")}) == 1
    for requirement in map(Requirement, EXTRAS["gpu"]):
        if requirement.name != "minisgl":
            assert requirement.specifier.contains(Version(pins[requirement.name])), requirement


def test_the_operator_has_no_tensors() -> None:
    assert not {"torch", "numpy", "transformers", "triton"} & set(lock("requirements-operator.lock"))
    assert "worker/" not in "".join(stages("Dockerfile.operator"))


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_the_build_tool_is_the_tested_one(dockerfile: str) -> None:
    pinned = re.findall(r"setuptools==(\S+)", (REPOSITORY / dockerfile).read_text())
    assert pinned == [lock("requirements.lock")["setuptools"]]


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_what_is_copied_is_there_and_sent_to_the_builder(dockerfile: str) -> None:
    sent = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [
        source
        for stage in stages(dockerfile)
        for arguments in re.findall(r"^COPY (?!--from)(.*)", stage, re.M)
        for source in arguments.split()[:-1]
    ]
    assert len(copied) >= 4
    assert set(copied) <= sent
    assert [source for source in copied if not (REPOSITORY / source).exists()] == []


@pytest.mark.parametrize(
    ("dockerfile", "stage", "command"),
    [
        ("Dockerfile.operator", "${BASE}", '["minisgl-operator"]'),
        ("Dockerfile.worker", "${BASE} AS cpu", '["python", "-m", "minisgl"]'),
        ("Dockerfile.worker", "${CUDA_BASE} AS cuda", '["python", "-m", "minisgl"]'),
    ],
)
def test_images_run_their_program_as_a_user_with_a_name(dockerfile: str, stage: str, command: str) -> None:
    (text,) = [text for text in stages(dockerfile) if text.splitlines()[0] == stage]
    assert "useradd --uid 65532 " in text
    assert re.findall(r"^USER (.*)", text, re.M) == ["65532:65532"]
    assert re.findall(r"^ENTRYPOINT (.*)", text, re.M) == [command]


def test_the_default_worker_is_for_cuda() -> None:
    assert stages("Dockerfile.worker")[-1].startswith("${CUDA_BASE} AS cuda")
