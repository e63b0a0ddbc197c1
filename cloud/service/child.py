"""Run one heavy function in a process of its own, and stop it at any moment.

In: a function of a module (it is imported anew there), its arguments, the number of threads. Out:
what it returned, or the error it raised. The function gets a `Progress` as its last argument.
The child dies with its parent, whatever kills that: it watches the pipe between them.
"""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import threading
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from protos.errors import PocketuneError
from protos.progress import Progress

_POLL_S = 0.2
_TERM_S = 2.0
_NO_SPACE = os.strerror(errno.ENOSPC)
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS",
                     "RAYON_NUM_THREADS")  # fmt: skip


class ChildDied(PocketuneError):
    """The process ended without an answer: killed, out of memory, or crashed."""


class ChildFailed(Exception):
    """The function raised something that is no error of ours; the text says what."""


def run(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    threads: int,
    progress: Progress,
    is_wanted: Callable[[], bool],
) -> Any:
    """Call `function(*arguments, progress)` in a new process.

    Returns None as soon as `is_wanted` says no, which is asked five times a second; the process is
    stopped then.

    Raises:
        ChildDied: it ended without an answer.
        ChildFailed: it raised something unexpected.
        PocketuneError, OSError: as the function raised them.
    """
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_main, args=(theirs, function, arguments, threads), daemon=True
    )
    process.start()
    theirs.close()
    try:
        while is_wanted():
            if not ours.poll(_POLL_S):
                continue
            kind, *rest = _receive(ours, process)
            if kind == "progress":
                progress(*rest)
            elif kind == "error":
                raise rest[0]
            else:
                return rest[0]
        return None
    finally:
        _stop(process)
        ours.close()


def _receive(pipe: Connection, process: Any) -> tuple[Any, ...]:
    try:
        return pipe.recv()
    except EOFError:
        process.join(_TERM_S)
        code = process.exitcode
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        raise ChildDied(f"the step's process ended without an answer ({how})") from None


def _stop(process: Any) -> None:
    if process.is_alive():
        process.terminate()
        process.join(_TERM_S)
    if process.is_alive():
        process.kill()
    process.join()


def _main(
    pipe: Connection, function: Callable[..., Any], arguments: tuple[Any, ...], threads: int
) -> None:
    """The child."""
    for name in _THREAD_VARIABLES:  # before torch is imported
        os.environ[name] = str(threads)
    # Threads that wait for each other sleep instead of spinning: other jobs share these cores.
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    # The libraries' advice to developers is no line of our log.
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    threading.Thread(target=_die_with_parent, args=(pipe,), daemon=True).start()

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


def _die_with_parent(pipe: Connection) -> None:
    """The parent never sends: when something happens at its end of the pipe, it is gone."""
    try:
        pipe.recv()
    except (EOFError, OSError):
        os._exit(1)
