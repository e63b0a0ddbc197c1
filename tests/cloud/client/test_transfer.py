"""Uploads and downloads over connections that break: everything arrives, once, and is whole."""

from __future__ import annotations

import hashlib
import random
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud.client import Client, DataLoss, Exhausted, InvalidRequest
from cloud.client.transfer import BATCH_BYTES, BATCH_ITEMS, batches, target_of
from protos.v1 import profiles_pb2, transfer_pb2


def items(count: int, size: int = 20) -> list[profiles_pb2.Item]:
    found = random.Random(count)
    return [
        profiles_pb2.Item(input=f"{n} {found.randbytes(size).hex()}", output=f"out {n}")
        for n in range(count)
    ]


@pytest.fixture
def profile(address: str) -> Iterator[tuple[Client, str]]:
    with Client(address) as client:
        user = client.create_user(f"u{uuid.uuid4().hex[:12]}")
        yield client, client.create_profile(user.name, "LaMP_4").name


def stored(client: Client, profile: str) -> list[str]:
    return [item.input for item in client.list_items(profile)]


def test_batches_fit_into_messages_and_leave_nothing_out():
    sent = [*items(250), *items(3, BATCH_BYTES // 3), *items(5)]
    found = list(batches(sent, 7))
    assert [item for _, batch in found for item in batch] == sent[7:]
    assert [first for first, _ in found] == [
        7 + sum(len(batch) for _, batch in found[:n]) for n in range(len(found))
    ]
    assert all(len(batch) <= BATCH_ITEMS for _, batch in found)
    assert all(sum(i.ByteSize() for i in b) <= BATCH_BYTES or len(b) == 1 for _, b in found)


def test_an_upload_goes_on_after_each_break_and_stores_every_item_once(profile, network):
    client, name = profile
    sent = items(1200, 400)  # about 1 MB
    relay = network(client_address(client), cuts=[300_000, 300_000, 300_000])
    told: list[float] = []
    with Client(relay.address) as shaky:
        answer = shaky.upload(name, sent, progress=lambda _, share: told.append(share))
    assert relay.connections >= 4
    assert answer.upload.next_index == answer.upload.added_count == 1200
    assert answer.profile.item_count == 1200
    assert stored(client, name) == [item.input for item in sent]
    assert told[-1] == 1.0


def client_address(client: Client) -> str:
    return client._inner._caller.address


def test_another_process_goes_on_with_an_upload_that_was_left(profile):
    client, name = profile
    upload_id, sent = str(uuid.uuid4()), items(300)
    assert client.upload(name, sent[:150], upload_id).upload.next_index == 150
    answer = client.upload(name, sent, upload_id)
    assert (answer.upload.next_index, answer.upload.added_count) == (300, 300)
    again = client.upload(name, sent, upload_id)
    assert again.upload == answer.upload
    other = client.upload(name, sent)
    assert (other.upload.added_count, other.upload.duplicate_count) == (0, 300)
    assert stored(client, name) == [item.input for item in sent]


def test_a_refused_item_is_named_and_what_came_before_it_stays(profile):
    client, name = profile
    sent = items(150)
    sent[130].output = "  "
    with pytest.raises(InvalidRequest, match=r"items\[30\]"):
        client.upload(name, sent)
    assert len(stored(client, name)) == 100


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "", "a\\b", "C:x", "a\0b"])
def test_no_file_is_written_outside_of_the_folder(path: str, tmp_path: Path):
    with pytest.raises(DataLoss):
        target_of(tmp_path, transfer_pb2.ArtifactFile(path=path))


def test_a_download_goes_on_after_each_break_and_fetches_nothing_twice(
    stocked: tuple[str, str, dict[str, bytes]], network, tmp_path: Path
):
    address, bundle, files = stocked
    relay = network(address, cuts=[250_000, 250_000, 250_000])
    told: list[float] = []
    with Client(relay.address) as client:
        paths = client.download(bundle, tmp_path, progress=lambda _, share: told.append(share))
        assert {str(p.relative_to(tmp_path)): p.read_bytes() for p in paths} == files
        assert relay.connections >= 4
        assert told[-1] == 1.0
        assert told == sorted(told)
        assert not list(tmp_path.rglob("*.part"))
        times = {path: path.stat().st_mtime_ns for path in paths}
        client.download(bundle, tmp_path)
        assert {path: path.stat().st_mtime_ns for path in paths} == times


def test_a_download_goes_on_from_what_an_earlier_process_left(stocked, network, tmp_path: Path):
    address, bundle, files = stocked
    name, content = max(files.items(), key=lambda item: len(item[1]))
    part = tmp_path / f"{name}.part"
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(content[:-1000])
    relay = network(address, cuts=[])
    with Client(relay.address) as client:
        client.download(bundle, tmp_path)
    assert (tmp_path / name).read_bytes() == content
    assert relay.bytes < sum(map(len, files.values())) - len(content) + 200_000


def test_a_spoilt_part_is_noticed_removed_and_fetched_anew(stocked, tmp_path: Path):
    address, bundle, files = stocked
    name, content = max(files.items(), key=lambda item: len(item[1]))
    part = tmp_path / f"{name}.part"
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(b"x" * 1000)
    with Client(address) as client:
        with pytest.raises(DataLoss, match="sha256"):
            client.download(bundle, tmp_path)
        assert not part.exists()
        client.download(bundle, tmp_path)
    assert (
        hashlib.sha256((tmp_path / name).read_bytes()).digest() == hashlib.sha256(content).digest()
    )


def test_a_quota_says_when_to_try_again(start):
    server = start("--no-worker", tenant_calls_per_s="1")
    with Client(server.address) as client:
        many = (list(client.list_users()) for _ in range(50))
        with pytest.raises(Exhausted) as error:
            list(many)
    assert error.value.retry_after_s > 0
