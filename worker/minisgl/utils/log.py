"""One log format for every process of a worker."""

from __future__ import annotations

import logging
import sys


def configure_logging(process: str, level: str = "info") -> None:
    """Send the logs of this process to standard error, each line marked with `process`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter(f"%(asctime)s %(levelname).1s {process}: %(message)s", datefmt="%H:%M:%S")
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("minisgl").setLevel(level.upper())
