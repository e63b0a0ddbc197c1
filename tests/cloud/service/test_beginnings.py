"""What may begin and what may not: through a real server, without a worker."""

from __future__ import annotations

import uuid

import grpc
import pytest
from google.longrunning import operations_pb2 as longrunning
from google.longrunning import operations_pb2_grpc as longrunning_grpc
from google.rpc import error_details_pb2, status_pb2
from sqlalchemy import insert, select

from cloud.service.errors import DETAILS_KEY
from cloud.service.state import Database
from cloud.service.tables import Base, Operation
from export.recipes import RECIPES
from protos.v1 import (
    adapters_pb2,
    adapters_pb2_grpc,
    bases_pb2,
    bases_pb2_grpc,
    bundles_pb2,
    bundles_pb2_grpc,
    profiles_pb2,
    profiles_pb2_grpc,
    users_pb2,
    users_pb2_grpc,
)

Code = grpc.StatusCode
NAME = "users/ann/profiles/LaMP_4"
STRANGERS = {"elsewhere": "openai:https://models.example.com/v1#big"}


class Client:
    def __init__(self, channel: grpc.Channel) -> None:
        self.users = users_pb2_grpc.UserServiceStub(channel)
        self.profiles = profiles_pb2_grpc.ProfileServiceStub(channel)
        self.adapters = adapters_pb2_grpc.AdapterServiceStub(channel)
        self.bundles = bundles_pb2_grpc.BundleServiceStub(channel)
        self.bases = bases_pb2_grpc.BaseServiceStub(channel)
        self.operations = longrunning_grpc.OperationsStub(channel)

    def profile(self, user: str = "ann", items: int = 2, **consent: bool) -> str:
        self.users.CreateUser(users_pb2.CreateUserRequest(user_id=user, consent=consent))
        name = self.profiles.CreateProfile(
            profiles_pb2.CreateProfileRequest(parent=f"users/{user}", profile_id="LaMP_4")
        ).name
        batch = [profiles_pb2.Item(input=f"text {i}", output=f"title {i}") for i in range(items)]
        request = profiles_pb2.AppendItemsRequest(parent=name, items=batch)
        self.profiles.AppendItems(iter([request]))
        return name

    def augment(self, name: str = NAME, teacher: str = "", request_id: str = ""):
        return self.profiles.AugmentProfile(
            profiles_pb2.AugmentProfileRequest(
                name=name, options={"teacher": teacher}, request_id=request_id
            )
        )


@pytest.fixture
def connect(serve, database_url: str):
    channels: list[grpc.Channel] = []

    def client(**settings: object) -> Client:
        channels.append(grpc.insecure_channel(serve(database_url=database_url, **settings)))
        return Client(channels[-1])

    yield client
    for channel in channels:
        channel.close()


def refusal(call, *arguments, **named) -> tuple[Code, status_pb2.Status]:
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **named)
    error = caught.value
    raw = dict(error.trailing_metadata())[DETAILS_KEY]  # type: ignore[attr-defined]
    return error.code(), status_pb2.Status.FromString(raw)  # type: ignore[attr-defined]


def detail(status: status_pb2.Status, message):
    assert any(each.Unpack(message) for each in status.details)
    return message


def make_base(database_url: str) -> None:
    """A row as CreateBase leaves it; nothing here looks at its files."""
    database = Database(database_url)
    with database.transaction() as connection:
        row = {
            "uid": "b1", "tenant": "local", "base_id": "small", "source": "pocket",
            "digest": "0" * 64, "architecture": "X", "files": b"[]", "create_time": 1,
        }  # fmt: skip
        connection.execute(insert(Base).values(row))
    database.close()


def test_a_third_party_teacher_needs_the_user_s_consent(connect):
    client = connect(teachers=STRANGERS)
    client.profile()
    code, status = refusal(client.augment, teacher="elsewhere")
    assert code == Code.FAILED_PRECONDITION
    assert "consent" in status.message
    agreed = client.profile("bob", third_party=True)
    assert client.augment(agreed, "elsewhere").name.startswith("operations/")


def test_only_teachers_recipes_and_sources_that_the_operator_named_are_taken(connect, database_url):
    client = connect()
    client.profile()
    make_base(database_url)
    bad = error_details_pb2.BadRequest
    for teacher in ("hf:/etc", "openai:http://169.254.169.254/v1#m", "elsewhere"):
        code, status = refusal(client.augment, teacher=teacher)
        assert code == Code.INVALID_ARGUMENT
        assert detail(status, bad()).field_violations[0].field == "options.teacher"
    request = bases_pb2.CreateBaseRequest(base_id="b", base={"source": "/etc"})
    _, status = refusal(client.bases.CreateBase, request)
    assert detail(status, bad()).field_violations[0].field == "base.source"
    _, status = refusal(
        client.bases.LowerBase, bases_pb2.LowerBaseRequest(name="bases/small", recipe="nope")
    )
    assert detail(status, bad()).field_violations[0].field == "recipe"


