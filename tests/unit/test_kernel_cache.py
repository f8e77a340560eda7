"""Where compiled kernels are kept, and the command that fills the place; what it builds is in tests/gpu."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from minisgl.utils.errors import UserError
from minisgl.utils.kernel_cache import use_kernel_cache
from support.tiny_models import make_tiny_model


def test_all_libraries_are_pointed_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    environ = {"TRITON_CACHE_DIR": "/elsewhere"}
    assert use_kernel_cache("a/b", environ) == tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b").is_dir()
    assert environ == {
        "TRITON_CACHE_DIR": f"{tmp_path}/a/b/triton",
        "FLASHINFER_WORKSPACE_BASE": f"{tmp_path}/a/b",
        "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR": f"{tmp_path}/a/b/flash_attn",
    }


def test_kernels_in_a_read_only_image_are_copied_to_where_others_can_be_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, own = tmp_path / "image", tmp_path / "own"
    (image / "triton" / "KEY").mkdir(parents=True)
    (image / "triton" / "KEY" / "kernel.cubin").write_bytes(b"code")
    monkeypatch.setattr(os, "access", lambda path, mode: not (path == image and mode == os.W_OK))
    environ = {"TRITON_CACHE_DIR": str(own), "FLASHINFER_WORKSPACE_BASE": "/cache"}
    for _ in range(2):  # also when it was done at an earlier start
        use_kernel_cache(str(image), environ)
    assert environ == {"TRITON_CACHE_DIR": str(own), "FLASHINFER_WORKSPACE_BASE": "/cache"}
    assert (own / "KEY" / "kernel.cubin").read_bytes() == b"code"


def test_a_place_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--kernel-cache .*/file/cache: cannot be used: Not a directory"):
        use_kernel_cache(str(tmp_path / "file" / "cache"), {})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required: command"),
        (["forge"], "invalid choice: 'forge'"),
        (["build"], "required: --model"),
        (["build", "--model", "x", "--tpp", "2"], "--tpp"),
        (["build", "--model", "x", "--device", "cpu"], "name the directory to fill with --kernel-cache DIR"),
        (["build", "--model", "x", "--device", "cpu", "--kernel-cache", "/k"], "compiled for the GPU of this"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line(arguments: list[str], words: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "MINISGL_KERNEL_CACHE"}
    command = [sys.executable, "-X", "importtime", "-m", "minisgl.kernel", *arguments]
    result = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    lines = [line for line in result.stderr.splitlines() if not line.startswith("import time:")]
    assert (result.returncode, result.stdout) == (2, "")
    assert words in lines[-1]
    assert lines[-1].startswith("minisgl.kernel: error: ")
    assert not any(line.endswith(" torch") for line in result.stderr.splitlines())


def test_a_worker_makes_the_place(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    model = make_tiny_model("llama", tmp_path / "model")
    command = [sys.executable, "-m", "minisgl", "--model", str(model), "--device", "cpu"]
    environment = os.environ | {"MINISGL_KERNEL_CACHE": str(tmp_path / "file" / "k")}
    result = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert result.returncode == 2
    assert "cannot be used: Not a directory" in result.stderr
