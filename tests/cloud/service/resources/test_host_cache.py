"""BaseBundles on a host: fetched once, held while a stage runs, gone when there is no room."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import select

from cloud.service.pipeline import Job
from cloud.service.stages.site import Site
from cloud.service.tables import Artifact

GIB = 1 << 30


def test_a_lowered_base_stays_while_a_stage_uses_it(make_site, tmp_path: Path):
    made = make_site(cache_gib=5_000 / GIB)
    ids = {}
    for name in ("one", "two"):
        content = {"base.pte": name.encode() * 1000}
        base = made.add_base(name)
        ids[name] = made.put("BaseBundle", content, base_uid=base, recipe="executorch-xnnpack-fp32")
    with made.parts.database.transaction(write=False) as connection:
        uids = dict(connection.execute(select(Artifact.artifact_id, Artifact.uid)).all())
    site = Site(made.parts.database, made.parts.vault, made.parts.settings, None)  # type: ignore[arg-type]
    job = Job(None, made.parts.vault.shared, 1, tmp_path)  # type: ignore[arg-type]
    cache = tmp_path / "data" / "cache" / "bundles"

    def kept() -> set[str]:
        return {name for name, each in ids.items() if (cache / each).is_dir()}

    with job.held:
        opened = site.base_bundle(job, uids[ids["one"]])
        assert opened.id == ids["one"]
        assert opened.file("base.pte").read_bytes() == b"one" * 1000
        before = opened.path.stat().st_ino
        assert site.base_bundle(job, uids[ids["one"]]).path.stat().st_ino == before
        site.base_bundle(job, uids[ids["two"]])
        assert kept() == {"one", "two"}
    with job.held:
        site.base_bundle(job, uids[ids["two"]])
    assert kept() == {"one", "two"}  # nothing new came, so nothing had to go
    third = made.put("BaseBundle", {"base.pte": b"3" * 3000}, base_uid=made.add_base("three"),
                     recipe="executorch-xnnpack-fp32")  # fmt: skip
    with made.parts.database.transaction(write=False) as connection:
        uid = connection.execute(select(Artifact.uid).where(Artifact.artifact_id == third)).scalar()
    with job.held:
        assert site.base_bundle(job, str(uid)).id == third
    assert kept() == set()
