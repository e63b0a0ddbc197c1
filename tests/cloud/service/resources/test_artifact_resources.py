"""Adapters, bundles and bases through the API, on SQLite and PostgreSQL."""

from __future__ import annotations

import json
import uuid

import grpc
import pytest
from sqlalchemy import insert, select, update

from cloud.service import artifacts_store
from cloud.service.artifacts_store import Facts
from cloud.service.state import new_uid
from cloud.service.tables import Artifact, Audit, Operation
from cloud.service.vault import StoredFile
from protos.v1 import adapters_pb2 as ap
from protos.v1 import bases_pb2, bundles_pb2, profiles_pb2

Code = grpc.StatusCode


def code_of(call) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as error:
        call()
    return error.value.code()


def adapters_of(site, user="users/ann", size=100) -> list[ap.Adapter]:
    found, token = [], ""
    while True:
        page = site.adapters.ListAdapters(
            ap.ListAdaptersRequest(parent=user, page_size=size, page_token=token)
        )
        assert len(page.adapters) <= size
        found += page.adapters
        token = page.next_page_token
        if not token:
            return found


def test_what_a_job_stored_is_read_listed_and_deleted(site):
    site.add_user("ann")
    bundle_id = site.furnish("ann", b"some text", site.add_base())
    (adapter,) = adapters_of(site)
    assert adapter == site.adapters.GetAdapter(ap.GetAdapterRequest(name=adapter.name))
    assert adapter.profile == "users/ann/profiles/LaMP_4"
    assert (adapter.base, adapter.base_digest) == ("bases/pocket", "d" * 64)
    assert [file.path for file in adapter.files] == ["adapter.bin", "manifest.json"]
    name = f"users/ann/bundles/{bundle_id}"
    bundle = site.bundles.GetBundle(bundles_pb2.GetBundleRequest(name=name))
    assert (bundle.adapter, bundle.base_bundle) == (adapter.name, "b" * 64)
    listed = site.bundles.ListBundles(bundles_pb2.ListBundlesRequest(parent="users/ann"))
    assert list(listed.bundles) == [bundle]
    site.adapters.DeleteAdapter(ap.DeleteAdapterRequest(name=adapter.name))
    gone = ap.GetAdapterRequest(name=adapter.name)
    assert code_of(lambda: site.adapters.GetAdapter(gone)) is Code.NOT_FOUND
    assert site.bundles.GetBundle(bundles_pb2.GetBundleRequest(name=name)) == bundle  # it stays


