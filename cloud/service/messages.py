"""How rows of artifacts, bases and parity reports look outside: the messages of the API.

In: rows as `artifacts_store.rows` gives them, with what their space unsealed. Out: `Adapter`,
`Bundle`, `Base`, `ParityReport`. Used where they are read and where an operation answers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Row, select

from cloud.service import artifacts_store
from cloud.service.artifacts_store import Facts
from cloud.service.tables import Artifact as Artifacts
from cloud.service.tables import Base
from cloud.service.users import timestamp
from cloud.service.vault import Space, StoredFile
from protos.v1 import adapters_pb2, bases_pb2, bundles_pb2, parity_pb2, transfer_pb2


def adapter_name(user_id: str, artifact_id: str) -> str:
    """`users/{user}/adapters/{adapter}`."""
    return f"users/{user_id}/adapters/{artifact_id}"


def bundle_name(user_id: str, artifact_id: str) -> str:
    """`users/{user}/bundles/{bundle}`."""
    return f"users/{user_id}/bundles/{artifact_id}"


def parity_name(user_id: str, uid: str) -> str:
    """`users/{user}/parityReports/{report}`."""
    return f"users/{user_id}/parityReports/{uid}"


def files(stored: Iterable[StoredFile]) -> list[transfer_pb2.ArtifactFile]:
    """Files as clients see them: without their addresses."""
    return [
        transfer_pb2.ArtifactFile(path=f.path, size_bytes=f.size, sha256=f.sha256) for f in stored
    ]


def adapter(row: Row[Any], facts: Facts, user_id: str) -> adapters_pb2.Adapter:
    """The `Adapter` of a row."""
    measured = {
        name: float(value)
        for name, value in facts.measured.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    return adapters_pb2.Adapter(
        name=adapter_name(user_id, row.artifact_id),
        profile=f"users/{user_id}/profiles/{row.task}" if row.task else "",
        base=f"bases/{row.base_id}",
        base_digest=row.base_digest,
        dataset=row.parent_id,
        files=files(facts.files),
        measured=measured,
        create_time=timestamp(row.create_time),
    )


def bundle(row: Row[Any], facts: Facts, user_id: str) -> bundles_pb2.Bundle:
    """The `Bundle` of a row."""
    return bundles_pb2.Bundle(
        name=bundle_name(user_id, row.artifact_id),
        adapter=adapter_name(user_id, row.parent_id),
        base=f"bases/{row.base_id}",
        base_bundle=facts.parents["base_bundle"],
        recipe=row.recipe,
        files=files(facts.files),
        create_time=timestamp(row.create_time),
    )


def base(connection: Connection, row: Row[Any], shared: Space) -> bases_pb2.Base:
    """The `Base` of a row of `bases`, with what it was lowered to."""
    lowered = artifacts_store.rows().where(
        Artifacts.base_uid == row.uid, Artifacts.kind == "BaseBundle"
    )
    bundles = [
        bases_pb2.BaseBundle(
            recipe=each.recipe,
            id=each.artifact_id,
            files=files(artifacts_store.opened(shared, each).files),
        )
        for each in connection.execute(lowered.order_by(Artifacts.recipe)).all()
    ]
    return bases_pb2.Base(
        name=f"bases/{row.base_id}",
        source=row.source,
        digest=row.digest,
        architecture=row.architecture,
        base_bundles=bundles,
        create_time=timestamp(row.create_time),
    )


def base_row(connection: Connection, tenant: str, base_id: str) -> Row[Any] | None:
    """The row of a tenant's base."""
    same = (Base.tenant == tenant) & (Base.base_id == base_id)
    return connection.execute(select(*Base.__table__.columns).where(same)).first()


def base_files(row: Row[Any]) -> Sequence[StoredFile]:
    """The stored files of a base model."""
    return [StoredFile(**file) for file in json.loads(row.files)]


def parity_report(row: Row[Any], space: Space, user_id: str) -> parity_pb2.ParityReport:
    """The `ParityReport` of a row."""
    plain = space.unseal(row.sealed, parity_context(row.uid))
    report = parity_pb2.ParityReport.FromString(plain)
    report.name = parity_name(user_id, row.uid)
    report.create_time.CopyFrom(timestamp(row.create_time))
    return report


def parity_context(uid: str) -> str:
    """What a parity report is sealed with."""
    return f"parity_reports/{uid}"
