import datetime

from google.api import client_pb2 as _client_pb2
from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.api import resource_pb2 as _resource_pb2
from google.longrunning import operations_pb2 as _operations_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from protos.v1 import transfer_pb2 as _transfer_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Base(_message.Message):
    __slots__ = ("name", "source", "digest", "architecture", "base_bundles", "create_time")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    BASE_BUNDLES_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    source: str
    digest: str
    architecture: str
    base_bundles: _containers.RepeatedCompositeFieldContainer[BaseBundle]
    create_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., source: _Optional[str] = ..., digest: _Optional[str] = ..., architecture: _Optional[str] = ..., base_bundles: _Optional[_Iterable[_Union[BaseBundle, _Mapping]]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class BaseBundle(_message.Message):
    __slots__ = ("recipe", "id", "files")
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    recipe: str
    id: str
    files: _containers.RepeatedCompositeFieldContainer[_transfer_pb2.ArtifactFile]
    def __init__(self, recipe: _Optional[str] = ..., id: _Optional[str] = ..., files: _Optional[_Iterable[_Union[_transfer_pb2.ArtifactFile, _Mapping]]] = ...) -> None: ...

class CreateBaseRequest(_message.Message):
    __slots__ = ("base_id", "base", "request_id")
    BASE_ID_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    base_id: str
    base: Base
    request_id: str
    def __init__(self, base_id: _Optional[str] = ..., base: _Optional[_Union[Base, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class GetBaseRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListBasesRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListBasesResponse(_message.Message):
    __slots__ = ("bases", "next_page_token")
    BASES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    bases: _containers.RepeatedCompositeFieldContainer[Base]
    next_page_token: str
    def __init__(self, bases: _Optional[_Iterable[_Union[Base, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class LowerBaseRequest(_message.Message):
    __slots__ = ("name", "recipe", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    recipe: str
    request_id: str
    def __init__(self, name: _Optional[str] = ..., recipe: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class DownloadBaseRequest(_message.Message):
    __slots__ = ("name", "recipe", "file", "offset", "length")
    NAME_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    name: str
    recipe: str
    file: str
    offset: int
    length: int
    def __init__(self, name: _Optional[str] = ..., recipe: _Optional[str] = ..., file: _Optional[str] = ..., offset: _Optional[int] = ..., length: _Optional[int] = ...) -> None: ...