def test_pages_hold_every_adapter_once_newest_first(site):
    site.add_user("ann")
    base = site.add_base()
    made = [site.put("Adapter", {"a": b"%d" % i}, "ann", base_uid=base) for i in range(7)]
    with site.parts.database.transaction() as connection:  # the same instant for some of them
        connection.execute(update(Artifact).values(create_time=Artifact.create_time // 3_000_000))
    found = [a.name.rsplit("/")[-1] for a in adapters_of(site, size=3)]
    assert sorted(found) == sorted(made)
    times = [a.create_time.ToMicroseconds() for a in adapters_of(site, size=3)]
    assert times == sorted(times, reverse=True)
    first = site.adapters.ListAdapters(ap.ListAdaptersRequest(parent="users/ann", page_size=3))
    site.add_user("bob")
    stolen = ap.ListAdaptersRequest(parent="users/bob", page_token=first.next_page_token)
    assert code_of(lambda: site.adapters.ListAdapters(stolen)) is Code.INVALID_ARGUMENT


def test_ten_thousand_adapters_are_listed_each_once(site):
    site.add_user("ann")
    uid, _ = site._uids("local", "ann")
    space, base = site.parts.vault.space("local", uid), site.add_base()
    facts = Facts([StoredFile("adapter.bin", 1, "a" * 64, "b" * 64)], {}, {"loss": 1.5})
    rows = []
    for index in range(10_000):
        row = new_uid()
        rows.append({
            "uid": row, "kind": "Adapter", "artifact_id": f"{index:064x}", "user_uid": uid,
            "base_uid": base, "recipe": "", "parent_id": "", "size_bytes": 1,
            "sealed": artifacts_store.seal(space, row, facts), "create_time": index // 3,
        })  # fmt: skip
    with site.parts.database.transaction() as connection:
        connection.execute(insert(Artifact), rows)
    token, seen = "", []
    while True:
        page = site.adapters.ListAdapters(
            ap.ListAdaptersRequest(parent="users/ann", page_size=100, page_token=token)
        )
        seen += [adapter.name for adapter in page.adapters]
        token = page.next_page_token
        if not token:
            break
    assert len(seen) == len(set(seen)) == 10_000


def test_a_delete_happens_once_also_across_a_restart(make_site, database_url):
    site = make_site(database_url=database_url)
    site.add_user("ann")
    site.furnish("ann", b"text", site.add_base())
    (adapter,) = adapters_of(site)
    request = ap.DeleteAdapterRequest(name=adapter.name, request_id=str(uuid.uuid4()))
    site.adapters.DeleteAdapter(request)
    site.adapters.DeleteAdapter(request)
    again = make_site(database_url=database_url)
    again.adapters.DeleteAdapter(request)
    fresh = ap.DeleteAdapterRequest(name=adapter.name, request_id=str(uuid.uuid4()))
    assert code_of(lambda: again.adapters.DeleteAdapter(fresh)) is Code.NOT_FOUND
    with site.parts.database.transaction(write=False) as connection:
        rows = connection.execute(select(Audit).where(Audit.method == "DeleteAdapter")).all()
    assert len(rows) == 1


def test_blobs_go_with_the_last_artifact_that_needs_them(site):
    site.add_user("ann")
    base = site.add_base()
    for part in (b"1", b"2"):
        site.put("Adapter", {"same": b"x" * 10, "own": part}, "ann", base_uid=base)
    uid, _ = site._uids("local", "ann")

    def count() -> int:
        return sum(1 for _ in site.parts.vault.blobs.keys(f"users/local/{uid}"))

    assert count() == 5  # two manifests, two `own`, one `same`
    for left, adapter in zip((3, 0), adapters_of(site), strict=True):
        site.adapters.DeleteAdapter(ap.DeleteAdapterRequest(name=adapter.name))
        assert count() == left


def test_nothing_is_deleted_under_an_operation(site):
    site.add_user("ann", ("a",))
    site.furnish("ann", b"text", site.add_base())
    (adapter,) = adapters_of(site)
    request = profiles_pb2.AugmentProfileRequest(name="users/ann/profiles/LaMP_4")
    with site.parts.database.transaction() as connection:
        from cloud.service import operations

        uid, _ = site._uids("local", "ann")
        new = operations.New("local", uid, "AugmentProfile", request.name, uid, request)
        operations.create(connection, new, site.parts.vault.space("local", uid))
    delete = ap.DeleteAdapterRequest(name=adapter.name)
    assert code_of(lambda: site.adapters.DeleteAdapter(delete)) is Code.ABORTED
    with site.parts.database.transaction() as connection:
        operations.request_cancel(connection, new.uid)
        assert connection.execute(select(Operation.conflict_key)).scalar() is None
    site.adapters.DeleteAdapter(delete)


def test_bases_are_listed_by_name_with_what_they_were_lowered_to(site):
    for base_id in ("zeta", "alpha", "mid"):
        base = site.add_base(base_id)
    made = site.put("BaseBundle", {"model.pte": b"m" * 70_000}, base_uid=base, recipe="r")
    page = site.bases.ListBases(bases_pb2.ListBasesRequest(page_size=2))
    rest = site.bases.ListBases(
        bases_pb2.ListBasesRequest(page_size=2, page_token=page.next_page_token)
    )
    found = [base.name for base in (*page.bases, *rest.bases)]
    assert found == ["bases/alpha", "bases/mid", "bases/zeta"]
    assert not rest.next_page_token
    mid = site.bases.GetBase(bases_pb2.GetBaseRequest(name="bases/mid"))
    assert [(b.recipe, b.id) for b in mid.base_bundles] == [("r", made)]
    chunks = list(
        site.bases.DownloadBase(
            bases_pb2.DownloadBaseRequest(name="bases/mid", recipe="r", file="model.pte", offset=1)
        )
    )
    assert [(c.offset, len(c.data)) for c in chunks] == [(1, 65_536), (65_537, 4_463)]
    for recipe, file in (("other", "model.pte"), ("r", "model")):
        wrong = bases_pb2.DownloadBaseRequest(name="bases/mid", recipe=recipe, file=file)
        assert code_of(lambda wrong=wrong: list(site.bases.DownloadBase(wrong))) is Code.NOT_FOUND


def test_a_base_bundle_is_stored_once(site):
    for base_id in ("one", "two"):
        site.put("BaseBundle", {"model.pte": b"m"}, base_uid=site.add_base(base_id), recipe="r")
    with site.parts.database.transaction(write=False) as connection:
        rows = list(connection.execute(select(Artifact.sealed)).scalars())
    stored = {file["sha256"] for row in rows for file in json.loads(row)["files"]}
    assert sum(1 for _ in site.parts.vault.blobs.keys("shared")) == len(stored) == 3


def test_a_profile_goes_with_its_datasets_and_leaves_its_adapters(site):
    site.add_user("ann", ("a",))
    site.furnish("ann", b"synthetic", site.add_base())
    uid, _ = site._uids("local", "ann")
    blobs = site.parts.vault.blobs
    before = sum(1 for _ in blobs.keys(f"users/local/{uid}"))
    name = "users/ann/profiles/LaMP_4"
    request = profiles_pb2.DeleteProfileRequest(name=name, request_id=str(uuid.uuid4()))
    site.profiles.DeleteProfile(request)
    site.profiles.DeleteProfile(request)
    with site.parts.database.transaction(write=False) as connection:
        kinds = set(connection.execute(select(Artifact.kind)).scalars())
    assert kinds == {"Adapter", "AdapterBundle"}
    # The dataset's manifest; its text is also a golden of the bundle, which stays.
    assert sum(1 for _ in blobs.keys(f"users/local/{uid}")) == before - 1
    (adapter,) = adapters_of(site)
    assert adapter.profile == ""
