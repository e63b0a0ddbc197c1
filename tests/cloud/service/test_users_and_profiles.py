"""Users and profiles, end to end: a real server, on SQLite and PostgreSQL."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import error_details_pb2, status_pb2

from cloud.service.errors import DETAILS_KEY
from protos.v1 import profiles_pb2 as pp
from protos.v1 import profiles_pb2_grpc, users_pb2, users_pb2_grpc

Code = grpc.StatusCode


def status_of(error: grpc.RpcError) -> status_pb2.Status:
    raw = dict(error.trailing_metadata())[DETAILS_KEY]  # type: ignore[attr-defined]
    return status_pb2.Status.FromString(raw)


def violations(error: grpc.RpcError) -> list[str]:
    bad = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad) for detail in status_of(error).details)
    return [row.field for row in bad.field_violations]


@pytest.fixture
def users(channel: grpc.Channel) -> users_pb2_grpc.UserServiceStub:
    return users_pb2_grpc.UserServiceStub(channel)


@pytest.fixture
def profiles(channel: grpc.Channel) -> profiles_pb2_grpc.ProfileServiceStub:
    return profiles_pb2_grpc.ProfileServiceStub(channel)


def batches(
    parent: str, request_id: str, start: int, stop: int, size: int = 10
) -> Iterator[pp.AppendItemsRequest]:
    for first in range(start, stop, size):
        items = [
            pp.Item(input=f"text {i}", output=f"title {i}", date="2026-01-02")
            for i in range(first, min(first + size, stop))
        ]
        yield pp.AppendItemsRequest(
            parent=parent, request_id=request_id, first_index=first, items=items
        )


def make_profile(users, profiles, user="ann", task="LaMP_4") -> str:
    users.CreateUser(users_pb2.CreateUserRequest(user_id=user))
    return profiles.CreateProfile(
        pp.CreateProfileRequest(parent=f"users/{user}", profile_id=task)
    ).name


def test_items_go_in_and_come_back_in_order_by_pages(users, profiles):
    name = make_profile(users, profiles)
    answer = profiles.AppendItems(batches(name, str(uuid.uuid4()), 0, 25))
    assert (answer.upload.next_index, answer.upload.added_count) == (25, 25)
    assert answer.profile.item_count == 25
    token, seen = "", []
    while True:
        page = profiles.ListItems(pp.ListItemsRequest(parent=name, page_size=10, page_token=token))
        seen += [item.output for item in page.items]
        token = page.next_page_token
        if not token:
            break
    assert seen == [f"title {i}" for i in range(25)]


def test_an_upload_that_broke_off_goes_on_where_it_stood(users, profiles):
    name, upload = make_profile(users, profiles), str(uuid.uuid4())

    def breaks() -> Iterator[pp.AppendItemsRequest]:
        yield from batches(name, upload, 0, 20)
        yield pp.AppendItemsRequest(first_index=999, items=[pp.Item(input="a", output="b")])

    with pytest.raises(grpc.RpcError) as broken:
        profiles.AppendItems(breaks())
    assert broken.value.code() == Code.OUT_OF_RANGE
    stands = profiles.GetUpload(pp.GetUploadRequest(parent=name, request_id=upload))
    assert stands.next_index == 20
    answer = profiles.AppendItems(batches(name, upload, 15, 40))  # overlaps by five
    assert (answer.upload.next_index, answer.profile.item_count) == (40, 40)


def test_items_that_are_there_already_are_counted_not_stored(users, profiles):
    name = make_profile(users, profiles)
    profiles.AppendItems(batches(name, str(uuid.uuid4()), 0, 10))
    again = profiles.AppendItems(batches(name, str(uuid.uuid4()), 0, 12))
    assert (again.upload.added_count, again.upload.duplicate_count) == (2, 10)
    assert again.profile.item_count == 12


def test_a_request_id_makes_a_call_happen_once(users):
    request = users_pb2.CreateUserRequest(user_id="ann", request_id=str(uuid.uuid4()))
    first, second = users.CreateUser(request), users.CreateUser(request)
    assert first == second
    request.user_id = "bob"
    with pytest.raises(grpc.RpcError) as reused:
        users.CreateUser(request)
    assert reused.value.code() == Code.INVALID_ARGUMENT
    assert violations(reused.value) == ["request_id"]
    with pytest.raises(grpc.RpcError) as twice:
        users.CreateUser(users_pb2.CreateUserRequest(user_id="ann"))
    assert twice.value.code() == Code.ALREADY_EXISTS


def test_every_wrong_field_is_named(profiles):
    items = [
        pp.Item(input="a", output="b", date="2026-13-01"),
        pp.Item(input="x" * 100_001, output="y"),
    ]
    with pytest.raises(grpc.RpcError) as wrong:
        profiles.AppendItems(
            iter(
                [
                    pp.AppendItemsRequest(
                        parent="users/../etc", request_id="no", first_index=-1, items=items
                    )
                ]
            )
        )
    assert wrong.value.code() == Code.INVALID_ARGUMENT
    assert violations(wrong.value) == [
        "parent",
        "request_id",
        "first_index",
        "items[0].date",
        "items[1].input",
    ]


@pytest.mark.parametrize(
    "user_id", ["", ".", "..", "a/b", "a\0b", "ä", "a\u202eb", "-a", "a" * 64, "a\n"]
)
def test_ids_cannot_be_paths_or_tricks(users, user_id):
    with pytest.raises(grpc.RpcError) as wrong:
        users.CreateUser(users_pb2.CreateUserRequest(user_id=user_id))
    assert wrong.value.code() == Code.INVALID_ARGUMENT


def test_two_writers_of_a_consent_meet_at_the_etag(users):
    users.CreateUser(users_pb2.CreateUserRequest(user_id="ann"))
    seen = users.GetConsent(users_pb2.GetConsentRequest(name="users/ann/consent"))
    assert (seen.purpose, seen.retention_days, seen.third_party) == ("personalization", 365, False)
    change = users_pb2.Consent(name=seen.name, etag=seen.etag, retention_days=30, purpose="ignored")
    request = users_pb2.UpdateConsentRequest(
        consent=change, update_mask=FieldMask(paths=["retention_days"])
    )
    after = users.UpdateConsent(request)
    assert (after.purpose, after.retention_days) == ("personalization", 30)
    assert after.etag != seen.etag
    with pytest.raises(grpc.RpcError) as stale:
        users.UpdateConsent(request)
    assert stale.value.code() == Code.ABORTED


def test_users_are_listed_by_name_in_pages(users):
    for index in range(7):
        users.CreateUser(users_pb2.CreateUserRequest(user_id=f"u{index}"))
    first = users.ListUsers(users_pb2.ListUsersRequest(page_size=4))
    rest = users.ListUsers(
        users_pb2.ListUsersRequest(page_size=4, page_token=first.next_page_token)
    )
    assert [u.name for u in (*first.users, *rest.users)] == [f"users/u{i}" for i in range(7)]
    assert not rest.next_page_token
    with pytest.raises(grpc.RpcError) as wrong:
        users.ListUsers(users_pb2.ListUsersRequest(page_token="e30="))
    assert violations(wrong.value) == ["page_token"]


def test_a_deleted_profile_is_gone_with_its_items(users, profiles):
    name = make_profile(users, profiles)
    profiles.AppendItems(batches(name, str(uuid.uuid4()), 0, 5))
    profiles.DeleteProfile(pp.DeleteProfileRequest(name=name))
    with pytest.raises(grpc.RpcError) as gone:
        profiles.GetProfile(pp.GetProfileRequest(name=name))
    assert gone.value.code() == Code.NOT_FOUND


def test_a_label_that_the_task_does_not_have_is_refused_with_its_place(users, profiles):
    name = make_profile(users, profiles, task="LaMP_3")
    items = [pp.Item(input="fine", output="5"), pp.Item(input="fine", output="9")]
    with pytest.raises(grpc.RpcError) as wrong:
        profiles.AppendItems(iter([pp.AppendItemsRequest(parent=name, items=items)]))
    assert violations(wrong.value) == ["items[1].output"]
