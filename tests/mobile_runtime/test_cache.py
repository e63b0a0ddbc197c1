"""Joined data files: kept, bounded, checked, and safe with several processes."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mobile_runtime import cache
from protos.errors import InputError
from protos.ptd import Tensor, read_ptd, zeros

TENSORS = [zeros("a" * 64, 4096), zeros("b" * 64, 64)]


def build(directory: Path, parent: str = "p", tensors: list[Tensor] = TENSORS) -> cache.Kept:
    with cache.joined(directory, [parent], tensors) as file:
        assert [t.key for t in read_ptd(file.path)] == [t.key for t in tensors]
        return file


def test_a_second_use_writes_nothing(tmp_path) -> None:
    first, second = build(tmp_path), build(tmp_path)
    assert (first.built, second.built) == (True, False)
    assert first.path == second.path


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_a_damaged_file_is_noticed_and_made_again(tmp_path, damage) -> None:
    path = build(tmp_path).path
    sound = path.read_bytes()
    damaged = bytearray(sound)
    damaged[-1] ^= 1
    path.write_bytes({"flip": bytes(damaged), "truncate": sound[:-9], "empty": b""}[damage])
    again = build(tmp_path)
    assert again.built
    assert again.path.read_bytes() == sound


def test_only_the_files_used_last_are_kept(tmp_path) -> None:
    for number in range(cache.KEEP):
        build(tmp_path, str(number))
    assert not build(tmp_path, "0").built  # used again, so it is the newest
    build(tmp_path, "one more")
    assert len(list(tmp_path.glob("*.ptd"))) == cache.KEEP
    assert not build(tmp_path, "0").built
    assert build(tmp_path, "1").built


def test_what_a_killed_process_left_is_removed(tmp_path) -> None:
    (tmp_path / "x.1234.partial").write_bytes(b"half")
    build(tmp_path)
    assert not list(tmp_path.glob("*.partial"))


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path, monkeypatch) -> None:
    def full(*_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache, "write_ptd", full)
    with pytest.raises(InputError, match=r"cannot write a \.ptd file: No space left"):
        build(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_place_that_cannot_be_a_directory_is_named(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot keep files"):
        build(tmp_path / "file" / "cache")


PROCESS = """
import sys
from pathlib import Path
from mobile_runtime import cache
from protos.ptd import zeros
for parent in sys.argv[2:]:
    with cache.joined(Path(sys.argv[1]), [parent], [zeros("a", 1 << 20)]) as file:
        print(file.built, file.path.stat().st_size)
"""


def test_processes_take_turns(tmp_path) -> None:
    command = [sys.executable, "-c", PROCESS, str(tmp_path), *"0101"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    lines = [line for process in running for line in process.communicate(timeout=60)[0].split("\n")]
    assert all(process.returncode == 0 for process in running)
    assert len([line for line in lines if line]) == 12
    assert sum(line.startswith("True") for line in lines) == 2


def test_the_default_place_follows_xdg(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.default_directory() == tmp_path / "pocketune" / "data-files"


def test_directory_and_files_are_open_to_their_owner_only(tmp_path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    there.chmod(0o755)
    before = os.umask(0)
    try:
        for directory in (there, tmp_path / "new"):
            path = build(directory).path
            assert stat.S_IMODE(directory.stat().st_mode) == 0o700
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(before)
