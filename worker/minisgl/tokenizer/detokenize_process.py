"""The detokenizer: the scheduler's tokens become text for the API server."""

from __future__ import annotations

import zmq

from minisgl.core.config import DetokenizerConfig
from minisgl.message import Abort, Decoder, StepTokens, encode
from minisgl.tokenizer.detokenizer import Detokenizer
from minisgl.tokenizer.loop import serve
from minisgl.tokenizer.text import TextTokenizer
from minisgl.utils.child import run_child
from minisgl.utils.sockets import pull_socket, push_socket


def main(name: str, config: DetokenizerConfig) -> None:
    """Serve until the process is ended."""
    context = zmq.Context()
    inbox = pull_socket(context, config.addresses.detokenizer)
    api = push_socket(context, config.addresses.api)
    scheduler = push_socket(context, config.addresses.scheduler)
    detokenizer = Detokenizer(TextTokenizer.load(config.model_path))
    decode = Decoder[StepTokens](StepTokens)

    def handle(frame: bytes) -> None:
        text, aborted = detokenizer.feed(decode(frame))
        if text.uids:
            api.send(encode(text))
        for uid in aborted:
            scheduler.send(encode(Abort(uid=uid)))

    serve(inbox, api, name, handle)


if __name__ == "__main__":
    run_child(DetokenizerConfig, main)
