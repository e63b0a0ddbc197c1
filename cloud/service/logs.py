"""Logging: one structured line for each event, on standard error, with secrets taken out.

In: the events of structlog's loggers and of the libraries' (`logging`). Out: JSON lines, or lines
for people on a terminal. Redaction is the last step before the rendering and sees everything: an
event's fields by their names, and every text, tracebacks too, by what secrets look like. What is
not recognizable is protected by not being logged: no request, no item and no prompt is.
"""

from __future__ import annotations

import functools
import logging
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, cast

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

GONE = "[redacted]"
_NAMES = re.compile(
    r"authori[sz]ation|bearer|credential|password|passwd|secret|cookie|api_?key$|^token|_token$"
    r"|private|signature|^key$|wrapped",
    re.IGNORECASE,
)
_TEXTS = (
    (re.compile(r"pkt_[A-Za-z0-9_-]{8,}"), GONE),  # our API keys
    (re.compile(r"eyJ[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"), GONE),  # JWTs
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}"), rf"\1 {GONE}"),
    (re.compile(r"(\w://[^\s:/@]*):[^\s/]*@"), rf"\1:{GONE}@"),  # passwords in URLs
    (re.compile(r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END[A-Z -]*KEY-----|$)"), GONE),
    (re.compile(r"\b(AKIA|ASIA)[A-Z0-9]{16}\b"), GONE),  # Amazon's access keys
    (re.compile(r"\bsk-[A-Za-z0-9_-]{16,}"), GONE),  # keys of teachers' providers
    (re.compile(r"(?i)((?:password|secret|api_?key|token)\s*[=:]\s*)[^\s,;&'\"]+"), rf"\1{GONE}"),
)  # fmt: skip
_SHORTEST = 6
"""Characters of the shortest text that has something to take out, `a://:@`."""
_HINTS = ("pkt_", "eyj", "bearer", "basic", "://", "-----begin", "akia", "asia", "sk-",
          "password", "secret", "key", "token")  # fmt: skip
"""A text without any of these, in small letters, matches none of the patterns above."""
_OURS = ("level", "logger", "timestamp")
"""Fields that the processors below add to every event."""
_CHATTY = ("sqlalchemy", "alembic", "dbos", "botocore", "s3fs", "fsspec", "urllib3", "asyncio")
"""Below warnings they log statements with parameters, and requests with headers."""

_TELLING = ("grpc._cython.cygrpc",)
"""At any level they write what callers sent, with tracebacks; the boundary says what happened."""


def configure(
    log_format: str = "auto", level: str = "info", listen: Callable[[EventDict], None] | None = None
) -> None:
    """Set up structlog and `logging` for this process.

    listen: is shown every event, also those that are not severe enough to be written.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    heard: list[Processor] = [_listener(listen)] if listen else []
    rendering = _rendering(log_format)
    structlog.configure(
        processors=[*heard, _severe(level), *shared, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
        logger_factory=_Lines,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in _TELLING:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.disable(logging.NOTSET)


def redact(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """A processor: the event without secrets."""
    return {name: value if name in _OURS else _clean(name, value) for name, value in event.items()}


@functools.lru_cache(maxsize=1000)
def _is_secret(name: str) -> bool:
    return _NAMES.search(name) is not None


def _clean(name: str, value: Any) -> Any:
    if _is_secret(name) and value not in (None, "", True, False):
        return GONE
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, Mapping):
        inner = cast("Mapping[Any, Any]", value)
        return {key: _clean(str(key), each) for key, each in inner.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean("", each) for each in cast("list[Any]", value)]
    if value is None or isinstance(value, bool | int | float):
        return value
    return without_secrets(str(value))


def without_secrets(text: str) -> str:
    """A text in which everything that looks like a secret is replaced."""
    small = text.lower()
    if len(text) < _SHORTEST or not any(hint in small for hint in _HINTS):
        return text
    for pattern, by in _TEXTS:
        text = pattern.sub(by, text)
    return text


class _Lines(structlog.WriteLogger):
    """Writes our events. By way of `logging`, as the libraries' go, a line takes twice as long."""

    def __init__(self, name: str = "") -> None:
        super().__init__(sys.stderr)
        self.name = name


def _severe(level: str) -> Processor:
    """Drops what is less severe. The logger itself lets everything pass, for whoever listens."""
    severity = logging.getLevelNamesMapping()
    least = severity[level.upper()]

    def keep(_: WrappedLogger, method: str, event: EventDict) -> EventDict:
        if severity[method.upper()] < least:
            raise structlog.DropEvent
        return event

    return keep


def _rendering(log_format: str) -> list[Processor]:
    is_console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    renderer: Processor = structlog.processors.JSONRenderer(sort_keys=True)
    if is_console:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    # A traceback as plain text, without the frames' local variables, which hold users' data.
    return [structlog.processors.format_exc_info, redact, renderer]


def _listener(listen: Callable[[EventDict], None]) -> Processor:
    def heard(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        listen(event)
        return event

    return heard
