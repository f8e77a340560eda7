"""``python -m minisgl``: serve a model."""

from __future__ import annotations

import os
import signal
import sys

from minisgl.models.checkpoint import inspect, resolve
from minisgl.server.args import parse_arguments
from minisgl.server.launcher import SCHEDULER, launch
from minisgl.tokenizer.template_source import read_template
from minisgl.utils.child import EXIT_USER_ERROR, spawn
from minisgl.utils.errors import UserError
from minisgl.utils.kernel_cache import use_kernel_cache
from minisgl.utils.log import LogFormat, say_error


def main() -> None:
    """Exit status: 0 when told to end, 2 for what the user must mend, 1 when the worker died."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))  # nothing is up yet; threads of a download must not delay it
    log_format: LogFormat = "text"
    first = spawn(SCHEDULER)  # it has a lot to import, whatever the options say
    try:
        options = parse_arguments(sys.argv[1:], os.environ)
        log_format = options.log_format
        path = resolve(options.model, options.revision)
        model = inspect(path, skip_weights=options.engine.dummy_weight)
        model.check_tensor_parallel(options.engine.tp_size)
        config = options.worker(
            path,
            checkpoint_dtype=model.dtype,
            max_position=model.max_position,
            sampling=model.sampling,
            chat_template=read_template(path),
        )
        if options.kernel_cache is not None:
            use_kernel_cache(options.kernel_cache, os.environ)
        sys.exit(launch(config, first))
    except UserError as error:
        say_error(error, log_format)
        sys.exit(EXIT_USER_ERROR)
    finally:
        first.kill()
        first.wait()


if __name__ == "__main__":
    main()
