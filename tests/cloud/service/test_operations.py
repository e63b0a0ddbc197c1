"""Operations through the API: begun once, watched, cancelled; with a server and a worker."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.longrunning import operations_pb2 as longrunning
from google.longrunning import operations_pb2_grpc as longrunning_grpc
from sqlalchemy import MetaData, select

from cloud.service.state import Database
from protos.v1 import operations_pb2, profiles_pb2, profiles_pb2_grpc, users_pb2, users_pb2_grpc

WORKER = Path(__file__).with_name("worker_process.py")
NAME = "users/ann/profiles/LaMP_4"


@pytest.fixture
def address(serve, database_url: str) -> str:
    toys = {"sleep:0": "pocket", "sleep:0.5": "pocket"}
    found = serve(database_url=database_url, teachers=toys)
    with grpc.insecure_channel(found) as channel:
        users = users_pb2_grpc.UserServiceStub(channel)
        users.CreateUser(users_pb2.CreateUserRequest(user_id="ann"))
        profiles = profiles_pb2_grpc.ProfileServiceStub(channel)
        profiles.CreateProfile(
            profiles_pb2.CreateProfileRequest(parent="users/ann", profile_id="LaMP_4")
        )
        items = [profiles_pb2.Item(input=f"text {i}", output=f"title {i}") for i in range(2)]
        profiles.AppendItems(iter([profiles_pb2.AppendItemsRequest(parent=NAME, items=items)]))
    return found


@pytest.fixture
def operations(address: str) -> Iterator[longrunning_grpc.OperationsStub]:
    with grpc.insecure_channel(address) as channel:
        yield longrunning_grpc.OperationsStub(channel)


@pytest.fixture
def worker(database_url: str, tmp_path: Path) -> Iterator[None]:
    """A worker beside the server, on the same database, blobs and keys."""
    process = subprocess.Popen(
        [sys.executable, str(WORKER), database_url, str(tmp_path / "data")],
        env={"PYTHONPATH": str(Path(__file__).parents[3])},
    )
    yield
    process.kill()
    process.wait()


def augment(address: str, what: str, request_id: str = "") -> longrunning.Operation:
    request = profiles_pb2.AugmentProfileRequest(name=NAME, request_id=request_id)
    request.options.teacher = what
    with grpc.insecure_channel(address) as channel:
        return profiles_pb2_grpc.ProfileServiceStub(channel).AugmentProfile(request)


def tables_that_hold(database_url: str, text: str) -> set[str]:
    """Our tables and DBOS's that have it in any row."""
    database = Database(database_url)
    found: set[str] = set()
    for schema in (None,) if database.is_sqlite else ("public", "dbos"):
        metadata = MetaData()
        metadata.reflect(database.engine, schema)
        with database.transaction(write=False) as connection:
            for table in metadata.sorted_tables:
                if text in str(connection.execute(select(table)).all()):
                    found.add(table.name)
    database.close()
    return found


def deleted(database_url: str, operations, name: str) -> set[str]:
    """Delete an operation; returns the tables that held it, none of which does any more."""
    uid = name.removeprefix("operations/")
    held = tables_that_hold(database_url, uid)
    operations.DeleteOperation(longrunning.DeleteOperationRequest(name=name))
    assert tables_that_hold(database_url, uid) == set()
    return held


def test_a_repeated_request_gets_the_same_operation_and_another_is_refused(
    address, operations, database_url
):
    request_id = str(uuid.uuid4())
    first, second = augment(address, "sleep:0", request_id), augment(address, "sleep:0", request_id)
    assert first.name == second.name
    assert not second.done
    with pytest.raises(grpc.RpcError) as busy:
        augment(address, "sleep:0")
    assert busy.value.code() is grpc.StatusCode.ABORTED
    operations.CancelOperation(longrunning.CancelOperationRequest(name=first.name))
    assert augment(address, "sleep:0", request_id).error.code == grpc.StatusCode.CANCELLED.value[0]
    second = augment(address, "sleep:0")
    assert second.name != first.name
    with pytest.raises(grpc.RpcError) as early:
        operations.DeleteOperation(longrunning.DeleteOperationRequest(name=second.name))
    assert early.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert {"operations", "workflow_status"} <= deleted(database_url, operations, first.name)


def test_an_operation_is_waited_for_and_its_answer_is_typed(
    address, operations, worker, database_url
):
    name = augment(address, "sleep:0.5").name
    request = longrunning.WaitOperationRequest(name=name)
    request.timeout.FromSeconds(30)
    done = operations.WaitOperation(request)
    answer, metadata = profiles_pb2.AugmentProfileResponse(), operations_pb2.OperationMetadata()
    assert done.response.Unpack(answer)
    assert answer.dataset == "one-heavy-last"
    assert done.metadata.Unpack(metadata)
    assert (metadata.method, metadata.target) == ("AugmentProfile", NAME)
    assert metadata.counters == {"steps": 10}
    listed = operations.ListOperations(longrunning.ListOperationsRequest(filter="done=true"))
    assert [operation.name for operation in listed.operations] == [name]
    held = deleted(database_url, operations, name)
    assert {"operations", "workflow_status", "operation_outputs"} <= held
    with pytest.raises(grpc.RpcError) as gone:
        operations.GetOperation(longrunning.GetOperationRequest(name=name))
    assert gone.value.code() is grpc.StatusCode.NOT_FOUND
