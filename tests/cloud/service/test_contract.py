"""The API, the rules and the tables agree with each other and with what is committed."""

from __future__ import annotations

import base64
import importlib
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.rpc import error_details_pb2

import protos
from cloud.service import pages, rules
from cloud.service.errors import Exhausted, InvalidFields, Violation, to_status
from cloud.service.state import Database
from cloud.service.tables import Table
from protos.errors import GateError
from protos.v1 import adapters_pb2, parity_pb2, profiles_pb2, users_pb2

_ITEM = profiles_pb2.Item(input="a", output="b")
_Options = adapters_pb2.TrainOptions
V1 = Path(protos.__file__).parent / "v1"


def messages() -> dict[str, Descriptor]:
    modules = [importlib.import_module(f"protos.v1.{p.stem}_pb2") for p in V1.glob("*.proto")]
    return {
        name: d for module in modules for name, d in module.DESCRIPTOR.message_types_by_name.items()
    }


def test_generating_the_code_again_changes_nothing(tmp_path: Path):
    (tmp_path / "protos/v1").mkdir(parents=True)
    subprocess.run(
        [sys.executable, "-m", "protos.generate", "--out", str(tmp_path)],
        check=True,
        cwd=V1.parents[1],
    )
    made = sorted((tmp_path / "protos/v1").iterdir())
    assert len(made) >= 3 * len(list(V1.glob("*.proto")))
    assert [p.name for p in made if p.read_bytes() != (V1 / p.name).read_bytes()] == []


def test_every_rule_is_about_a_field_that_exists():
    known = {f"{name}.{f.name}" for name, d in messages().items() for f in d.fields}
    anywhere = {f"*.{field.split('.')[1]}" for field in known}
    assert set(rules.RULES) <= known | anywhere


def test_every_request_has_a_check_for_each_field_that_a_caller_sets():
    for name, descriptor in messages().items():
        if name.endswith("Request"):
            assert len(rules._checks(descriptor)) == len(descriptor.fields), name


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (profiles_pb2.AppendItemsRequest(items=[_ITEM] * 101), "items"),
        (users_pb2.GetUserRequest(name="users/a/b"), "name"),
        (users_pb2.GetUserRequest(), "name"),
        (users_pb2.ListUsersRequest(page_size=-1), "page_size"),
        (_Options(learning_rate=math.nan), "learning_rate"),
        (adapters_pb2.TrainAdapterRequest(options=_Options(rank=0)), "options.rank"),
        (adapters_pb2.DownloadAdapterRequest(file="../x"), "file"),
        (adapters_pb2.DownloadAdapterRequest(file="a/.b"), "file"),
        (parity_pb2.ParityReport(versions={"a": "\0"}), "versions[a]"),
        (profiles_pb2.Profile(kind=7), "kind"),
    ],
)  # fmt: skip
def test_a_broken_rule_names_its_field(message, field: str):
    with pytest.raises(InvalidFields) as wrong:
        rules.check(message)
    assert field in [violation.field for violation in wrong.value.violations]


@pytest.mark.parametrize(
    "key", [[], ["a"], [1.5], [True], [2**63], [1, 2], {"a": 1}, None, ["\ud800"], [[1]]]
)
def test_a_page_token_from_outside_is_not_trusted(key: object):
    raw = base64.urlsafe_b64encode(json.dumps(["users", key]).encode()).decode()
    with pytest.raises(InvalidFields):
        pages.after(raw, "users", int)
    assert pages.after(pages.token("users", [5]), "users", int) == [5]


def test_the_migrations_make_the_tables(database: Database):
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"target_metadata": Table.metadata})
        ours = [
            d for d in compare_metadata(context, Table.metadata) if "alembic_version" not in str(d)
        ]
    assert ours == []
    database.migrate()  # a second time, as every start does


def test_an_error_tells_what_it_is_and_nothing_more():
    def reason(error: Exception) -> tuple[int, str, str]:
        status, info = to_status(error), error_details_pb2.ErrorInfo()
        assert status.details[0].Unpack(info)
        assert info.domain == "pocketune.dev"
        return status.code, info.reason, status.message

    assert reason(GateError("lowering failed"))[:2] == (9, "GATE")
    assert reason(InvalidFields([Violation("a", "b")])) == (3, "INVALID_FIELDS", "a: b")
    code, _, text = reason(RuntimeError("password=hunter2"))
    assert code == 13
    assert "hunter2" not in text
    assert "incident" in text
    assert reason(OSError(28, "No space"))[:2] == (8, "DISK_FULL")
    assert reason(ConnectionError("postgresql://u:p@h"))[::2] == (
        14,
        "the database or the blob store does not answer; try again",
    )
    retry = error_details_pb2.RetryInfo()
    assert to_status(Exhausted("slow down", 1.5)).details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 1500


def test_messages_have_no_field_that_looks_like_a_path_of_ours():
    texts = [
        f for d in messages().values() for f in d.fields if f.type == FieldDescriptor.TYPE_STRING
    ]
    assert not [f.full_name for f in texts if f.name in ("directory", "local_path")]
