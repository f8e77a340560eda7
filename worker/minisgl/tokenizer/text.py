"""A model's tokenizer, read from its Hugging Face directory."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from minisgl.tokenizer.chat_template import CannotRender, ChatTemplate
from minisgl.tokenizer.template_source import read_template, read_tokenizer_config
from minisgl.tokenizer.token_bytes import TokenBytes
from minisgl.utils.errors import UserError


class TextTokenizer:
    """Text to token ids and back, and chats to text."""

    def __init__(self, backend: Tokenizer, template: ChatTemplate | None) -> None:
        backend.no_truncation()  # a saved tokenizer may carry the limits of its training
        backend.no_padding()
        self._backend = backend
        self._template = template
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self._size = max(vocabulary.values(), default=-1) + 1
        self._special = frozenset(
            token for token, added in backend.get_added_tokens_decoder().items() if added.special
        )
        self.longest_token = max(map(len, vocabulary), default=1)
        """Characters of the longest token: a text of n tokens has at most n times as many."""
        self._read: dict[int, tuple[str, bytes]] = {}
        """What `read_token` returned; the vocabulary bounds it."""

    @classmethod
    def load(cls, model_path: str) -> TextTokenizer:
        """Read the tokenizer and the chat template of a local directory. Raises `UserError`."""
        directory = Path(model_path)
        return cls(_load_backend(directory), _load_template(directory))

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids. `add_special_tokens` puts what the model wants around a plain text, such as a BOS token."""
        return list(self._backend.encode(text, add_special_tokens=add_special_tokens).ids)

    def render_chat(self, messages: list[dict[str, Any]], variables: dict[str, Any] | None = None) -> str:
        """The chat as the text to continue, special tokens included; `variables` are for the template.

        Raises `CannotRender`.
        """
        if self._template is None:
            raise CannotRender("this model has no chat template: use completions with a prompt instead")
        return self._template.render(messages, variables)

    def decode(self, token_ids: list[int]) -> str:
        """The text of `token_ids`, without special tokens; U+FFFD stands for bytes that are not UTF-8."""
        return self._backend.decode(token_ids, skip_special_tokens=True)

    def decode_all(self, token_ids: list[int]) -> str:
        """The same with special tokens."""
        return self._backend.decode(token_ids, skip_special_tokens=False)

    def names(self, token_ids: list[int]) -> list[str]:
        """What the vocabulary calls each token: its bytes in the tokenizer's own spelling. Empty past its end."""
        return [self._backend.id_to_token(token) or "" for token in token_ids]

    def read_token(self, token: int) -> tuple[str, bytes]:
        """A token by itself, special or not: as text, with U+FFFD for bytes that are not UTF-8, and its bytes."""
        found = self._read.get(token)
        if found is None:
            data = self._token_bytes(token)
            found = self._read[token] = data.decode(errors="replace"), data
        return found

    @cached_property
    def _token_bytes(self) -> TokenBytes:
        return TokenBytes(self._backend)

    def is_text(self, token: int) -> bool:
        """False for special tokens, and for ids past the vocabulary: a model's own size may be rounded up."""
        return token < self._size and token not in self._special


def _load_backend(directory: Path) -> Tokenizer:
    path = directory / "tokenizer.json"
    try:
        if path.is_file():
            return Tokenizer.from_file(str(path))
        # Only for directories in older formats: this import takes seconds.
        from transformers import AutoTokenizer  # noqa: PLC0415

        slow: Any = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
        backend: Tokenizer = slow.backend_tokenizer
        return backend
    except Exception as error:  # what both libraries raise has no common, narrower type
        reason = " ".join(str(error).split())
        what = "tokenizer.json" if path.is_file() else "no tokenizer.json, nor an older format of a tokenizer"
        raise UserError(f"{directory}: {what}: {reason}") from None


def _load_template(directory: Path) -> ChatTemplate | None:
    source = read_template(directory)
    if source is None:
        return None
    config = read_tokenizer_config(directory)
    tokens = {name: _token_text(value) for name, value in config.items() if name.endswith("_token")}
    return ChatTemplate(source, {name: text for name, text in tokens.items() if text is not None})


def _token_text(value: Any) -> str | None:
    """A special token in `tokenizer_config.json`: its text, or an object with its text and its flags."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None
