"""What a tenant may store: refused when it is full, and not any more when something was deleted."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from cloud.service.errors import DETAILS_KEY
from protos.v1 import bundles_pb2, profiles_pb2

GIB = 1 << 30
PROFILE = "users/ann/profiles/LaMP_4"


def test_a_tenant_that_is_full_begins_nothing_until_it_deletes(make_site, database_url):
    site = make_site(database_url=database_url, tenant_gib=10_000 / GIB)
    site.add_user("ann", ("one", "two"))
    bundle = f"users/ann/bundles/{site.furnish('ann', b'text' * 100, site.add_base())}"
    request = profiles_pb2.AugmentProfileRequest(name=PROFILE)
    with pytest.raises(grpc.RpcError) as full:
        site.profiles.AugmentProfile(request)
    assert full.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    raw = dict(full.value.trailing_metadata())[DETAILS_KEY]
    status, wait = status_pb2.Status.FromString(raw), error_details_pb2.RetryInfo()
    assert "delete bundles, adapters, profiles or users" in status.message
    assert any(each.Unpack(wait) for each in status.details)
    assert wait.retry_delay.seconds == 3600
    site.add_user("bob", ("one", "two"))  # items and profiles are still taken
    site.bundles.DeleteBundle(bundles_pb2.DeleteBundleRequest(name=bundle))
    assert site.profiles.AugmentProfile(request).name.startswith("operations/")
