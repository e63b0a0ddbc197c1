"""A real HTTP server that speaks OpenAI's chat completions, and misbehaves as a test wants."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

Answer = str | int | bytes | dict[str, Any] | tuple[int, dict[str, Any]] | Iterator[bytes] | None
USAGE = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}


@dataclass
class Chat:
    """What the server was asked and how it answers.

    say: the user's message and the number of the call -> the content of the answer; an int is an
    HTTP status, with a dict its JSON body; bytes are a whole body, a dict a whole JSON body, an
    iterator a body piece by piece; None never comes.
    """

    say: Callable[[str, int], Answer] = lambda message, number: ""
    usage: dict[str, int] | None = field(default_factory=lambda: dict(USAGE))
    seconds: float = 0.0
    spec: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    lock: Any = field(default_factory=threading.Lock)
    closing: threading.Event = field(default_factory=threading.Event)

    @property
    def asked(self) -> list[str]:
        """The user's message of each call."""
        return [body["messages"][-1]["content"] for body in self.bodies]

    def answer(self, body: dict[str, Any]) -> tuple[int, bytes | Iterator[bytes]]:
        with self.lock:
            self.bodies.append(body)
            self.times.append(time.monotonic())
            number = len(self.bodies) - 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            said = self.say(body["messages"][-1]["content"], number)
            self.closing.wait(60 if said is None else self.seconds)
        finally:
            with self.lock:
                self.at_once -= 1
        if isinstance(said, int):
            return said, b"{}"
        if isinstance(said, tuple):
            return said[0], json.dumps(said[1]).encode()
        if isinstance(said, bytes | Iterator):
            return 200, said
        if not isinstance(said, dict):
            message = {"role": "assistant", "content": said}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            value = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
            said = {**value, "choices": [choice], "usage": self.usage}
        return 200, json.dumps(said).encode()


@pytest.fixture
def chat() -> Iterator[Chat]:
    made = Chat()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            status, data = made.answer(
                json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            )
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Retry-After-Ms", "10")
            if isinstance(data, bytes):
                self.send_header("Content-Length", str(len(data)))
            else:
                self.close_connection = True
            self.end_headers()
            for piece in [data] if isinstance(data, bytes) else data:
                self.wfile.write(piece)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

        def handle(self) -> None:
            with contextlib.suppress(OSError):  # a caller that did not wait
                super().handle()

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    made.spec = f"openai:http://127.0.0.1:{running.server_port}/v1#small"
    yield made
    made.closing.set()
    running.shutdown()
    running.server_close()
    thread.join()
