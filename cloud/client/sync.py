"""The client for code without an event loop: `AsyncClient`, run on a thread of its own.

One line a method: what it does stands in `resources.py` and `client.py`, and a test holds the two
signatures to each other. Progress is reported from that thread. Ctrl-C cancels the call.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from google.longrunning import operations_pb2 as longrunning
from google.protobuf.message import Message

from cloud.client.channel import Credential, Tls
from cloud.client.client import AsyncClient
from cloud.client.operation import Operation
from protos.progress import Progress, silent
from protos.v1 import (
    adapters_pb2,
    bases_pb2,
    bundles_pb2,
    parity_pb2,
    profiles_pb2,
    users_pb2,
)

T = TypeVar("T", bound=Message)
R = TypeVar("R")


class Client:
    """A connection to one server; safe to use from several threads. See `AsyncClient`."""

    def __init__(
        self,
        address: str,
        credential: Credential = "",
        tls: Tls | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="pocketune-client", daemon=True
        )
        self._thread.start()

        async def make() -> AsyncClient:
            return AsyncClient(address, credential, tls, timeout_s)

        try:
            self._inner = self._run(make())
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection; calls that still run are cancelled."""
        if self._thread.is_alive():
            self._run(self._inner.close())
            self._end()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, R]) -> R:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise

    def _each(self, found: AsyncIterator[R]) -> Iterator[R]:
        async def following() -> tuple[R, ...]:
            async for each in found:
                return (each,)
            return ()

        while each := self._run(following()):
            yield each[0]

    def create_user(self, user_id: str, consent: users_pb2.Consent | None = None) -> users_pb2.User:
        """Create a user under a pseudonym of yours; consent: what they allowed."""
        return self._run(self._inner.create_user(user_id, consent))

    def get_user(self, user: str) -> users_pb2.User:
        """The user `users/{user}`."""
        return self._run(self._inner.get_user(user))

    def list_users(self) -> Iterator[users_pb2.User]:
        """All users of the tenant, by name."""
        return self._each(self._inner.list_users())

    def delete_user(self, user: str) -> Operation[users_pb2.ErasureReceipt]:
        """Erase a user and everything made from their items."""
        return self._run(self._inner.delete_user(user))

    def get_consent(self, user: str) -> users_pb2.Consent:
        """What the user `users/{user}` allowed; send its etag back with a change."""
        return self._run(self._inner.get_consent(user))

    def update_consent(
        self, consent: users_pb2.Consent, fields: Sequence[str] = ()
    ) -> users_pb2.Consent:
        """Change some fields of a consent, or all of them."""
        return self._run(self._inner.update_consent(consent, fields))

    def create_profile(
        self, user: str, task: str, profile: profiles_pb2.Profile | None = None
    ) -> profiles_pb2.Profile:
        """Create an empty profile; profile: describes a task that is none of LaMP's."""
        return self._run(self._inner.create_profile(user, task, profile))

    def get_profile(self, profile: str) -> profiles_pb2.Profile:
        """The profile `users/{user}/profiles/{task}`, without its items."""
        return self._run(self._inner.get_profile(profile))

    def list_profiles(self, user: str) -> Iterator[profiles_pb2.Profile]:
        """All profiles of a user, by name."""
        return self._each(self._inner.list_profiles(user))

    def delete_profile(self, profile: str) -> None:
        """Delete a profile, its items and datasets."""
        return self._run(self._inner.delete_profile(profile))

    def list_items(self, profile: str) -> Iterator[profiles_pb2.Item]:
        """All items of a profile, in the order in which they came."""
        return self._each(self._inner.list_items(profile))

    def get_adapter(self, adapter: str) -> adapters_pb2.Adapter:
        """The adapter `users/{user}/adapters/{adapter}`."""
        return self._run(self._inner.get_adapter(adapter))

    def list_adapters(self, user: str) -> Iterator[adapters_pb2.Adapter]:
        """All adapters of a user, newest first."""
        return self._each(self._inner.list_adapters(user))

    def get_bundle(self, bundle: str) -> bundles_pb2.Bundle:
        """The bundle `users/{user}/bundles/{bundle}`."""
        return self._run(self._inner.get_bundle(bundle))

    def list_bundles(self, user: str) -> Iterator[bundles_pb2.Bundle]:
        """All bundles of a user, newest first."""
        return self._each(self._inner.list_bundles(user))

    def get_base(self, base: str) -> bases_pb2.Base:
        """The base `bases/{base}`."""
        return self._run(self._inner.get_base(base))

    def list_bases(self) -> Iterator[bases_pb2.Base]:
        """All bases, by name."""
        return self._each(self._inner.list_bases())

    def submit_parity(self, user: str, report: parity_pb2.ParityReport) -> parity_pb2.ParityReport:
        """Hand in what a device measured with a bundle's goldens."""
        return self._run(self._inner.submit_parity(user, report))

    def upload(
        self,
        profile: str,
        items: Sequence[profiles_pb2.Item],
        upload_id: str = "",
        progress: Progress = silent,
    ) -> profiles_pb2.AppendItemsResponse:
        """Append items; a broken stream goes on where the server has got to."""
        return self._run(self._inner.upload(profile, items, upload_id, progress))

    def augment(
        self, request: profiles_pb2.AugmentProfileRequest
    ) -> Operation[profiles_pb2.AugmentProfileResponse]:
        """Have a teacher write items in the user's manner."""
        return self._run(self._inner.augment(request))

    def train(self, request: adapters_pb2.TrainAdapterRequest) -> Operation[adapters_pb2.Adapter]:
        """Train an adapter on a dataset."""
        return self._run(self._inner.train(request))

    def export(self, request: bundles_pb2.ExportBundleRequest) -> Operation[bundles_pb2.Bundle]:
        """Package an adapter for the phone."""
        return self._run(self._inner.export(request))

    def personalize(
        self, request: profiles_pb2.PersonalizeProfileRequest
    ) -> Operation[profiles_pb2.PersonalizeProfileResponse]:
        """The whole pipeline, from the profile's items to a verified bundle."""
        return self._run(self._inner.personalize(request))

    def create_base(self, base_id: str, source: str) -> Operation[bases_pb2.Base]:
        """Take in a base model. source: `pocket`, or a name that the operator configured."""
        return self._run(self._inner.create_base(base_id, source))

    def lower_base(self, base: str, recipe: str) -> Operation[bases_pb2.Base]:
        """Lower `bases/{base}` with a recipe; done once."""
        return self._run(self._inner.lower_base(base, recipe))

    def get_operation(self, name: str, answer: type[T]) -> Operation[T]:
        """The operation `operations/{operation}` as it stands. answer: type of its response."""
        return self._run(self._inner.get_operation(name, answer))

    def list_operations(self, only_open: bool = False) -> Iterator[longrunning.Operation]:
        """The tenant's operations, newest first."""
        return self._each(self._inner.list_operations(only_open))

    def wait(self, operation: Operation[T], progress: Progress = silent) -> T:
        """Wait until the operation has ended; returns its response."""
        return self._run(self._inner.wait(operation, progress))

    def settle(self, operation: Operation[T], progress: Progress = silent) -> Operation[T]:
        """Wait until the operation has ended, in whatever way; returns its last state."""
        return self._run(self._inner.settle(operation, progress))

    def cancel(self, name: str) -> None:
        """Ask for an operation to end; it does within a second."""
        return self._run(self._inner.cancel(name))

    def download(
        self, name: str, folder: Path, recipe: str = "", progress: Progress = silent
    ) -> list[Path]:
        """Bring all files of a bundle, an adapter or a lowered base to `folder`."""
        return self._run(self._inner.download(name, folder, recipe, progress))
