"""The bytes that each token stands for, from a model's `tokenizer.json`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from minisgl.utils.errors import UserError


class Vocabulary(NamedTuple):
    tokens: list[bytes]
    """By token id; empty where an id is not used."""
    special: frozenset[int]
    """Tokens that are no text."""


class _AddedToken(msgspec.Struct):
    id: int
    content: str
    special: bool = False


class _Model(msgspec.Struct):
    vocab: dict[str, int] | list[tuple[str, float]]


class _File(msgspec.Struct):
    model: _Model
    decoder: dict[str, Any] | None = None
    added_tokens: list[_AddedToken] = []


def read_vocabulary(directory: str) -> Vocabulary:
    """Read the tokenizer of a local Hugging Face directory. Raises `UserError` when its tokens are not bytes.

    A token that was added as text, such as Qwen's ``<tool_call>``, is its text, as it is for the detokenizer.
    """
    path = Path(directory) / "tokenizer.json"
    try:
        file = msgspec.json.decode(path.read_bytes(), type=_File)
    except (OSError, msgspec.DecodeError) as error:
        raise UserError(f"{path}: a grammar needs this file: {error}") from None
    vocab = file.model.vocab
    ids = vocab if isinstance(vocab, dict) else {piece: index for index, (piece, _) in enumerate(vocab)}
    size = max([*ids.values(), *(token.id for token in file.added_tokens)], default=-1) + 1
    tokens = [b""] * size
    decoders = list(_decoders(file.decoder))
    kinds = {decoder.get("type") for decoder in decoders}
    if "ByteLevel" in kinds:
        _fill_byte_level(tokens, ids)
    elif "ByteFallback" in kinds:
        space = next((d["pattern"]["String"] for d in decoders if d.get("content") == " "), " ")
        _fill_byte_fallback(tokens, ids, space)
    else:
        raise UserError(f"{path}: grammars are for tokenizers whose tokens are bytes (ByteLevel, ByteFallback)")
    for token in file.added_tokens:
        tokens[token.id] = token.content.encode()
    return Vocabulary(tokens, frozenset(token.id for token in file.added_tokens if token.special))


def _decoders(decoder: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if decoder is not None:
        yield decoder
        for part in decoder.get("decoders", []):
            yield from _decoders(part)


def _fill_byte_level(tokens: list[bytes], ids: dict[str, int]) -> None:
    """GPT-2's alphabet: a visible character of Latin-1 is its own byte, the other bytes follow from U+0100 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    table = {0x100 + index: chr(byte) for index, byte in enumerate(hidden)}
    for piece, token in ids.items():
        try:
            tokens[token] = piece.translate(table).encode("latin-1")
        except UnicodeEncodeError:  # of no use to any text, unless it is an added token
            continue


def _fill_byte_fallback(tokens: list[bytes], ids: dict[str, int], space: str) -> None:
    """SentencePiece's: text with another character for the space, and ``<0x0A>`` for a byte."""
    for piece, token in ids.items():
        is_byte = len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")
        tokens[token] = bytes([int(piece[3:5], 16)]) if is_byte else piece.replace(space, " ").encode()
