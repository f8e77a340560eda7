"""One log format for every process of a worker: lines for people, or JSON objects for a collector."""

from __future__ import annotations

import json
import logging
import sys
import threading
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal, cast

LogFormat = Literal["text", "json"]

logger = logging.getLogger("minisgl")


def configure_logging(process: str, level: str = "info", style: LogFormat = "text") -> None:
    """Send the logs of this process to standard error, each line marked with `process`."""
    handler = logging.StreamHandler(sys.stderr)
    if style == "json":
        handler.setFormatter(JsonFormatter(process))
        _log_what_python_prints()
    else:
        text = f"%(asctime)s %(levelname).1s {process}: %(message)s"
        handler.setFormatter(logging.Formatter(text, datefmt="%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logger.setLevel(level.upper())


def say_error(error: object, style: LogFormat = "text") -> None:
    """Tell the person at the command line why the program ends; in a log it is found by its beginning."""
    line = f"minisgl: error: {error}"
    if style == "json":
        record = logging.LogRecord("minisgl", logging.ERROR, "", 0, line, None, None)
        line = JsonFormatter("minisgl").format(record)
    print(line, file=sys.stderr, flush=True)


def with_fields(**fields: Any) -> dict[str, Any]:
    """What a log call takes as `extra`, so that its JSON object has `fields`, too. Those of None are left out."""
    return {"fields": {name: value for name, value in fields.items() if value is not None}}


class JsonFormatter(logging.Formatter):
    """A record as one JSON object on one line: time, level, process, message, then its own fields."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        data: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            data["exception"] = self.formatException(record.exc_info)
        return json.dumps(data, default=str)


def _log_what_python_prints() -> None:
    """Warnings and the tracebacks of uncaught exceptions become records."""
    logging.captureWarnings(capture=True)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda args: _log_uncaught(
        args.exc_type, cast(BaseException, args.exc_value), args.exc_traceback
    )


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, (KeyboardInterrupt, SystemExit)):
        logger.critical("uncaught exception", exc_info=(kind, error, trace))
