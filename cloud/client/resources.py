"""Users, profiles, bases and what was made of them: one method for each simple call.

Names are those of the API: `users/ann`, `users/ann/profiles/LaMP_4`, `bases/pocket`. Long work and
transfers are in `client.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from google.longrunning import operations_pb2 as longrunning
from google.longrunning import operations_pb2_grpc as longrunning_grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from cloud.client.calls import Caller
from cloud.client.channel import Credential, Tls
from cloud.client.operation import Operation
from protos.v1 import (
    adapters_pb2,
    adapters_pb2_grpc,
    bases_pb2,
    bases_pb2_grpc,
    bundles_pb2,
    bundles_pb2_grpc,
    parity_pb2,
    parity_pb2_grpc,
    profiles_pb2,
    profiles_pb2_grpc,
    users_pb2,
    users_pb2_grpc,
)

T = TypeVar("T", bound=Message)


class Resources:
    """A connection to one server, with its stubs and the simple calls."""

    def __init__(
        self,
        address: str,
        credential: Credential = "",
        tls: Tls | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        self._caller = Caller(address, credential, tls, timeout_s)
        self._call = self._caller.call
        self.channel = channel = self._caller.channel
        self.users = users_pb2_grpc.UserServiceStub(channel)
        self.profiles = profiles_pb2_grpc.ProfileServiceStub(channel)
        self.adapters = adapters_pb2_grpc.AdapterServiceStub(channel)
        self.bundles = bundles_pb2_grpc.BundleServiceStub(channel)
        self.bases = bases_pb2_grpc.BaseServiceStub(channel)
        self.parity = parity_pb2_grpc.ParityServiceStub(channel)
        self.operations = longrunning_grpc.OperationsStub(channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of the connection; calls that still run are cancelled."""
        await self.channel.close()

    async def _start(self, method: Any, request: Message, answer: type[T]) -> Operation[T]:
        return Operation(await self._call(method, request, longrunning.Operation), answer)

    # Users

    async def create_user(
        self, user_id: str, consent: users_pb2.Consent | None = None
    ) -> users_pb2.User:
        """Create a user under a pseudonym of yours; consent: what they allowed."""
        request = users_pb2.CreateUserRequest(user_id=user_id, consent=consent)
        return await self._call(self.users.CreateUser, request, users_pb2.User)

    async def get_user(self, user: str) -> users_pb2.User:
        """The user `users/{user}`."""
        request = users_pb2.GetUserRequest(name=user)
        return await self._call(self.users.GetUser, request, users_pb2.User)

    def list_users(self) -> AsyncIterator[users_pb2.User]:
        """All users of the tenant, by name."""
        request = users_pb2.ListUsersRequest()
        return self._caller.pages(self.users.ListUsers, request, users_pb2.ListUsersResponse)

    async def delete_user(self, user: str) -> Operation[users_pb2.ErasureReceipt]:
        """Erase a user and everything made from their items."""
        request = users_pb2.DeleteUserRequest(name=user)
        return await self._start(self.users.DeleteUser, request, users_pb2.ErasureReceipt)

    async def get_consent(self, user: str) -> users_pb2.Consent:
        """What the user `users/{user}` allowed; send its etag back with a change."""
        request = users_pb2.GetConsentRequest(name=f"{user}/consent")
        return await self._call(self.users.GetConsent, request, users_pb2.Consent)

    async def update_consent(
        self, consent: users_pb2.Consent, fields: Sequence[str] = ()
    ) -> users_pb2.Consent:
        """Change some fields of a consent, or all of them."""
        request = users_pb2.UpdateConsentRequest(consent=consent)
        request.update_mask.paths.extend(fields)
        return await self._call(self.users.UpdateConsent, request, users_pb2.Consent)

    # Profiles and their items

    async def create_profile(
        self, user: str, task: str, profile: profiles_pb2.Profile | None = None
    ) -> profiles_pb2.Profile:
        """Create an empty profile; profile: describes a task that is none of LaMP's."""
        request = profiles_pb2.CreateProfileRequest(parent=user, profile_id=task, profile=profile)
        return await self._call(self.profiles.CreateProfile, request, profiles_pb2.Profile)

    async def get_profile(self, profile: str) -> profiles_pb2.Profile:
        """The profile `users/{user}/profiles/{task}`, without its items."""
        request = profiles_pb2.GetProfileRequest(name=profile)
        return await self._call(self.profiles.GetProfile, request, profiles_pb2.Profile)

    def list_profiles(self, user: str) -> AsyncIterator[profiles_pb2.Profile]:
        """All profiles of a user, by name."""
        request = profiles_pb2.ListProfilesRequest(parent=user)
        answer = profiles_pb2.ListProfilesResponse
        return self._caller.pages(self.profiles.ListProfiles, request, answer)

    async def delete_profile(self, profile: str) -> None:
        """Delete a profile, its items and datasets."""
        request = profiles_pb2.DeleteProfileRequest(name=profile)
        await self._call(self.profiles.DeleteProfile, request, Empty)

    def list_items(self, profile: str) -> AsyncIterator[profiles_pb2.Item]:
        """All items of a profile, in the order in which they came."""
        request = profiles_pb2.ListItemsRequest(parent=profile)
        return self._caller.pages(self.profiles.ListItems, request, profiles_pb2.ListItemsResponse)

    # What was made

    async def get_adapter(self, adapter: str) -> adapters_pb2.Adapter:
        """The adapter `users/{user}/adapters/{adapter}`."""
        request = adapters_pb2.GetAdapterRequest(name=adapter)
        return await self._call(self.adapters.GetAdapter, request, adapters_pb2.Adapter)

    def list_adapters(self, user: str) -> AsyncIterator[adapters_pb2.Adapter]:
        """All adapters of a user, newest first."""
        request = adapters_pb2.ListAdaptersRequest(parent=user)
        answer = adapters_pb2.ListAdaptersResponse
        return self._caller.pages(self.adapters.ListAdapters, request, answer)

    async def get_bundle(self, bundle: str) -> bundles_pb2.Bundle:
        """The bundle `users/{user}/bundles/{bundle}`."""
        request = bundles_pb2.GetBundleRequest(name=bundle)
        return await self._call(self.bundles.GetBundle, request, bundles_pb2.Bundle)

    def list_bundles(self, user: str) -> AsyncIterator[bundles_pb2.Bundle]:
        """All bundles of a user, newest first."""
        request = bundles_pb2.ListBundlesRequest(parent=user)
        return self._caller.pages(
            self.bundles.ListBundles, request, bundles_pb2.ListBundlesResponse
        )

    async def get_base(self, base: str) -> bases_pb2.Base:
        """The base `bases/{base}`."""
        request = bases_pb2.GetBaseRequest(name=base)
        return await self._call(self.bases.GetBase, request, bases_pb2.Base)

    def list_bases(self) -> AsyncIterator[bases_pb2.Base]:
        """All bases, by name."""
        request = bases_pb2.ListBasesRequest()
        return self._caller.pages(self.bases.ListBases, request, bases_pb2.ListBasesResponse)

    async def submit_parity(
        self, user: str, report: parity_pb2.ParityReport
    ) -> parity_pb2.ParityReport:
        """Hand in what a device measured with a bundle's goldens."""
        request = parity_pb2.CreateParityReportRequest(parent=user, parity_report=report)
        return await self._call(self.parity.CreateParityReport, request, parity_pb2.ParityReport)
