"""A long-running operation as the client sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from google.longrunning import operations_pb2 as longrunning
from google.protobuf.message import Message

from cloud.client.errors import CallError, of_status
from protos.v1 import operations_pb2

T = TypeVar("T", bound=Message)


@dataclass(frozen=True)
class Operation(Generic[T]):
    """One state of an operation, as the server last told it.

    answer: the type of its response. raw: the message itself.
    """

    raw: longrunning.Operation
    answer: type[T]

    @property
    def name(self) -> str:
        """`operations/{operation}`; enough to find it again from anywhere."""
        return self.raw.name

    @property
    def done(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self.raw.done

    @property
    def metadata(self) -> operations_pb2.OperationMetadata:
        """Stage, progress, time left and counters."""
        found = operations_pb2.OperationMetadata()
        self.raw.metadata.Unpack(found)
        return found

    @property
    def error(self) -> CallError | None:
        """What it failed with."""
        return of_status(self.raw.error) if self.raw.HasField("error") else None

    def response(self) -> T:
        """What it made.

        Raises:
            CallError: it failed.
            ValueError: it is not done.
        """
        if self.error:
            raise self.error
        if not self.done:
            raise ValueError(f"{self.name} is not done")
        made = self.answer()
        self.raw.response.Unpack(made)
        return made

    def shown(self) -> str:
        """The stage, and what it is doing, for people."""
        stage = operations_pb2.Stage.Name(self.metadata.stage).removeprefix("STAGE_").lower()
        return f"{stage}: {self.metadata.message}" if self.metadata.message else stage
