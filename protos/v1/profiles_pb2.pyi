import datetime

from google.api import client_pb2 as _client_pb2
from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.api import resource_pb2 as _resource_pb2
from google.longrunning import operations_pb2 as _operations_pb2
from google.protobuf import empty_pb2 as _empty_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from protos.v1 import adapters_pb2 as _adapters_pb2
from protos.v1 import bundles_pb2 as _bundles_pb2
from protos.v1 import parity_pb2 as _parity_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TaskKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_KIND_UNSPECIFIED: _ClassVar[TaskKind]
    TASK_KIND_GENERATION: _ClassVar[TaskKind]
    TASK_KIND_CLASSIFICATION: _ClassVar[TaskKind]
    TASK_KIND_RATING: _ClassVar[TaskKind]
TASK_KIND_UNSPECIFIED: TaskKind
TASK_KIND_GENERATION: TaskKind
TASK_KIND_CLASSIFICATION: TaskKind
TASK_KIND_RATING: TaskKind

class Profile(_message.Message):
    __slots__ = ("name", "kind", "prompt", "labels", "language", "item_count", "create_time", "update_time")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_FIELD_NUMBER: _ClassVar[int]
    ITEM_COUNT_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: TaskKind
    prompt: str
    labels: _containers.RepeatedScalarFieldContainer[str]
    language: str
    item_count: int
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[_Union[TaskKind, str]] = ..., prompt: _Optional[str] = ..., labels: _Optional[_Iterable[str]] = ..., language: _Optional[str] = ..., item_count: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Item(_message.Message):
    __slots__ = ("item_id", "input", "output", "date")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    DATE_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    input: str
    output: str
    date: str
    def __init__(self, item_id: _Optional[str] = ..., input: _Optional[str] = ..., output: _Optional[str] = ..., date: _Optional[str] = ...) -> None: ...

class CreateProfileRequest(_message.Message):
    __slots__ = ("parent", "profile_id", "profile", "request_id")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PROFILE_ID_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    parent: str
    profile_id: str
    profile: Profile
    request_id: str
    def __init__(self, parent: _Optional[str] = ..., profile_id: _Optional[str] = ..., profile: _Optional[_Union[Profile, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class GetProfileRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListProfilesRequest(_message.Message):
    __slots__ = ("parent", "page_size", "page_token")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    parent: str
    page_size: int
    page_token: str
    def __init__(self, parent: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListProfilesResponse(_message.Message):
    __slots__ = ("profiles", "next_page_token")
    PROFILES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    profiles: _containers.RepeatedCompositeFieldContainer[Profile]
    next_page_token: str
    def __init__(self, profiles: _Optional[_Iterable[_Union[Profile, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DeleteProfileRequest(_message.Message):
    __slots__ = ("name", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    request_id: str
    def __init__(self, name: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class AppendItemsRequest(_message.Message):
    __slots__ = ("parent", "request_id", "first_index", "items")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_INDEX_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    parent: str
    request_id: str
    first_index: int
    items: _containers.RepeatedCompositeFieldContainer[Item]
    def __init__(self, parent: _Optional[str] = ..., request_id: _Optional[str] = ..., first_index: _Optional[int] = ..., items: _Optional[_Iterable[_Union[Item, _Mapping]]] = ...) -> None: ...

class AppendItemsResponse(_message.Message):
    __slots__ = ("upload", "profile")
    UPLOAD_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    upload: Upload
    profile: Profile
    def __init__(self, upload: _Optional[_Union[Upload, _Mapping]] = ..., profile: _Optional[_Union[Profile, _Mapping]] = ...) -> None: ...

class Upload(_message.Message):
    __slots__ = ("next_index", "added_count", "duplicate_count")
    NEXT_INDEX_FIELD_NUMBER: _ClassVar[int]
    ADDED_COUNT_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_COUNT_FIELD_NUMBER: _ClassVar[int]
    next_index: int
    added_count: int
    duplicate_count: int
    def __init__(self, next_index: _Optional[int] = ..., added_count: _Optional[int] = ..., duplicate_count: _Optional[int] = ...) -> None: ...

class GetUploadRequest(_message.Message):
    __slots__ = ("parent", "request_id")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    parent: str
    request_id: str
    def __init__(self, parent: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class ListItemsRequest(_message.Message):
    __slots__ = ("parent", "page_size", "page_token")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    parent: str
    page_size: int
    page_token: str
    def __init__(self, parent: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListItemsResponse(_message.Message):
    __slots__ = ("items", "next_page_token")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[Item]
    next_page_token: str
    def __init__(self, items: _Optional[_Iterable[_Union[Item, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class AugmentOptions(_message.Message):
    __slots__ = ("teacher", "per_real", "shots", "temperature", "top_p", "seed")
    TEACHER_FIELD_NUMBER: _ClassVar[int]
    PER_REAL_FIELD_NUMBER: _ClassVar[int]
    SHOTS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    teacher: str
    per_real: float
    shots: int
    temperature: float
    top_p: float
    seed: int
    def __init__(self, teacher: _Optional[str] = ..., per_real: _Optional[float] = ..., shots: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., seed: _Optional[int] = ...) -> None: ...

class AugmentProfileRequest(_message.Message):
    __slots__ = ("name", "options", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    options: AugmentOptions
    request_id: str
    def __init__(self, name: _Optional[str] = ..., options: _Optional[_Union[AugmentOptions, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class AugmentProfileResponse(_message.Message):
    __slots__ = ("dataset", "real_count", "synthetic_count", "valid_count", "rejected_counts")
    class RejectedCountsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    DATASET_FIELD_NUMBER: _ClassVar[int]
    REAL_COUNT_FIELD_NUMBER: _ClassVar[int]
    SYNTHETIC_COUNT_FIELD_NUMBER: _ClassVar[int]
    VALID_COUNT_FIELD_NUMBER: _ClassVar[int]
    REJECTED_COUNTS_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    real_count: int
    synthetic_count: int
    valid_count: int
    rejected_counts: _containers.ScalarMap[str, int]
    def __init__(self, dataset: _Optional[str] = ..., real_count: _Optional[int] = ..., synthetic_count: _Optional[int] = ..., valid_count: _Optional[int] = ..., rejected_counts: _Optional[_Mapping[str, int]] = ...) -> None: ...

class PersonalizeProfileRequest(_message.Message):
    __slots__ = ("name", "base", "recipe", "augment", "train", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    AUGMENT_FIELD_NUMBER: _ClassVar[int]
    TRAIN_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    base: str
    recipe: str
    augment: AugmentOptions
    train: _adapters_pb2.TrainOptions
    request_id: str
    def __init__(self, name: _Optional[str] = ..., base: _Optional[str] = ..., recipe: _Optional[str] = ..., augment: _Optional[_Union[AugmentOptions, _Mapping]] = ..., train: _Optional[_Union[_adapters_pb2.TrainOptions, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class PersonalizeProfileResponse(_message.Message):
    __slots__ = ("adapter", "bundle", "parity_report")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    PARITY_REPORT_FIELD_NUMBER: _ClassVar[int]
    adapter: _adapters_pb2.Adapter
    bundle: _bundles_pb2.Bundle
    parity_report: _parity_pb2.ParityReport
    def __init__(self, adapter: _Optional[_Union[_adapters_pb2.Adapter, _Mapping]] = ..., bundle: _Optional[_Union[_bundles_pb2.Bundle, _Mapping]] = ..., parity_report: _Optional[_Union[_parity_pb2.ParityReport, _Mapping]] = ...) -> None: ...