def test_the_recipes_of_the_settings_are_those_of_the_export(connect):
    from cloud.service.settings import Settings

    assert set(Settings().recipes) <= set(RECIPES)


def test_what_is_not_there_is_refused_before_a_job_begins(connect, database_url):
    client = connect()
    client.profile()
    make_base(database_url)
    train = adapters_pb2.TrainAdapterRequest(parent="users/ann", profile=NAME, base="bases/small")
    code, status = refusal(client.adapters.TrainAdapter, train)
    assert code == Code.FAILED_PRECONDITION
    assert "AugmentProfile" in status.message
    train.dataset = "0" * 64
    assert refusal(client.adapters.TrainAdapter, train)[0] == Code.NOT_FOUND
    train.base = "bases/other"
    assert refusal(client.adapters.TrainAdapter, train)[0] == Code.NOT_FOUND
    train.base, train.options.rank = "bases/small", 64
    assert refusal(client.adapters.TrainAdapter, train)[0] == Code.INVALID_ARGUMENT
    export = bundles_pb2.ExportBundleRequest(
        parent="users/ann", adapter=f"users/ann/adapters/{'0' * 64}",
        recipe="executorch-xnnpack-8da4w",
    )  # fmt: skip
    assert refusal(client.bundles.ExportBundle, export)[0] == Code.NOT_FOUND
    export.adapter = f"users/bob/adapters/{'0' * 64}"
    assert refusal(client.bundles.ExportBundle, export)[0] == Code.INVALID_ARGUMENT
    poor = client.profile("poor", items=1)
    assert refusal(client.augment, poor)[0] == Code.FAILED_PRECONDITION


def test_a_second_operation_on_a_user_is_aborted_and_one_on_another_user_is_not(
    connect, database_url
):
    client = connect()
    client.profile()
    make_base(database_url)
    client.augment()
    personalize = profiles_pb2.PersonalizeProfileRequest(
        name=NAME, base="bases/small", recipe="executorch-xnnpack-8da4w"
    )
    assert refusal(client.profiles.PersonalizeProfile, personalize)[0] == Code.ABORTED
    personalize.name = client.profile("bob")
    client.profiles.PersonalizeProfile(personalize)
    database = Database(database_url)
    with database.transaction(write=False) as connection:
        waiting = select(Operation.method, Operation.base_uid).order_by(Operation.create_time)
        rows = [tuple(row) for row in connection.execute(waiting)]
    database.close()
    assert rows == [("AugmentProfile", None), ("PersonalizeProfile", "b1")]


def test_open_operations_have_a_quota_that_says_when_to_come_back(connect):
    client = connect(tenant_open_operations=1)
    first, second = client.profile(), client.profile("bob")
    request_id = str(uuid.uuid4())
    begun = client.augment(first, request_id=request_id)
    code, status = refusal(client.augment, second)
    assert code == Code.RESOURCE_EXHAUSTED
    assert detail(status, error_details_pb2.RetryInfo()).retry_delay.seconds == 10
    assert client.augment(first, request_id=request_id).name == begun.name
    client.operations.CancelOperation(longrunning.CancelOperationRequest(name=begun.name))
    assert client.augment(second).name != begun.name


def test_a_tenant_that_calls_too_fast_is_told_to_wait(connect):
    client = connect(tenant_calls_per_s=5)
    name = users_pb2.GetUserRequest(name="users/nobody")
    codes = [refusal(client.users.GetUser, name) for _ in range(14)]
    refused = [status for code, status in codes if code == Code.RESOURCE_EXHAUSTED]
    assert 1 <= len(refused) <= 4  # ten in the bucket, and those that dripped in meanwhile
    wait = detail(refused[0], error_details_pb2.RetryInfo()).retry_delay
    assert 0 < wait.nanos <= 200_000_000
    other = connect(tenant_calls_per_s=5)  # each server counts for itself
    assert refusal(other.users.GetUser, name)[0] == Code.NOT_FOUND


def test_training_goes_to_the_queue_of_the_gpu_workers(connect, database_url):
    client = connect(training_queue="gpu")
    client.profile()
    uid = client.augment().name.split("/")[1]
    database = Database(database_url)
    schema = "" if database.is_sqlite else "dbos."
    with database.transaction(write=False) as connection:
        query = f"SELECT queue_name FROM {schema}workflow_status WHERE workflow_uuid = '{uid}'"
        assert connection.exec_driver_sql(query).scalar() == "gpu"
    database.close()
