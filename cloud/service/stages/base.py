"""Take in a base model: its files go to the shared space, once for everybody."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy import insert

from cloud.service import messages, options
from cloud.service.pipeline import Job, Result
from cloud.service.stages.site import Site
from cloud.service.state import new_uid, now
from cloud.service.tables import Base
from protos.artifacts import digest_file
from protos.base_model import open_base
from protos.progress import Progress
from protos.v1 import bases_pb2

_PATTERNS = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model")


def run(site: Site, job: Job) -> Result:
    """The stage. A base of that name that is there already was made by this operation, before."""
    request = job.request(bases_pb2.CreateBaseRequest())
    tenant = job.operation.tenant
    with site.database.transaction(write=False) as connection:
        row = messages.base_row(connection, tenant, request.base_id)
    if row is not None:
        return {"base": row.uid}
    spec = options.base_spec(site.settings, request.base.source)
    found: dict[str, Any] = job.in_child(find_model, spec)
    shared, folder = site.vault.shared, Path(found["folder"])
    files = [
        asdict(shared.store(name, folder / name, sha256, job.check))
        for name, sha256 in found["files"].items()
    ]
    job.check()
    uid = new_uid()
    with site.database.transaction() as connection:
        connection.execute(
            insert(Base).values(
                uid=uid, tenant=tenant, base_id=request.base_id, source=request.base.source,
                digest=found["digest"], architecture=found["architecture"],
                files=json.dumps(files).encode(), create_time=now(),
            )
        )  # fmt: skip
    return {"base": uid}


def find_model(spec: str, progress: Progress) -> dict[str, Any]:
    """In the child: fetch and check the model; hashing gigabytes must not hold up the worker."""
    progress("fetching", 0.0)
    model = open_base(spec)
    paths = sorted({path for pattern in _PATTERNS for path in model.directory.glob(pattern)})
    return {
        "folder": str(model.directory),
        "digest": model.digest,
        "architecture": model.architecture,
        "files": {path.name: digest_file(path) for path in paths},
    }
