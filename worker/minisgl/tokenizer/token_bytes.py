"""The bytes that each token stands for. Those of a text's tokens, one after the other, are the text in UTF-8.

A vocabulary writes bytes in one of two ways. Byte-level BPE (Radford et al. 2019, section 2.2) has a printable
character for every byte. Tokenizers of the SentencePiece kind (Kudo and Richardson 2018) write text as it is, but
spaces as U+2581, and bytes of characters that they do not know as ``<0x0A>``.
"""

from __future__ import annotations

import json
import re
from typing import Any

from tokenizers import Tokenizer

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_characters() -> dict[str, int]:
    """The byte of each character in byte-level BPE: printable ones of Latin-1 stand for themselves, U+0100 and its
    successors for the others in their order.
    """
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


class TokenBytes:
    """Of the tokens of one vocabulary."""

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        self._added = {token: added.content for token, added in backend.get_added_tokens_decoder().items()}
        state = json.loads(backend.decoder.__getstate__()) if backend.decoder is not None else {}
        decoders: list[dict[str, Any]] = state.get("decoders", [state])
        kinds = [decoder.get("type") for decoder in decoders]
        self._characters = byte_characters() if "ByteLevel" in kinds else {}
        self._has_bytes = "ByteFallback" in kinds
        self._spaces = [d["replacement"] for d in decoders if d.get("type") == "Metaspace"] + [
            d["pattern"]["String"]
            for d in decoders
            if d.get("type") == "Replace" and d["content"] == " " and "String" in d["pattern"]
        ]
        """Characters that stand for a space."""

    def __call__(self, token: int) -> bytes:
        """Empty for ids past the vocabulary. Added tokens, special ones too, are text."""
        if token in self._added:
            return self._added[token].encode()
        text: str = self._backend.id_to_token(token) or ""
        if self._characters and all(character in self._characters for character in text):
            return bytes(self._characters[character] for character in text)
        if self._has_bytes and (byte := BYTE.fullmatch(text)):
            return bytes([int(byte[1], 16)])
        for space in self._spaces:
            text = text.replace(space, " ")
        return text.encode()
