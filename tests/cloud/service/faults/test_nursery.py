"""Steps are forked from a process with the libraries loaded: alone, stopped at once, never left."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloud.service import child
from protos.errors import InputError

ROOT = Path(__file__).parents[4]
NOWHERE = Path("/nonexistent")
"""For steps that write no temporary files."""


def family(_: object) -> dict[str, int]:
    """Own pid, the guard's and the nursery's."""
    status = Path(f"/proc/{os.getppid()}/status").read_text()
    nursery = next(line for line in status.splitlines() if line.startswith("PPid"))
    return {"child": os.getpid(), "guard": os.getppid(), "nursery": int(nursery.split()[1])}


def hold_the_interpreter(path: str, _: object) -> None:
    """Tell where we are, and then never let another thread of ours run."""
    Path(path).with_suffix(".new").write_text(json.dumps(family(None)))
    Path(path).with_suffix(".new").rename(path)
    ctypes.PyDLL(None).sleep(120)


def count_threads(_: object) -> dict[str, int]:
    """How many threads a product adds to this one, and whether a GPU is in use."""
    import torch

    before = len(os.listdir("/proc/self/task"))  # noqa: PTH208 - no objects are needed
    (torch.rand(512, 512) @ torch.rand(512, 512)).sum()
    torch.rand(1 << 20).exp().sum()
    after = len(os.listdir("/proc/self/task"))  # noqa: PTH208
    return {"more": after - before, "set": torch.get_num_threads(),
            "gpu": torch.cuda.is_initialized()}  # fmt: skip


def fail(how: str, _: object) -> None:
    if how == "input":
        raise InputError("there is nothing in it")
    if how == "exit":
        os._exit(3)
    os.kill(os.getpid(), signal.SIGSEGV)


def run(function: Callable[..., object], *arguments: object, threads: int = 1) -> object:
    return child.run(function, arguments, threads, NOWHERE, lambda *_: None, lambda: True)


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def until(what: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module", autouse=True)
def _libraries() -> Iterator[None]:
    child.load_ahead(("torch",))
    yield
    child.load_ahead(())


def test_the_nursery_has_one_thread_and_each_child_as_many_as_it_was_given():
    nursery = run(family)["nursery"]
    assert len(list(Path(f"/proc/{nursery}/task").iterdir())) == 1
    assert "libtorch" in Path(f"/proc/{nursery}/maps").read_text()
    one, three = run(count_threads, threads=1), run(count_threads, threads=3)
    assert one == {"more": 0, "set": 1, "gpu": False}
    assert three == {"more": 2, "set": 3, "gpu": False}
    assert run(family)["nursery"] == nursery


def test_a_child_s_error_arrives_and_its_death_is_told_with_the_reason():
    with pytest.raises(InputError, match="nothing in it"):
        run(fail, "input")
    with pytest.raises(child.ChildDied, match="exit code 3"):
        run(fail, "exit")
    with pytest.raises(child.ChildDied, match="signal 11"):
        run(fail, "crash")


def test_a_child_that_is_not_wanted_is_gone_when_run_returns(tmp_path: Path):
    said = tmp_path / "pids"
    answer = child.run(
        hold_the_interpreter, (str(said),), 1, NOWHERE, lambda *_: None, lambda: not said.exists()
    )
    assert answer is None
    pids = json.loads(said.read_text())
    assert not alive(pids["child"])
    assert alive(pids["nursery"])
    until(lambda: not alive(pids["guard"]))


def leave_temporary_files(said: str, _: object) -> None:
    """As a library in the midst of its work, and a program that it calls; then wait."""
    tempfile.mkdtemp()
    subprocess.run(["mktemp"], check=True, stdout=subprocess.DEVNULL)
    Path(said).touch()
    time.sleep(120)


def test_temporary_files_of_a_killed_child_lie_in_the_step_s_folder(tmp_path: Path):
    said, folder = tmp_path / "said", tmp_path / "job"
    folder.mkdir()
    tempfile.gettempdir()  # it is remembered from the first time on
    answer = child.run(
        leave_temporary_files, (str(said),), 1, folder, lambda *_: None, lambda: not said.exists()
    )
    assert answer is None
    assert len(list(folder.iterdir())) == 2


def killed_nursery() -> int:
    """Its pid; it is gone."""
    pid = run(family)["nursery"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: not alive(pid))
    return pid


def test_a_killed_nursery_is_begun_again():
    assert killed_nursery() != run(family)["nursery"]


def test_nobody_waits_for_libraries_to_load_for_a_step_that_is_not_wanted(tmp_path: Path):
    said = tmp_path / "pids"
    child.load_ahead(("torch", "transformers.models.auto.modeling_auto"))
    killed_nursery()
    started = time.monotonic()
    wanted = iter([True, True])  # asked five times a second, and then no more
    answer = child.run(
        hold_the_interpreter, (str(said),), 1, NOWHERE, lambda *_: None,
        lambda: next(wanted, False),
    )  # fmt: skip
    given_up = time.monotonic() - started
    assert answer is None
    run(family)  # this one waits until all is loaded
    assert given_up < (time.monotonic() - started) / 2
    assert not said.exists()


WORKER = """
import sys
sys.path[:0] = sys.argv[1:3]
import test_nursery
from cloud.service import child
if __name__ == "__main__":
    child.load_ahead(sys.argv[4:])
    test_nursery.run(test_nursery.hold_the_interpreter, sys.argv[3])
"""


@pytest.mark.parametrize("moment", ["in a step", "while libraries are loaded"])
def test_nothing_outlives_a_killed_worker(tmp_path: Path, moment: str):
    said, script = tmp_path / "pids", tmp_path / "worker.py"
    script.write_text(WORKER)
    libraries = [] if moment == "in a step" else ["torch", "transformers"]
    mark = {"NURSERY_TEST": str(tmp_path)}
    worker = subprocess.Popen(
        [sys.executable, script, ROOT, Path(__file__).parent, said, *libraries],
        env={**os.environ, **mark},
    )  # fmt: skip

    def ours() -> list[str]:
        """Whatever the worker has started, directly or not: it has our mark."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if str(tmp_path).encode() in (folder / "environ").read_bytes():
                    found.append(folder.name)
        return found

    if libraries:
        until(lambda: len(ours()) > 1)
    else:
        until(said.exists)
        assert len(ours()) >= 4  # worker, nursery, guard, child
    worker.kill()
    worker.wait()
    until(lambda: not ours())
