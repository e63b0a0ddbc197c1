"""Downloads: any range of a sealed or plain file, from a folder or from S3, and what goes wrong."""

from __future__ import annotations

import hashlib
import random

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protos.v1 import adapters_pb2 as ap

Code = grpc.StatusCode
CONTENT = random.Random(7).randbytes(5 * 65_536 + 4_321)


@pytest.fixture(params=["folder, sealed", "folder, plain", "s3, sealed"])
def site(request: pytest.FixtureRequest, make_site):
    given: dict[str, object] = {"encrypt": "sealed" in request.param}
    if request.param.startswith("s3"):
        endpoint = request.getfixturevalue("s3")
        given |= {"blobs_url": request.getfixturevalue("bucket"), "s3_endpoint_url": endpoint}
    found = make_site(**given)
    found.add_user("ann")
    found.put(
        "Adapter", {"big.bin": CONTENT, "empty": b""}, "ann", base_uid=found.add_base()
    )  # fmt: skip
    return found


def request_of(site, file: str = "big.bin", offset: int = 0, length: int = 0):
    listed = site.adapters.ListAdapters(ap.ListAdaptersRequest(parent="users/ann"))
    return ap.DownloadAdapterRequest(
        name=listed.adapters[0].name, file=file, offset=offset, length=length
    )


def download(site, request) -> tuple[bytes, dict[str, str]]:
    call = site.adapters.DownloadAdapter(request)
    data, at = b"", request.offset
    for chunk in call:
        assert chunk.offset == at
        assert 0 < len(chunk.data) <= 65_536
        data += chunk.data
        at += len(chunk.data)
    return data, dict(call.trailing_metadata())


def code_of(site, request) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as error:
        download(site, request)
    return error.value.code()


def test_a_file_arrives_with_its_digests(site):
    for file, content in (("big.bin", CONTENT), ("empty", b"")):
        data, trailer = download(site, request_of(site, file))
        assert data == content
        digest = hashlib.sha256(content).hexdigest()
        assert trailer["pocketune-file-sha256"] == trailer["pocketune-range-sha256"] == digest


def test_every_range_is_what_was_asked_for(site):
    request = request_of(site)
    edge = st.sampled_from([0, 1, 65_535, 65_536, 65_537, 5 * 65_536, len(CONTENT)])
    number = st.one_of(edge, st.integers(0, len(CONTENT)))

    @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
    @given(offset=number, length=number)
    def check(offset: int, length: int) -> None:
        request.offset, request.length = offset, length
        data, trailer = download(site, request)
        assert data == CONTENT[offset : offset + length if length else None]
        assert trailer["pocketune-range-sha256"] == hashlib.sha256(data).hexdigest()
        assert trailer["pocketune-file-sha256"] == hashlib.sha256(CONTENT).hexdigest()

    check()


def test_a_download_that_broke_off_goes_on_where_it_stood(site):
    request = request_of(site)
    call = site.adapters.DownloadAdapter(request)
    have = b"".join(next(call).data for _ in range(3))
    call.cancel()
    request.offset = len(have)
    rest, trailer = download(site, request)
    assert hashlib.sha256(have + rest).hexdigest() == trailer["pocketune-file-sha256"]
    request.offset = len(CONTENT)  # it broke off after the last byte
    assert download(site, request)[0] == b""


def test_what_is_not_there_is_refused(site):
    assert code_of(site, request_of(site, offset=len(CONTENT) + 1)) is Code.OUT_OF_RANGE
    assert code_of(site, request_of(site, offset=-1)) is Code.INVALID_ARGUMENT
    assert code_of(site, request_of(site, file="big")) is Code.NOT_FOUND
    request = request_of(site)
    request.name = f"users/ann/adapters/{'0' * 64}"
    assert code_of(site, request) is Code.NOT_FOUND


def test_a_blob_that_is_gone_is_a_loss_that_is_told(site):
    request = request_of(site)
    for key in list(site.parts.vault.blobs.keys("users")):
        site.parts.vault.blobs.delete(key)
    assert code_of(site, request) is Code.DATA_LOSS


def test_an_altered_blob_is_noticed_at_the_altered_chunk(make_site):
    site = make_site()
    site.add_user("ann")
    site.put("Adapter", {"big.bin": CONTENT}, "ann", base_uid=site.add_base())
    blobs = site.parts.vault.blobs
    for key in list(blobs.keys("users")):
        raw = bytearray(b"".join(blobs.read(key)))
        raw[-1] ^= 1
        blobs.put(key, [bytes(raw)])
    request = request_of(site, length=65_536)
    assert download(site, request)[0] == CONTENT[:65_536]  # the first chunk is sound
    assert code_of(site, request_of(site)) is Code.DATA_LOSS
