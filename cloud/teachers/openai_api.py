"""A teacher behind any server that speaks OpenAI's chat completions.

In: requests. Out: replies as they arrive, from as many calls at once as allowed, at the pace that
is allowed. The client library retries what may pass (time-outs, 408, 409, 429, 5xx) with back-off.
What concerns one request only, a refusal or an answer without end, is a reply without words; what
concerns all of them ends the run. A parameter that the server does not take is left out from then
on.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlparse

from cloud.prompts import Ask, Message, Pair, chat, read_chat
from cloud.tasks import Task
from cloud.teachers import Calls, Reply, Sampling
from protos.artifacts import digest_json
from protos.errors import TeacherError

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_ITEMS_PER_ASK = 5
_CHARS_PER_TOKEN = 4
_HALF = re.compile("[\ud800-\udfff]")
"""Half of a character that JSON spells as two, such as an emoji that was cut; no file holds it."""
_REFUSALS = (400, 403, 422, 451)
_POLICY = re.compile(
    r"content[\s_-]*(filter|policy|management)|moderation|(input|prompt|request) was flagged", re.I
)
"""How servers say that they will not answer this very request."""
_REASONING = 4096
_MOST, _MOST_NEW = "max_tokens", "max_completion_tokens"
_OPTIONAL = (_MOST, _MOST_NEW, "seed", "top_p", "temperature")
"""Parameters that an answer can do without; of several that a server names the first goes."""
_UNSUPPORTED = re.compile(
    r"(un|not |n't )(support|recogni|permit|allow)|unknown|unexpected|\bextra\b|deprecated"
    r"|only the default|cannot both|too large|in the completion",
    re.I,
)
"""How servers say that a parameter is none of theirs, or that a bound has no room."""


@dataclass
class OpenAITeacher:
    """A model by name, and how it may be called; the pace is that of all its calls together."""

    base_url: str
    model: str
    api_key: str = field(repr=False)
    calls: Calls = field(default_factory=Calls)
    is_remote: bool = True
    items_per_ask: int = _ITEMS_PER_ASK

    def __post_init__(self) -> None:
        self._pace = Pace(self.calls)
        self._answered = float("-inf")
        self._most = _MOST
        self._refused: set[str] = set()

    @property
    def name(self) -> str:
        return f"openai:{self.base_url}#{self.model}"

    @property
    def digest(self) -> str:
        bound = self.calls.max_answer_tokens
        return digest_json([self.base_url, self.model, *([bound] if bound else [])])

    @property
    def third_party(self) -> bool:
        return urlparse(self.base_url).hostname not in _LOOPBACK

    def prompt(self, task: Task, ask: Ask) -> list[Message]:
        return chat(task, ask)

    def read(self, task: Task, ask: Ask, text: str) -> list[Pair | None]:
        return read_chat(task, ask, text)

    def write(
        self, task: Task, asks: Sequence[Ask], sampling: Sampling
    ) -> Iterator[tuple[int, Reply]]:
        if not asks:
            return
        import openai

        from cloud.teachers.bounded import bounding

        stopped = threading.Event()

        def hold_back(request: Any) -> None:
            self._pace.wait(request, stopped)

        client = openai.OpenAI(
            base_url=self.base_url,
            api_key=self.api_key,
            timeout=self.calls.timeout_s,
            max_retries=self.calls.retries,
            # the hooks see every request, those of retries included
            http_client=openai.DefaultHttpxClient(
                event_hooks={"request": [hold_back], "response": [bounding(self.calls.timeout_s)]}
            ),
        )
        with client:
            try:
                yield from _as_they_come(
                    lambda ask: self._call(client, task, ask, sampling),
                    asks,
                    self.calls.concurrency,
                    stopped,
                )
            except (openai.OpenAIError, ValueError) as error:
                reason = " ".join(str(error).split())[:300]
                raise TeacherError(f"{self.name}: {type(error).__name__}: {reason}") from None

    def _call(self, client: Any, task: Task, ask: Ask, sampling: Sampling) -> Reply:
        import openai

        started = time.monotonic()
        sent = self._parameters(ask, sampling)
        try:
            answer = client.chat.completions.create(
                model=self.model, messages=self.prompt(task, ask), **sent
            )
        except openai.APITimeoutError:
            # a server that has answered others meanwhile is there; this answer has no end
            if self._answered < started:
                raise
            reply = Reply("", cut=True)
        except openai.APIStatusError as error:
            if not _is_refusal(error.status_code, error.body):
                if self._leaves_out(_unsupported(error, sent), error):
                    return self._call(client, task, ask, sampling)
                raise
            reply = Reply("")
        else:
            without = ",".join(name for name in _OPTIONAL if name in self._refused - {*sent})
            reply = replace(_reply(answer), without=without)
        self._answered = time.monotonic()
        self._pace.spent((reply.prompt_tokens or 0) + (reply.completion_tokens or 0))
        return reply

    def _parameters(self, ask: Ask, sampling: Sampling) -> dict[str, Any]:
        """How an answer is drawn, and its end; without what the server has refused."""
        longest = max((len(shot.input) + len(shot.output) for shot in ask.shots), default=0)
        wanted = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": ask.seed,
            self._most: self.calls.max_answer_tokens or _REASONING + ask.count * longest,
        }
        return {name: value for name, value in wanted.items() if name not in self._refused}

    def _leaves_out(self, name: str | None, error: Any) -> bool:
        """Whether a parameter is left out from now on; a bound may go by its newer name instead.

        A bound that was asked for is not left out: without it an answer may cost anything.
        """
        if name == _MOST and _MOST_NEW in str(error.body):
            self._most = _MOST_NEW
        elif name is None or (name in (_MOST, _MOST_NEW) and self.calls.max_answer_tokens):
            return False
        else:
            self._refused.add(name)
        return True


def _as_they_come(
    call: Callable[[Ask], Reply], asks: Sequence[Ask], concurrency: int, stopped: threading.Event
) -> Iterator[tuple[int, Reply]]:
    """Replies with their indices. After a failure, or Ctrl-C, nothing new is sent; what is on its
    way is paid for, so it is waited for and given out before the failure is raised.
    """
    failure: BaseException | None = None

    def unless_stopped(ask: Ask) -> Reply | None:
        if stopped.is_set():
            return None
        try:
            return call(ask)
        except Stopped:
            return None
        except BaseException:
            stopped.set()
            raise

    with ThreadPoolExecutor(concurrency) as pool:
        started = {pool.submit(unless_stopped, ask): index for index, ask in enumerate(asks)}
        pending: set[Future[Reply | None]] = set(started)
        try:
            while pending:
                try:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                except KeyboardInterrupt as interrupt:
                    stopped.set()
                    done, failure = set[Future[Reply | None]](), failure or interrupt
                for future in done:
                    failure = failure or future.exception()
                    if not future.exception() and (reply := future.result()):
                        yield started[future], reply
        finally:
            stopped.set()
    if failure:
        raise failure


def _is_refusal(status: int, body: object) -> bool:
    """Whether a server will not answer this very request for what is in it."""
    return status in _REFUSALS and bool(_POLICY.search(str(body)))


def _unsupported(error: Any, sent: Mapping[str, Any]) -> str | None:
    """Which of the parameters that were sent the server says it does not take."""
    said = str(error.body)
    if error.status_code not in (400, 422) or not _UNSUPPORTED.search(said):
        return None
    named = error.body.get("param") if isinstance(error.body, dict) else None
    if named in sent and named in _OPTIONAL:
        return str(named)
    if "in the completion" in said:
        return next((name for name in (_MOST, _MOST_NEW) if name in sent), None)
    return next(
        (name for name in _OPTIONAL if name in sent and re.search(rf"\b{name}\b", said)), None
    )


def _reply(answer: Any) -> Reply:
    """What a server sent; a refusal, or no completion at all, is a reply without words.

    Raises:
        ValueError: it is not even of the right form.
    """
    choices, usage = getattr(answer, "choices", None), getattr(answer, "usage", None)
    if not isinstance(choices, list):
        raise ValueError("the answer is no chat completion; is the address right (…/v1)?")
    first: Any = choices[0] if choices else None
    ended = getattr(first, "finish_reason", None)
    content = getattr(getattr(first, "message", None), "content", None)
    # what a filter has taken back is not the model's answer, however much of it has come
    text = content if isinstance(content, str) and ended != "content_filter" else ""
    tokens = [_count(usage, name) for name in ("prompt_tokens", "completion_tokens")]
    return Reply(_HALF.sub("\ufffd", text), *tokens, cut=ended == "length")


def _count(usage: Any, name: str) -> int | None:
    """A number of tokens; None where the server counts nothing."""
    if usage is None:
        return None
    found = getattr(usage, name, None)
    return found if isinstance(found, int) else 0


class Stopped(BaseException):
    """A request that waited for its turn will not be sent; the client must not try it again."""


class Pace:
    """When the next request may leave: each takes its share of a minute, of requests and tokens.

    A request's tokens are guessed from its size and corrected by what the server has counted.
    """

    def __init__(self, calls: Calls) -> None:
        self._per_request = 60 / calls.requests_per_minute if calls.requests_per_minute else 0.0
        self._per_token = 60 / calls.tokens_per_minute if calls.tokens_per_minute else 0.0
        self._next = time.monotonic()
        self._lock = threading.Lock()
        self._guessed = threading.local()

    def wait(self, request: Any, stopped: threading.Event) -> None:
        """Hold a request back until it may leave.

        Raises:
            Stopped: none may leave any more.
        """
        guess = len(request.content) // _CHARS_PER_TOKEN
        self._guessed.tokens = getattr(self._guessed, "tokens", 0) + guess
        with self._lock:
            start = max(self._next, time.monotonic())
            self._next = start + max(self._per_request, guess * self._per_token)
        if stopped.wait(max(0.0, start - time.monotonic())):
            raise Stopped

    def spent(self, tokens: int) -> None:
        """Correct the guesses of this thread's last call, retries included."""
        beyond, self._guessed.tokens = tokens - self._guessed.tokens, 0
        with self._lock:
            self._next += max(0, beyond) * self._per_token
