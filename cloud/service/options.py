"""What a caller may choose for a job, and what the server fills in: names and numbers to configs.

In: messages of a request, and the operator's settings. Out: the configs of the stages, and the
teacher or base model that a name stands for. Callers never give a path, an address or a hub id.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf.message import Message

import cloud.pocket
from cloud.augment import AugmentConfig
from cloud.service.errors import InvalidFields, Violation
from cloud.service.settings import Settings
from cloud.teachers import open_teacher
from cloud.train import TrainConfig
from protos.v1 import adapters_pb2, profiles_pb2

POCKET = "pocket"
_POCKET_BASE = Path(cloud.pocket.__path__[0]) / "models" / "base"


def teacher_spec(settings: Settings, name: str, field: str = "options.teacher") -> str:
    """The teacher that a name stands for, as `open_teacher` takes it.

    Raises:
        InvalidFields: the operator has configured no such teacher.
    """
    known = {POCKET: POCKET, **settings.teachers}
    return _known(known, name or POCKET, field)


def base_spec(settings: Settings, source: str) -> str:
    """The base model that a source stands for, as `open_base` takes it.

    Raises:
        InvalidFields: the operator has configured no such source.
    """
    known = {POCKET: str(_POCKET_BASE), **settings.base_sources}
    return _known(known, source, "base.source")


def is_third_party(spec: str) -> bool:
    """Whether a teacher would see a user's items outside of the operator's machines."""
    return spec.startswith("openai:") and open_teacher(spec, 1).third_party


def augmenting(options: profiles_pb2.AugmentOptions) -> AugmentConfig:
    """How synthetic items are made."""
    defaults = cloud.pocket.AUGMENT if options.teacher in ("", POCKET) else {}
    values = {**defaults, **_given(options, "teacher")}
    if options.HasField("per_real"):
        values["fill_to"] = 0  # who asks for so many gets them
    return AugmentConfig(**values)


def training(
    options: adapters_pb2.TrainOptions, source: str, settings: Settings, field: str = "options"
) -> TrainConfig:
    """How an adapter is trained. source: of the base.

    Raises:
        InvalidFields: a rank that no bundle of a base has room for.
    """
    defaults = cloud.pocket.TRAIN if source == POCKET else {}
    config = TrainConfig(**{**defaults, **_given(options)})
    if config.rank > settings.lowered_rank:
        problem = f"{config.rank}, but bases are lowered for ranks up to {settings.lowered_rank}"
        raise InvalidFields([Violation(f"{field}.rank", problem)])
    return config


def _known(known: dict[str, str], name: str, field: str) -> str:
    if name not in known:
        problem = f"{name!r} is not configured here; known: {', '.join(sorted(known))}"
        raise InvalidFields([Violation(field, problem)])
    return known[name]


def _given(options: Message, *skipped: str) -> dict[str, Any]:
    """The fields that the caller has set."""
    return {field.name: value for field, value in options.ListFields() if field.name not in skipped}
