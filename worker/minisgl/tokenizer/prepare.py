"""What a tokenizer worker decides about one request: what the scheduler gets, or why the client gets an error."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import msgspec

from minisgl.grammar import behind_prompt
from minisgl.message import NewRequest, Rejected, Text, TextToTokens, TokenizeRequest, Tokens, TokensToText
from minisgl.tokenizer.chat_template import CannotRender

if TYPE_CHECKING:
    from minisgl.tokenizer.text import TextTokenizer

CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
_THOUGHT = "<think>"
_LONGEST_OPENING = 8
"""Tokens of the tag and of the white space behind it."""


def prepare(tokenizer: TextTokenizer, request: TokenizeRequest) -> NewRequest | Rejected:
    """Tokenize a request and check it against the limits; sets `max_tokens` and `seed` when they are open."""
    limit = request.max_seq_len
    field = "prompt" if request.messages is None else "messages"

    def reject(message: str, *, param: str = field, code: str | None = None) -> Rejected:
        return Rejected(uid=request.uid, message=message, param=param, code=code)

    if request.token_ids is not None:
        ids, complete = request.token_ids, True
    else:
        try:
            messages, variables = request.messages, request.template
            text = request.text if messages is None else tokenizer.render_chat(messages, variables)
        except CannotRender as error:
            return reject(str(error), param=error.param)
        text = text or ""
        if len(text) > limit * tokenizer.longest_token:
            return reject(
                f"the prompt has {len(text)} characters, and the context length is {limit} tokens "
                f"of at most {tokenizer.longest_token} characters each",
                code=CONTEXT_LENGTH_EXCEEDED,
            )
        # A template writes the special tokens itself.
        ids, complete = _encode(tokenizer, text, limit, add_special_tokens=request.messages is None)

    count = f"{len(ids)}" if complete else f"more than {len(ids)}"
    if not ids:
        return reject("the prompt is empty: it must have at least one token")
    if len(ids) >= limit:
        return reject(
            f"the prompt has {count} tokens, which leaves no room for an answer: "
            f"prompt and answer share a context length of {limit} tokens",
            code=CONTEXT_LENGTH_EXCEEDED,
        )
    wrong = _first_outside(ids, request.vocab_size)
    if wrong is not None:
        return reject(f"token id {wrong} is outside the vocabulary: ids are 0 to {request.vocab_size - 1}")
    max_tokens = limit - len(ids) if request.params.max_tokens is None else request.params.max_tokens
    if len(ids) + max_tokens > limit:
        return reject(
            f"{request.limit_name} is {max_tokens} and the prompt has {len(ids)} tokens: "
            f"together {len(ids) + max_tokens}, but the context length is {limit} tokens",
            param=request.limit_name,
            code=CONTEXT_LENGTH_EXCEEDED,
        )
    seed = secrets.randbits(63) if request.params.seed is None else request.params.seed
    opened = 0 if request.messages is None else _opened_thought(tokenizer, ids)
    grammar = behind_prompt(request.params.grammar, opened=opened > 0)
    params = msgspec.structs.replace(request.params, max_tokens=max_tokens, seed=seed, grammar=grammar)
    shown = len(ids) if request.echo else opened
    return NewRequest(uid=request.uid, token_ids=ids, params=params, copies=request.copies, shown=shown)


def _opened_thought(tokenizer: TextTokenizer, ids: list[int]) -> int:
    """Tokens at the end of a chat's prompt with which the template has opened the answer's thought.

    They belong to the answer's text, so that whoever reads it finds the tag.
    """
    for count in range(1, min(len(ids), _LONGEST_OPENING) + 1):
        end = tokenizer.decode(ids[-count:]).strip()
        if end == _THOUGHT:
            return count
        if not _THOUGHT.endswith(end):
            return 0
    return 0


def tokens_of(tokenizer: TextTokenizer, question: TextToTokens) -> Tokens | Rejected:
    """As a request with this prompt would be tokenized, though it may be longer than a request's may."""
    chat, limit = question.messages, question.max_seq_len
    try:
        text = (question.text or "") if chat is None else tokenizer.render_chat(chat, question.template)
    except CannotRender as error:
        return Rejected(uid=question.uid, message=str(error), param=error.param)
    if len(text) > limit * tokenizer.longest_token:
        return Rejected(
            uid=question.uid,
            message=f"the text has {len(text)} characters, far too many for a context length of {limit} tokens",
            param="prompt" if chat is None else "messages",
            code=CONTEXT_LENGTH_EXCEEDED,
        )
    ids = tokenizer.encode(text, add_special_tokens=question.add_special_tokens)
    return Tokens(uid=question.uid, token_ids=ids, names=tokenizer.names(ids) if question.names else None)


def text_of(tokenizer: TextTokenizer, question: TokensToText) -> Text | Rejected:
    wrong = _first_outside(question.token_ids, question.vocab_size) if question.token_ids else None
    if wrong is not None:
        message = f"token id {wrong} is outside the vocabulary: ids are 0 to {question.vocab_size - 1}"
        return Rejected(uid=question.uid, message=message, param="tokens")
    return Text(uid=question.uid, text=tokenizer.decode_all(question.token_ids))


def _encode(
    tokenizer: TextTokenizer, text: str, limit: int, *, add_special_tokens: bool
) -> tuple[list[int], bool]:
    """The tokens of `text`, True; or those of a beginning of it that is far past `limit` already, False.

    So the cost of a hopeless text is bounded by the limit and not by its length. The cut can change the tokens of
    the last word only, hence a beginning with twice the limit does not belong to a text that fits.
    """
    size = 8 * limit
    while size < len(text):
        ids = tokenizer.encode(text[:size], add_special_tokens=add_special_tokens)
        if len(ids) > 2 * limit:
            return ids, False
        size *= 4
    return tokenizer.encode(text, add_special_tokens=add_special_tokens), True


def _first_outside(ids: list[int], vocab_size: int) -> int | None:
    if vocab_size and (min(ids) < 0 or max(ids) >= vocab_size):
        return next(token for token in ids if not 0 <= token < vocab_size)
    return None
