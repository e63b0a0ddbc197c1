"""The blob stores, a folder and a real S3-speaking server; and the vault above them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud.service import blobs, crypto
from cloud.service.blobs import BlobStore, LocalBlobs, S3Blobs, open_store
from cloud.service.doctor import examine
from cloud.service.settings import Settings
from cloud.service.vault import Vault, open_vault
from protos.errors import ArtifactError, InputError

ROOT = Path(__file__).parents[3]
WRITER = """
import sys, time
from cloud.service.blobs import open_store

def chunks():
    yield bytes(20 << 20)
    print("half", flush=True)
    time.sleep(60)

open_store(*sys.argv[1:]).put("users/a/1/x", chunks())
"""
BIG = os.urandom(1 << 20) * 9 + b"end"  # more than one part of a multipart upload


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    if request.param == "local":
        return open_store(f"file://{tmp_path / 'blobs'}")
    return open_store(request.getfixturevalue("bucket"), request.getfixturevalue("s3"))


def test_what_is_put_is_read_whole_and_in_ranges(store: BlobStore):
    assert store.put("users/a/1/x", [BIG[:5], BIG[5:]]) == len(BIG)
    assert b"".join(store.read("users/a/1/x")) == BIG
    for offset, length in ((0, 10), (3, 1 << 20), (len(BIG) - 2, 100), (len(BIG), 5), (7, 0)):
        assert b"".join(store.read("users/a/1/x", offset, length)) == BIG[offset : offset + length]
    store.put("users/a/1/empty", [])
    assert b"".join(store.read("users/a/1/empty")) == b""
    with pytest.raises(FileNotFoundError):
        list(store.read("users/a/1/none"))


def test_a_writer_that_fails_leaves_nothing(store: BlobStore):
    def breaks() -> Iterator[bytes]:
        yield BIG
        raise RuntimeError("broken off")

    with pytest.raises(RuntimeError):
        store.put("users/a/1/x", breaks())
    assert not store.exists("users/a/1/x")
    assert list(store.keys("users")) == []


def test_what_a_killed_writer_left_half_written_is_removed_after_an_hour(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
):
    url, endpoint = f"file://{request.getfixturevalue('tmp_path') / 'blobs'}", ""
    if isinstance(store, blobs.S3Blobs):
        url, endpoint = request.getfixturevalue("bucket"), request.getfixturevalue("s3")
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, url, endpoint], stdout=subprocess.PIPE, cwd=ROOT
    )
    assert writer.stdout
    assert writer.stdout.read(4) == b"half"
    writer.kill()
    writer.communicate()
    assert list(store.keys("users")) == []
    if not isinstance(store, blobs.S3Blobs):  # moto says that all uploads began in 2010
        assert store.clean() == 0  # it might be slow, and alive
    monkeypatch.setattr(blobs, "_ABANDONED_S", -60)
    assert store.clean() == 1
    assert store.clean() == 0


def test_a_user_s_blobs_go_and_the_next_user_s_stay(store: BlobStore):
    for key in ("users/a/1/x", "users/a/1/y", "users/a/10/x", "shared/x"):
        store.put(key, [b"z"])
    assert store.delete_all("users/a/1") == 2
    assert store.delete_all("users/a/1") == 0
    assert sorted([*store.keys("users"), *store.keys("shared")]) == ["shared/x", "users/a/10/x"]
    store.delete("shared/x")
    store.delete("shared/x")
    assert not store.exists("shared/x")


def test_on_s3_blobs_go_in_batches_and_what_stays_is_noticed(
    bucket: str, s3: str, monkeypatch: pytest.MonkeyPatch
):
    import boto3

    monkeypatch.setattr(blobs, "_S3_BATCH", 10)
    store, client = open_store(bucket, s3), boto3.client("s3", endpoint_url=s3)
    assert isinstance(store, S3Blobs)
    name = bucket.split("/")[2]
    paths = [f"{name}/pocketune/users/a/1/{n}" for n in range(25)]
    store._files.pipe(dict.fromkeys(paths, b"z"))
    begun = {"Bucket": name, "Key": "pocketune/users/a/1/begun"}
    upload = client.create_multipart_upload(**begun)["UploadId"]
    client.upload_part(**begun, UploadId=upload, PartNumber=1, Body=b"canary")
    kept = f"arn:aws:s3:::{name}/pocketune/users/a/1/7"
    statement = {"Effect": "Deny", "Principal": "*", "Action": "s3:DeleteObject", "Resource": kept}
    client.put_bucket_policy(Bucket=name, Policy=json.dumps({"Statement": [statement]}))
    with pytest.raises(OSError, match="1 blobs could not be deleted"):
        store.delete_all("users/a/1")
    assert list(store.keys("users")) == ["users/a/1/7"]
    assert "Uploads" not in client.list_multipart_uploads(Bucket=name)
    client.delete_bucket_policy(Bucket=name)
    assert store.delete_all("users/a/1") == 1
    assert list(store.keys("users")) == []


def test_a_bucket_that_keeps_old_versions_takes_no_keys(bucket: str, s3: str, tmp_path: Path):
    import boto3

    def settings(**given: object) -> Settings:
        mine = {"blobs_url": bucket, "s3_endpoint_url": s3, "data_dir": tmp_path}
        return Settings(**{**mine, **given})  # type: ignore[arg-type]

    def found(**given: object) -> dict[str, str]:
        stores = [each for each in examine(settings(**given)) if each.what in ("blobs", "keys")]
        return {each.what: each.level for each in stores}  # the last word on each

    assert found() == {"blobs": "ok", "keys": "ok"}
    open_vault(settings())
    versions = {"VersioningConfiguration": {"Status": "Enabled"}}
    client = boto3.client("s3", endpoint_url=s3)
    client.put_bucket_versioning(Bucket=bucket.split("/")[2], **versions)
    assert found() == {"blobs": "warn", "keys": "fail"}
    with pytest.raises(InputError, match="keeps old versions"):
        open_vault(settings())
    elsewhere = {"keys_url": f"file://{tmp_path / 'keys'}"}
    assert found(**elsewhere) == {"blobs": "warn", "keys": "ok"}
    open_vault(settings(**elsewhere))
    assert found(**elsewhere, encrypt=False)["blobs"] == "fail"
    with pytest.raises(InputError, match="keeps old versions"):
        open_vault(settings(**elsewhere, encrypt=False))


@pytest.mark.parametrize(
    "key", ["../x", "a/../b", "/a", "a//b", "", "a/.b", "a\0", "ä", "a\n", "."]
)
def test_a_key_cannot_leave_the_store(tmp_path: Path, key: str):
    with pytest.raises(ValueError, match="malformed"):
        LocalBlobs(tmp_path).put(key, [b""])


def test_a_url_that_is_none_of_ours_is_refused():
    with pytest.raises(InputError, match="expected file"):
        open_store("http://x/y")


@pytest.fixture
def vault(store: BlobStore, tmp_path: Path) -> Vault:
    crypto.make_root_key(tmp_path / "root.key")
    return Vault(store, LocalBlobs(tmp_path / "keys"), crypto.FileTenantKeys(tmp_path / "root.key"))


def test_a_stored_file_is_unreadable_outside_its_space_and_gone_with_its_key(vault, tmp_path):
    ann, bob = vault.create("a", "ann"), vault.create("a", "bob")
    source = tmp_path / "adapter.safetensors"
    source.write_bytes(b"canary" + BIG)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    stored = ann.store("adapter.safetensors", source, digest)
    assert ann.store("adapter.safetensors", source, digest) == stored
    assert bob.store("adapter.safetensors", source, digest).address != stored.address
    assert b"".join(ann.read(stored)) == source.read_bytes()
    assert b"".join(ann.read(stored, 1 << 20, 70_000)) == source.read_bytes()[1 << 20 :][:70_000]
    keys = list(vault.blobs.keys("users"))
    assert len(keys) == 2
    assert not any(digest in key for key in keys)
    assert not any(b"canary" in b"".join(vault.blobs.read(key)) for key in keys)
    with pytest.raises(ArtifactError, match="gone"):
        list(bob.read(stored))
    assert vault.destroy("a", "ann") == 1
    with pytest.raises(ArtifactError, match="destroyed"):
        vault.space("a", "ann")
    assert list(vault.blobs.keys("users")) == [f"users/a/bob/{bob.digest(bytes.fromhex(digest))}"]
