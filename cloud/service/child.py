"""Run one heavy function in a process of its own, and stop it at any moment.

In: a function of a module, its arguments, the number of threads, a folder for temporary files.
Out: what it returned, or the error it raised. The function gets a `Progress` as its last argument.
The process is forked from one that has the heavy libraries loaded, and ends with its parent, see
`nursery.py`.
"""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import pickle
import sys
import tempfile
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from cloud.service.nursery import Nursery
from protos.errors import PocketuneError
from protos.progress import Progress

_POLL_S = 0.2
_END_S = 10.0
_NO_SPACE = os.strerror(errno.ENOSPC)
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS",
                     "RAYON_NUM_THREADS")  # fmt: skip
_Request = tuple[Callable[..., Any], tuple[Any, ...], int, Path]


class ChildDied(PocketuneError):
    """The process ended without an answer: killed, out of memory, or crashed."""


class ChildFailed(Exception):
    """The function raised something that is no error of ours; the text says what."""


def run(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    threads: int,
    folder: Path,
    progress: Progress,
    is_wanted: Callable[[], bool],
) -> Any:
    """Call `function(*arguments, progress)` in a new process.

    Returns None as soon as `is_wanted` says no, which is asked five times a second; the process is
    stopped then. In any case it is gone when this returns. Libraries write their temporary files
    into `folder`: whoever kills the process removes these with it.

    Raises:
        ChildDied: it ended without an answer.
        ChildFailed: it raised something unexpected.
        PocketuneError, OSError: as the function raised them.
    """
    ours, theirs = multiprocessing.Pipe()
    begun = False
    with ours:
        with theirs:
            _nursery.bear(theirs)
        try:
            while is_wanted():
                if not ours.poll(_POLL_S):
                    continue
                kind, *rest = _receive(ours)
                if kind == "ready":
                    begun = True
                    _hand_over(ours, (function, arguments, threads, folder))
                elif kind == "progress":
                    progress(*rest)
                elif kind == "error":
                    raise rest[0]
                else:
                    return rest[0]
            return None
        finally:
            if begun:
                _end(ours)


def load_ahead(libraries: Sequence[str]) -> None:
    """Name the modules that steps need and that take long to load; before the first `run`."""
    _nursery.libraries = libraries


def _hand_over(pipe: Connection, request: _Request) -> None:
    try:
        pipe.send(request)
    except OSError:
        raise ChildDied("the step's process ended before it began") from None


def _receive(pipe: Connection) -> tuple[Any, ...]:
    try:
        kind, *rest = pipe.recv()
    except (EOFError, OSError, pickle.UnpicklingError):
        raise ChildDied("the step's process ended without an answer") from None
    if kind == "died":
        raise ChildDied(f"the step's process ended without an answer ({rest[0]})")
    return (kind, *rest)


def _end(pipe: Connection) -> None:
    """Have the process killed, and wait until it and its guard have closed their end."""
    with contextlib.suppress(EOFError, OSError, pickle.UnpicklingError):
        pipe.send(None)
        while pipe.poll(_END_S):
            pipe.recv()


def _work(pipe: Connection, request: bytes) -> None:
    """The child."""
    function, arguments, threads, folder = pickle.loads(request)
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    for name in _THREAD_VARIABLES:  # for what is loaded from now on
        os.environ[name] = str(threads)
    if torch := sys.modules.get("torch"):  # for what is loaded already
        torch.set_num_threads(threads)

    def progress(message: str, share: float) -> None:
        pipe.send(("progress", message, share))

    try:
        answer = function(*arguments, progress)
        pipe.send(("done", answer))
    except (PocketuneError, OSError) as error:
        pipe.send(("error", error))
    except Exception as error:  # the boundary of the process: nothing may be lost silently
        if _NO_SPACE in str(error):  # safetensors and tokenizers have errors of their own
            return pipe.send(("error", OSError(errno.ENOSPC, _NO_SPACE)))
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        pipe.send(("error", ChildFailed(text)))


_nursery = Nursery(_work)
