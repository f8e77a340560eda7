"""The bytes of tokens are those of the text that they are decoded to."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models

from minisgl.grammar.vocabulary import read_vocabulary
from minisgl.tokenizer.text import TextTokenizer
from minisgl.utils.errors import UserError

TEXT = "Größe: 12 €\n\tdef f(x): return x  # 漢字 🙂\r\n"


@pytest.mark.parametrize("which", ["smol", "qwen"])
def test_byte_level(which: str, request: pytest.FixtureRequest) -> None:
    tokens, special = read_vocabulary(request.getfixturevalue(f"{which}_path"))
    ids = request.getfixturevalue(which).encode(TEXT, add_special_tokens=False)
    assert b"".join(tokens[token] for token in ids) == TEXT.encode()
    assert special and not special & set(ids)


def test_tokens_that_were_added_as_text_are_text(qwen: TextTokenizer, qwen_path: str) -> None:
    tokens, special = read_vocabulary(qwen_path)
    for text in ("<tool_call>", "</tool_call>", "<think>", "</think>"):
        (token,) = qwen.encode(text, add_special_tokens=False)
        assert tokens[token] == text.encode() and token not in special
    assert set(qwen.encode("<|im_end|>", add_special_tokens=False)) < special


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
