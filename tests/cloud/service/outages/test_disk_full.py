"""The server's disk runs full: one clear error, nothing lost, and no restart when it has room."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from google.longrunning import operations_pb2 as longrunning

from protos.v1 import bases_pb2, profiles_pb2, users_pb2

Code = grpc.StatusCode
FULL = "no space left on the server's disk"
Append = profiles_pb2.AppendItemsRequest


class Disk:
    """A small file system, and a ballast on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self, left: int = 0) -> None:
        """Leave this many bytes free."""
        self._ballast.touch()
        size = self._ballast.stat().st_size + shutil.disk_usage(self.folder).free - left
        with self._ballast.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, size)

    def free(self) -> None:
        self._ballast.unlink()


@pytest.fixture
def disk(tmp_path: Path, program: Callable[[str, str], str]) -> Iterator[Disk]:
    """A tmpfs of 32 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = program("mount", "apt-get install mount")
    mounted = subprocess.run([mount, "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)],
                             capture_output=True, text=True)  # fmt: skip
    if mounted.returncode:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"cannot mount: {mounted.stderr}")
    yield Disk(folder)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def batch(start: int, count: int, chars: int = 0) -> list[profiles_pb2.Item]:
    return [
        profiles_pb2.Item(input=f"{n} " + "x" * chars, output="y")
        for n in range(start, start + count)
    ]


def test_uploads_and_jobs_say_that_the_disk_is_full_and_go_on_when_it_is_not(start, disk, until):
    served = start(data_dir=disk.folder / "data")
    profile, upload = served.add_user(items=0), str(uuid.uuid4())
    request = Append(parent=profile, request_id=upload, items=batch(0, 20))
    assert served.call("AppendItems", request).code is Code.OK

    disk.fill(left=1_000_000)
    base = bases_pb2.CreateBaseRequest(base_id="pocket", base={"source": "pocket"})
    (begun,) = served.call("CreateBase", base).answers
    find = longrunning.GetOperationRequest(name=begun.name)
    failed = until(lambda: [op for op in served.call("GetOperation", find).answers if op.done])[0]
    assert failed.error.code == Code.RESOURCE_EXHAUSTED.value[0], failed
    assert failed.error.message.endswith(FULL)

    disk.fill()
    much = Append(parent=profile, request_id=upload, first_index=20, items=batch(20, 40, 20_000))
    refused = served.call("AppendItems", much)
    assert (refused.code, refused.text, refused.wait_s > 0) == (Code.RESOURCE_EXHAUSTED, FULL, True)
    refused = served.call("CreateUser", users_pb2.CreateUserRequest(user_id="bob"))
    assert (refused.code, refused.text) == (Code.RESOURCE_EXHAUSTED, FULL)
    reached = profiles_pb2.GetUploadRequest(parent=profile, request_id=upload)
    assert served.call("GetUpload", reached).answers[0].next_index == 20

    disk.free()
    assert served.call("AppendItems", much).code is Code.OK
    told = [item.input.split()[0] for item in served.client.list_items(profile)]
    assert told == [str(n) for n in range(60)]
    assert served.client.wait(served.client.create_base("pocket", "pocket")).source == "pocket"
    assert served.client.create_user("bob").name == "users/bob"
    assert "Traceback" not in served.log()


def test_a_disk_that_fills_up_under_a_running_job_lets_it_end_once_there_is_room(
    start, disk, worker, until
):
    data = disk.folder / "data"
    served = start(worker=False, data_dir=data, teachers={"sleep:3": "pocket"})
    profile = served.add_user()
    at_work = worker(f"sqlite:///{data}/pocketune.db", data)
    request = profiles_pb2.AugmentProfileRequest(name=profile, options={"teacher": "sleep:3"})
    (begun,) = served.call("AugmentProfile", request).answers
    until(lambda: any("child" in line for line in served.lines()))
    disk.fill()
    create = users_pb2.CreateUserRequest(user_id="bob")
    until(lambda: served.call("CreateUser", create).code is Code.RESOURCE_EXHAUSTED)
    time.sleep(4)  # the child ends, and nothing of it can be written
    disk.free()
    find = longrunning.GetOperationRequest(name=begun.name)
    done = until(lambda: [op for op in served.call("GetOperation", find).answers if op.done])[0]
    assert done.HasField("response"), done.error
    assert at_work.poll() is None
