"""The bytes of tokens are those of the text that they are decoded to."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models

from minisgl.grammar.vocabulary import read_vocabulary
from minisgl.utils.errors import UserError

TEXT = "Größe: 12 €\n\tdef f(x): return x  # 漢字 🙂\r\n"


@pytest.mark.parametrize("which", ["smol_path", "qwen_path"])
def test_byte_level(which: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(which)
    tokens, special = read_vocabulary(path)
    ids = Tokenizer.from_file(f"{path}/tokenizer.json").encode(TEXT, add_special_tokens=False).ids
    assert b"".join(tokens[token] for token in ids) == TEXT.encode()
    assert special and not special & set(ids)


def test_tokens_that_were_added_as_text_are_text(qwen_path: str) -> None:
    tokens, special = read_vocabulary(qwen_path)
    backend = Tokenizer.from_file(f"{qwen_path}/tokenizer.json")
    for text in ("<tool_call>", "</tool_call>", "<think>", "</think>"):
        token = backend.token_to_id(text)
        assert tokens[token] == text.encode() and token not in special
    assert backend.token_to_id("<|im_end|>") in special


def test_byte_fallback(llama_backend: Tokenizer, tmp_path: Path) -> None:
    llama_backend.save(str(tmp_path / "tokenizer.json"))
    tokens, special = read_vocabulary(str(tmp_path))
    ids = llama_backend.encode("the é, a", add_special_tokens=False).ids
    assert b"".join(tokens[token] for token in ids) == " the é, a".encode()
    assert special == {0, 1, 2}


def test_a_tokenizer_that_is_no_use_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.json: a grammar needs this file"):
        read_vocabulary(str(tmp_path))
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    backend.decoder = decoders.WordPiece()
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"tokenizers whose tokens are bytes"):
        read_vocabulary(str(tmp_path))
