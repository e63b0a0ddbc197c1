"""Every RPC with every wrong tenant, and with hostile ids, names and paths.

The RPCs are taken from the descriptors: one that is added later is tried without a change here.
"""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.api import resource_pb2
from google.longrunning import operations_pb2 as longrunning
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from cloud.service.auth import make_api_key
from cloud.service.server import _FILES
from cloud.service.tables import Table
from protos.v1 import parity_pb2, profiles_pb2

Code = grpc.StatusCode
METHODS: list[MethodDescriptor] = [
    method
    for file in _FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
OF_NOBODY = {"CreateUser", "ListUsers", "CreateBase", "ListBases", "ListOperations"}
"""Their requests name no resource that is there already."""
TENANTS = ("acme", "blue", "coral")
SETTINGS = {"deadline": None, "suppress_health_check": list(HealthCheck)}
PLAIN: dict[str, Any] = {
    "recipe": "executorch-xnnpack-8da4w", "file": "manifest.json", "profile_id": "LaMP_5",
    "user_id": "newcomer", "base_id": "newcomer",
}  # fmt: skip


@dataclass(frozen=True)
class Names:
    """A name of each type of resource; those of `ghost` are nobody's."""

    by_type: dict[str, str]

    @staticmethod
    def ghost(tenant: str) -> Names:
        user, digest = f"users/ghost-{tenant}", "0123456789abcdef" * 4
        kinds = {
            "User": user, "Consent": f"{user}/consent", "Profile": f"{user}/profiles/LaMP_4",
            "Adapter": f"{user}/adapters/{digest}", "Bundle": f"{user}/bundles/{digest}",
            "ParityReport": f"{user}/parityReports/{uuid.uuid4()}",
            "Base": f"bases/ghost-{tenant}", "Operation": f"operations/{uuid.uuid4()}",
        }  # fmt: skip
        return Names({f"pocketune.dev/{kind}": name for kind, name in kinds.items()})


class Street:
    """One server, three tenants, each with something of every kind."""

    def __init__(self, make_site, tmp_path: Path, **given: Any) -> None:
        made = [make_api_key(tenant, tenant) for tenant in TENANTS]
        path = tmp_path / "keys.json"
        path.write_text(json.dumps([row for _, row in made]))
        self.site = make_site(api_keys_file=path, **given)
        self.metadata = {
            tenant: (("authorization", f"Bearer {key}"),)
            for tenant, (key, _) in zip(TENANTS, made, strict=True)
        }
        self.names = {tenant: self._furnish(tenant) for tenant in TENANTS}

    def _furnish(self, tenant: str) -> Names:
        site, user = self.site, f"of-{tenant}"
        call = {"metadata": self.metadata[tenant]}
        site.add_user(user, ("one", "two"), **call)
        bundle = site.furnish(user, tenant.encode(), site.add_base(user, tenant), tenant)
        (adapter,) = site.artifact_ids(user, "Adapter", tenant)
        names = Names.ghost(tenant).by_type | {
            "pocketune.dev/User": f"users/{user}", "pocketune.dev/Base": f"bases/{user}",
            "pocketune.dev/Consent": f"users/{user}/consent",
            "pocketune.dev/Profile": f"users/{user}/profiles/LaMP_4",
            "pocketune.dev/Adapter": f"users/{user}/adapters/{adapter}",
            "pocketune.dev/Bundle": f"users/{user}/bundles/{bundle}",
        }  # fmt: skip
        create = next(m for m in METHODS if m.name == "CreateParityReport")
        report, _ = self.call(tenant, create, request_of(create, Names(names)))
        begun = site.profiles.AugmentProfile(
            profiles_pb2.AugmentProfileRequest(name=names["pocketune.dev/Profile"]), **call
        )
        site.operations.CancelOperation(longrunning.CancelOperationRequest(name=begun.name), **call)
        names["pocketune.dev/ParityReport"] = report[0].name
        names["pocketune.dev/Operation"] = begun.name
        return Names(names)

    def call(
        self, tenant: str, method: MethodDescriptor, request: Message
    ) -> tuple[list[Any], tuple[grpc.StatusCode, str]]:
        """All answers, and the status that it ended with."""
        service: Any = method.containing_service
        kinds = {(False, False): "unary_unary", (False, True): "unary_stream",
                 (True, False): "stream_unary"}  # fmt: skip
        make = getattr(self.site.channel, kinds[(method.client_streaming, method.server_streaming)])
        stub = make(
            f"/{service.full_name}/{method.name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        given = iter([request]) if method.client_streaming else request
        try:
            answer = stub(given, metadata=self.metadata[tenant], timeout=20)
            return list(answer) if method.server_streaming else [answer], (Code.OK, "")
        except grpc.RpcError as error:
            return [], (error.code(), error.details())  # type: ignore[attr-defined]

    def rows(self) -> list[Any]:
        """All rows of all tables."""
        with self.site.parts.database.transaction(write=False) as connection:
            return [
                sorted(map(repr, connection.execute(select(*table.columns)).all()))
                for table in Table.metadata.sorted_tables
            ]


def reference_of(field: FieldDescriptor) -> str:
    """The type of resource that a field names; empty: none."""
    found: Any = field.GetOptions().Extensions[resource_pb2.resource_reference]  # type: ignore
    owner: Any = field.containing_type
    if field.name == "name" and owner.file.package == "google.longrunning":
        return "pocketune.dev/Operation"
    if owner.name == "Consent" and field.name == "name":
        return "pocketune.dev/Consent"
    return "pocketune.dev/User" if found.child_type else found.type


def fill(message: Message, names: Names) -> None:
    for field in message.DESCRIPTOR.fields:
        if field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated:
            if kind := reference_of(field):
                setattr(message, field.name, names.by_type[kind])
            elif field.name in PLAIN:
                setattr(message, field.name, PLAIN[field.name])
        elif field.name in ("consent", "parity_report", "base"):
            fill(getattr(message, field.name), names)
    if isinstance(message, parity_pb2.ParityReport):
        message.MergeFrom(parity_pb2.ParityReport(runtime="phone", passed=True))
        message.gates.add(metric="top1", value=1, passed=True)


def request_of(method: MethodDescriptor, names: Names) -> Message:
    """A request that would succeed for whoever owns these names."""
    request = GetMessageClass(method.input_type)()
    fill(request, names)
    if method.name == "GetUpload":
        request.request_id = str(uuid.uuid4())  # type: ignore[attr-defined]
    if method.name == "UpdateConsent":
        request.consent.retention_days = 5  # type: ignore[attr-defined]
    if method.name == "AppendItems":
        request.items.add(input="theirs", output="now")  # type: ignore[attr-defined]
    return request


def without_names(text: str) -> str:
    """A message with the ids taken out of it."""
    uid = r"[0-9a-f]{8}-[0-9a-f-]{27}"
    return re.sub(rf"(of|ghost)-\w+|[0-9a-f]{{64}}|{uid}", "ID", text)


def grafted(own: Names, taken: dict[str, str]) -> dict[str, str]:
    """Another's ids below the caller's own user, where ids are not the caller's to choose."""
    user = own.by_type["pocketune.dev/User"]
    given = ("pocketune.dev/Adapter", "pocketune.dev/Bundle", "pocketune.dev/ParityReport")
    return {
        kind: f"{user}/{name.split('/', 2)[2]}" if kind in given else name
        for kind, name in taken.items()
    }


def kinds_in(method: MethodDescriptor) -> set[str]:
    """The types of resources that its request names, also in messages inside it."""
    inside = {"CreateParityReport": {"pocketune.dev/Bundle"},
              "UpdateConsent": {"pocketune.dev/Consent"}}  # fmt: skip
    return inside.get(method.name, set()) | {
        kind for field in method.input_type.fields if (kind := reference_of(field))
    }


@pytest.fixture
def street(make_site, tmp_path: Path, database_url: str) -> Street:
    return Street(make_site, tmp_path, database_url=database_url)


def test_every_rpc_with_every_wrong_tenant_is_not_found(street):
    before = street.rows()
    wrong = [m for m in METHODS if m.name not in OF_NOBODY]
    assert len(wrong) + len(OF_NOBODY) == len(METHODS) == 39
    for method in wrong:
        for caller in TENANTS:
            for owner in TENANTS:
                if owner != caller:
                    request = request_of(method, street.names[owner])
                    answers, (code, _) = street.call(caller, method, request)
                    assert (method.name, answers, code) == (method.name, [], Code.NOT_FOUND)
    assert street.rows() == before


def test_what_is_another_s_looks_like_what_is_not_there(street):
    """Mixed names, own ones among them: nothing differs from names that nobody has."""
    methods = [m for m in METHODS if m.name not in OF_NOBODY]
    kinds = list(street.names["acme"].by_type)

    @settings(max_examples=300, **SETTINGS)
    @given(
        method=st.sampled_from(methods), pair=st.permutations(TENANTS),
        theirs=st.sets(st.sampled_from(kinds), min_size=1), is_grafted=st.booleans(),
    )  # fmt: skip
    def check(
        method: MethodDescriptor, pair: list[str], theirs: set[str], is_grafted: bool
    ) -> None:
        caller, owner = pair[:2]
        own, other, ghost = street.names[caller], street.names[owner], Names.ghost(owner)
        theirs = theirs & kinds_in(method) or kinds_in(method)
        outcomes = []
        for foreign in (other, ghost):
            taken = {kind: foreign.by_type[kind] for kind in theirs}
            if is_grafted:
                taken = grafted(own, taken)
            mixed = Names(own.by_type | taken)
            answers, (code, text) = street.call(caller, method, request_of(method, mixed))
            assert not answers
            outcomes.append((code, without_names(text)))
        assert outcomes[0] == outcomes[1]
        assert outcomes[0][0] in (Code.NOT_FOUND, Code.INVALID_ARGUMENT)

    before = street.rows()
    check()
    assert street.rows() == before


def test_lists_show_the_caller_s_own_and_ids_are_each_tenant_s(street):
    by_name = {method.name: method for method in METHODS}
    for tenant in TENANTS:
        for name in ("ListUsers", "ListBases", "ListOperations"):
            ((page,), _) = street.call(
                tenant, by_name[name], GetMessageClass(by_name[name].input_type)()
            )
            own = set(street.names[tenant].by_type.values())
            ((_, found), *_) = page.ListFields()
            assert {each.name for each in found} <= own, name
            assert len(found) == 1
    taken = by_name["CreateUser"].input_type
    request = GetMessageClass(taken)(user_id="of-acme")
    ((made,), _) = street.call("blue", by_name["CreateUser"], request)
    get = request_of(by_name["GetUser"], street.names["acme"])
    ((theirs,), _) = street.call("acme", by_name["GetUser"], get)
    assert made.name == theirs.name
    assert made.uid != theirs.uid


HOSTILE = [
    "..", ".", "../../secret", "users/../../secret", "/etc/passwd", "a/../../secret", "a\0b", "\0",
    "%2e%2e%2fsecret", "..%c0%afsecret", "..\\secret", "C:\\secret", "\u2025/secret", "a\u202eb",
    "\uff0e\uff0e/secret", "u\u0308ser", "\ufeffann", "users/of-acme\u200b", "a" * 5000, "~root",
    "users/of-acme/adapters/../../../secret", "users/of-acme\n", "$(id)", "' OR 1=1 --", "{user}",
    "file:///etc/passwd", "users/of-ACME", "\U0001f600", "COM1", "-rf",
]  # fmt: skip


def test_hostile_texts_escape_nowhere(make_site, tmp_path: Path):
    """In any text field of any request: refused or harmless, never an internal error."""
    (tmp_path / "secret").write_text("SECRET-outside")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "secret").write_text("SECRET-inside")
    street = Street(make_site, tmp_path)
    fields = [
        (method, field)
        for method in METHODS
        for field in method.input_type.fields
        if field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated
    ]
    outside = sorted(p for p in tmp_path.iterdir())
    names = Names(
        {k: v.replace("of-acme", "nobody") for k, v in street.names["acme"].by_type.items()}
    )
    allowed = {Code.OK, Code.INVALID_ARGUMENT, Code.NOT_FOUND}

    @settings(max_examples=400, **SETTINGS)
    @given(
        where=st.sampled_from(fields),
        text=st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(codec="utf-8"))),
        is_real=st.booleans(),
    )
    def check(where: tuple[MethodDescriptor, FieldDescriptor], text: str, is_real: bool) -> None:
        method, field = where
        is_mutating = not method.name.startswith(("Get", "List", "Download"))
        known = street.names["acme"] if is_real and not is_mutating else names
        request = request_of(method, known)
        setattr(request, field.name, text)
        answers, (code, details) = street.call("acme", method, request)
        again = method.name.startswith("Create") and field.name == "request_id"
        if not (again and code == Code.ALREADY_EXISTS):  # a second one, told apart by its id
            assert code in allowed, (method.name, field.name, text, code, details)
        assert not any(b"SECRET" in answer.SerializeToString() for answer in answers)
        assert "Traceback" not in details

    check()
    assert sorted(p for p in tmp_path.iterdir()) == outside
    assert not [p for p in (tmp_path / "data").rglob("*") if "secret" in p.name and p.is_dir()]


def test_every_hostile_name_is_refused_in_every_name_field(make_site, tmp_path: Path):
    street = Street(make_site, tmp_path)
    before = street.rows()
    for method in METHODS:
        for field in method.input_type.fields:
            is_id = field.name.endswith("_id")
            if not is_id and not reference_of(field):
                continue
            for text in HOSTILE:
                if is_id and text == "COM1":  # an id like any other: ids never become file names
                    continue
                request = request_of(method, street.names["acme"])
                setattr(request, field.name, text)
                _, (code, _) = street.call("acme", method, request)
                expected = (Code.INVALID_ARGUMENT, Code.NOT_FOUND)
                assert code in expected, (method.name, field.name, text)
    assert street.rows() == before
