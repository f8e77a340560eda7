"""What single tokens stand for."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models

from minisgl.tokenizer.text import TextTokenizer


@pytest.fixture(params=["smol", "qwen"])
def byte_level(request: pytest.FixtureRequest) -> TextTokenizer:
    tokenizer: TextTokenizer = request.getfixturevalue(request.param)
    return tokenizer


def read(tokenizer: TextTokenizer, text: str) -> list[tuple[str, bytes]]:
    return [tokenizer.read_token(token) for token in tokenizer.encode(text, add_special_tokens=False)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(text=st.text(st.characters(codec="utf-8") | st.sampled_from("aé你😀👩‍ \n<|im_end|>")))
def test_the_bytes_of_a_texts_tokens_are_the_text(byte_level: TextTokenizer, text: str) -> None:
    if byte_level.decode(byte_level.encode(text, add_special_tokens=False)) != text:
        return  # Qwen's normalizer composes characters, and special tokens are no text
    assert b"".join(data for _, data in read(byte_level, text)) == text.encode()


def test_parts_of_characters(qwen: TextTokenizer) -> None:
    pieces = read(qwen, "a 🫠\n")
    assert b"".join(data for _, data in pieces) == "a 🫠\n".encode()
    assert pieces[0] == ("a", b"a") and pieces[-1] == ("\n", b"\n")
    assert "\ufffd" in pieces[1][0] and pieces[1][1].startswith(b" \xf0")


def test_special_tokens_and_ids_past_the_vocabulary(qwen: TextTokenizer) -> None:
    assert qwen.read_token(151_645) == ("<|im_end|>", b"<|im_end|>")
    assert qwen.read_token(151_900) == ("", b"")


def test_tokens_of_the_sentencepiece_kind(llama: TextTokenizer) -> None:
    assert [text for text, _ in read(llama, "the Z")] == [" t", "he", " ", "Z"]
    assert read(llama, "é")[1:] == [("\ufffd", b"\xc3"), ("\ufffd", b"\xa9")]
    assert llama.read_token(2) == ("</s>", b"</s>")


def test_other_ways_of_writing_spaces() -> None:
    backend = Tokenizer(models.BPE(vocab={"_the": 0, "Ġthe": 1, "<0x41>": 2}, merges=[]))
    backend.decoder = decoders.Metaspace(replacement="_")
    backend.add_tokens([AddedToken("_x_", special=False)])
    tokenizer = TextTokenizer(backend, None)
    assert [tokenizer.read_token(token)[0] for token in range(4)] == [" the", "Ġthe", "<0x41>", "_x_"]
    backend = Tokenizer(models.BPE(vocab={"_the": 0}, merges=[]))
    assert TextTokenizer(backend, None).read_token(0) == ("_the", b"_the")
