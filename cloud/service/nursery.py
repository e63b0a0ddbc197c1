"""A process that has heavy libraries loaded and nothing else to do: steps are forked from it.

In: one end of a pipe for each step. Out: a process that reads its work from that pipe and answers
through it. Loading torch and transformers takes seconds; forking what has them loaded, none.

    worker ── nursery ─┬─ guard ── child: one step
                       └─ guard ── child: another

The nursery is begun with the first step and ends after a while without one, so that a worker
without work stays small. It never runs a thread, which would be missing in the children, and never
touches a GPU. A guard waits for its child, tells how it ended, and kills it as soon as the worker
writes or is gone. So nothing outlives its worker, whatever kills that.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import multiprocessing
import os
import select
import signal
import socket
import threading
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import NoReturn

Work = Callable[[Connection, bytes], None]
_ENVIRONMENT = {
    # Read when the libraries are loaded. No thread here; each child then sets its own number.
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
    # Threads that wait for each other sleep instead of spinning: other jobs share these cores.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Whether there is a GPU is asked in a way that leaves it usable after a fork.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}  # fmt: skip
_POLL_S = 0.1
_IDLE_S = 600.0


class Nursery:
    """The worker's side; begun when it is first needed, and again where it has ended.

    libraries: modules that are loaded ahead; may be set until the first child.
    """

    def __init__(self, work: Work) -> None:
        self.libraries: Sequence[str] = ()
        self._work = work
        self._lock = threading.Lock()
        self._control: socket.socket | None = None

    def bear(self, pipe: Connection) -> None:
        """Have a child begun that reads one message from `pipe` and calls `work(pipe, message)`.

        Returns at once. Whoever holds the other end is told `("ready",)` when it is time for that
        message, and `("died", how)` if the child ends early; what they write after the message, or
        that they close their end, kills the child.
        """
        with self._lock:
            if self._control is not None:
                with contextlib.suppress(OSError):
                    socket.send_fds(self._control, [b"+"], [pipe.fileno()])
                    return
                self._control.close()
            self._control = self._begin()
            socket.send_fds(self._control, [b"+"], [pipe.fileno()])

    def _begin(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            multiprocessing.get_context("spawn").Process(
                target=_serve, args=(theirs, self.libraries, self._work), daemon=True
            ).start()
        return ours


def _serve(control: socket.socket, libraries: Sequence[str], work: Work) -> None:
    """The nursery itself, until the worker is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the worker, which ends us
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for guards
    os.environ.update(_ENVIRONMENT)
    # The libraries' advice to developers is no line of our log.
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    for library in libraries:
        if _is_gone(control):
            return
        importlib.import_module(library)
    gc.freeze()  # what is loaded stays shared: the collector would write to it
    while select.select([control], [], [], _IDLE_S)[0]:
        _, files, _, _ = socket.recv_fds(control, 1, 1)
        if not files:
            return
        with Connection(files[0]) as pipe:
            if os.fork() == 0:
                control.close()
                _guard(pipe, work)


def _is_gone(control: socket.socket) -> bool:
    """Whether the other end is closed, which shows as readable without a byte."""
    if not select.select([control], [], [], 0)[0]:
        return False
    return not control.recv(1, socket.MSG_PEEK)


def _guard(pipe: Connection, work: Work) -> NoReturn:
    """Between nursery and child: sees that either ends when it has to."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        pipe.send(("ready",))
        message = pipe.recv_bytes()
        child = os.fork()
        if child == 0:
            _be(pipe, work, message)
        how = _wait(pipe, child)
        if how:
            pipe.send(("died", how))
    except (EOFError, OSError):  # the worker is gone
        pass
    finally:
        os._exit(0)


def _be(pipe: Connection, work: Work, message: bytes) -> NoReturn:
    """The child."""
    code = 1
    try:
        work(pipe, message)
        code = 0
    finally:
        os._exit(code)


def _wait(pipe: Connection, child: int) -> str:
    """Wait for the child; how it ended, if that was neither well nor by us."""
    while not pipe.poll(_POLL_S):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return f"signal {-code}" if code < 0 else f"exit code {code}" if code else ""
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return ""
