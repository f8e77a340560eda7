"""A tokenizer worker: requests become token ids for the scheduler, or an error for the client."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec
import zmq

from minisgl.core.config import TokenizerConfig
from minisgl.grammar.checker import GrammarChecker
from minisgl.message import (
    Abort,
    Decoder,
    GrammarChecked,
    NewRequest,
    Rejected,
    Text,
    TextToTokens,
    Tokens,
    TokensToText,
    ToTokenizer,
    encode,
)
from minisgl.tokenizer.grammars import GrammarDesk
from minisgl.tokenizer.loop import serve
from minisgl.tokenizer.prepare import prepare, text_of, tokens_of
from minisgl.tokenizer.text import TextTokenizer
from minisgl.utils.child import run_child
from minisgl.utils.sockets import pull_socket, push_socket

logger = logging.getLogger("minisgl.tokenizer")


def main(name: str, config: TokenizerConfig) -> None:
    """Serve until the process is ended."""
    context = zmq.Context()
    inbox = pull_socket(context, config.addresses.tokenizer(config.index))
    api = push_socket(context, config.addresses.api)
    scheduler = push_socket(context, config.addresses.scheduler)
    tokenizer = TextTokenizer.load(config.model_path)
    decode = Decoder[ToTokenizer](ToTokenizer)

    def connect() -> Callable[[GrammarChecked], None]:
        itself = push_socket(context, config.addresses.tokenizer(config.index))
        return lambda message: itself.send(encode(message))

    grammars = GrammarDesk(GrammarChecker(config.model_path), connect)

    def pass_on(answer: NewRequest | Rejected | Tokens | Text | None) -> None:
        if answer is not None:
            (scheduler if isinstance(answer, NewRequest) else api).send(encode(answer))

    def handle(frame: bytes) -> None:
        try:
            message = decode(frame)
        except msgspec.DecodeError:
            logger.exception("a frame that is no message was dropped")
            return
        if isinstance(message, Abort):
            grammars.forget(message.uid)
            scheduler.send(frame)
            return
        if isinstance(message, GrammarChecked):
            pass_on(grammars.checked(message))
            return
        answer: NewRequest | Rejected | Tokens | Text | None
        try:
            match message:
                case TextToTokens():
                    answer = tokens_of(tokenizer, message)
                case TokensToText():
                    answer = text_of(tokenizer, message)
                case _:
                    answer = prepare(tokenizer, message)
                    if isinstance(answer, NewRequest) and answer.params.grammar:
                        answer = grammars.take(answer, message.grammar_name)
        except Exception:  # one request's trouble must not end the others
            logger.exception("request %d cannot be tokenized", message.uid)
            answer = Rejected(uid=message.uid, message="the request cannot be tokenized", code="internal_error")
        pass_on(answer)

    serve(inbox, api, name, handle)


if __name__ == "__main__":
    run_child(TokenizerConfig, main)
