"""What each field of a request must be: all constraints of the API, as data, in one place.

In: a request message. Out: nothing, or `InvalidFields` with every violation. What the .proto says
itself is read from there: REQUIRED fields, and the form of resource names from
`resource_reference`. Everything else stands in `RULES`. A field without a rule has the defaults of
its type: text up to 1,024 characters, whole numbers from 0, finite numbers, up to 100 elements.
Output-only fields are not looked at.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from google.api import field_behavior_pb2, resource_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from cloud.profiles import MAX_ITEM_CHARS, MAX_RETENTION_DAYS
from cloud.randomness import MOST_SEED
from cloud.service.errors import InvalidFields, Violation
from cloud.service.names import DIGEST, ID, TASK, UUID, regex
from cloud.train import MOST_RANK

# Half typed: protobuf's stubs do not fit their own extension fields.
_BEHAVIOR: Any = field_behavior_pb2.field_behavior
_REFERENCE: Any = resource_pb2.resource_reference
_REQUIRED = field_behavior_pb2.REQUIRED
_OUTPUT = (field_behavior_pb2.OUTPUT_ONLY, field_behavior_pb2.IDENTIFIER)
_DATE = r"(\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01]))?"
_LANGUAGE = r"([A-Za-z]{2,8}(-[A-Za-z0-9]{1,8}){0,5})?"
_PATH = r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*"


@dataclass(frozen=True)
class Rule:
    """Limits of one field. least, most: of a number, or of how many elements there are."""

    pattern: str = ""
    max_chars: int = 1024
    least: float = 0
    most: float = math.inf
    above: float | None = None
    max_items: int = 100


_SEED = Rule(most=MOST_SEED)
RULES: dict[str, Rule] = {
    "*.request_id": Rule(pattern=f"({UUID})?"),
    "*.page_token": Rule(pattern=r"[A-Za-z0-9_=-]*"),
    "*.file": Rule(pattern=_PATH, max_chars=255),
    "*.recipe": Rule(pattern=r"[a-z0-9][a-z0-9_-]*", max_chars=63),
    "*.dataset": Rule(pattern=f"({DIGEST})?"),
    "CreateUserRequest.user_id": Rule(pattern=ID),
    "CreateBaseRequest.base_id": Rule(pattern=ID),
    "CreateProfileRequest.profile_id": Rule(pattern=TASK),
    "Consent.purpose": Rule(max_chars=200),
    "Consent.retention_days": Rule(most=MAX_RETENTION_DAYS),
    "Profile.prompt": Rule(max_chars=10_000),
    "Profile.labels": Rule(max_chars=200),
    "Profile.language": Rule(pattern=_LANGUAGE),
    "Item.item_id": Rule(max_chars=128),
    "Item.input": Rule(max_chars=MAX_ITEM_CHARS),
    "Item.output": Rule(max_chars=MAX_ITEM_CHARS),
    "Item.date": Rule(pattern=_DATE),
    "AugmentOptions.per_real": Rule(most=20),
    "AugmentOptions.shots": Rule(least=1, most=64),
    "AugmentOptions.temperature": Rule(above=0, most=5),
    "AugmentOptions.top_p": Rule(above=0, most=1),
    "AugmentOptions.seed": _SEED,
    "TrainOptions.rank": Rule(least=1, most=MOST_RANK),
    "TrainOptions.alpha": Rule(least=1, most=1024),
    "TrainOptions.targets": Rule(pattern=r"[A-Za-z0-9_., -]*"),
    "TrainOptions.learning_rate": Rule(above=0, most=1),
    "TrainOptions.epochs": Rule(least=1, most=100),
    "TrainOptions.batch_size": Rule(least=1, most=256),
    "TrainOptions.seed": _SEED,
    "Base.source": Rule(max_chars=200),
    "ParityReport.runtime": Rule(max_chars=100),
    "ParityReport.versions": Rule(max_items=50),
    "ParityGate.metric": Rule(max_chars=100),
    "ParityGate.value": Rule(least=-math.inf),
    "ParityGate.threshold": Rule(least=-math.inf),
}  # fmt: skip

Check = Callable[[Message], Iterator[Violation]]


def check(request: Message) -> None:
    """Refuse a request that breaks a rule.

    Raises:
        InvalidFields: names every field that is wrong, as a path such as `items[3].date`.
    """
    violations = list(_violations(request))
    if violations:
        raise InvalidFields(violations)


def _violations(message: Message) -> Iterator[Violation]:
    for each in _checks(message.DESCRIPTOR):
        yield from each(message)


@cache
def _checks(descriptor: Descriptor) -> tuple[Check, ...]:
    """One check for each field that a caller may set."""
    if not descriptor.full_name.startswith("pocketune.v1."):
        return ()
    return tuple(_field_check(f) for f in descriptor.fields if not _is_output(f))


def _is_output(field: FieldDescriptor) -> bool:
    behaviors = field.GetOptions().Extensions[_BEHAVIOR]
    return any(behavior in _OUTPUT for behavior in behaviors)


def _field_check(field: FieldDescriptor) -> Check:
    name = field.name
    behaviors = field.GetOptions().Extensions[_BEHAVIOR]
    required = _REQUIRED in behaviors
    one = _one(field)
    repeated, is_map = field.is_repeated, _is_map(field)
    limit = rule_of(field).max_items
    tracks = field.has_presence

    def check_field(message: Message) -> Iterator[Violation]:
        value = getattr(message, name)
        if repeated:
            if len(value) > limit:
                yield Violation(name, f"{len(value)} elements, at most {limit}")
                return
            for key, element in value.items() if is_map else enumerate(value):
                yield from one(f"{name}[{key}]", element)
        elif message.HasField(name) if tracks else value:
            yield from one(name, value)
        elif required:
            yield Violation(name, "is required")

    return check_field


def _is_map(field: FieldDescriptor) -> bool:
    inner = field.message_type
    return inner is not None and inner.GetOptions().map_entry


def rule_of(field: FieldDescriptor) -> Rule:
    """The rule of one field: its own, that of its name in any message, or the defaults."""
    owner: Any = field.containing_type
    own = f"{owner.name}.{field.name}"
    return RULES.get(own) or RULES.get(f"*.{field.name}") or Rule()


def _one(field: FieldDescriptor) -> Callable[[str, Any], Iterator[Violation]]:
    """The check of a single value of the field."""
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_MESSAGE:
        entry: Any = field.message_type
        if _is_map(field):
            return _one(entry.fields_by_name["value"])
        return _nested
    if kind == FieldDescriptor.CPPTYPE_STRING and field.type == FieldDescriptor.TYPE_STRING:
        return _text(field)
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        values: Any = field.enum_type
        known = set(values.values_by_number)
        return lambda path, value: _if(value not in known, path, f"{value} is unknown")
    if kind in (FieldDescriptor.CPPTYPE_BOOL, FieldDescriptor.CPPTYPE_STRING):
        return lambda path, value: iter(())
    return _number(rule_of(field))


def _nested(path: str, value: Message) -> Iterator[Violation]:
    for inner in _violations(value):
        yield Violation(f"{path}.{inner.field}", inner.problem)


def _text(field: FieldDescriptor) -> Callable[[str, str], Iterator[Violation]]:
    rule = rule_of(field)
    pattern, said = _pattern(field, rule)

    def check_text(path: str, value: str) -> Iterator[Violation]:
        if len(value) > rule.max_chars:
            yield Violation(path, f"{len(value):,} characters, at most {rule.max_chars:,}")
        elif "\0" in value:
            yield Violation(path, "holds a NUL character")
        elif pattern and not pattern.fullmatch(value):
            yield Violation(path, f"expected {said}")

    return check_text


def _pattern(field: FieldDescriptor, rule: Rule) -> tuple[re.Pattern[str] | None, str]:
    """The form of a text: of a resource name where the .proto refers to one."""
    reference = field.GetOptions().Extensions[_REFERENCE]
    if reference.child_type:
        return regex("pocketune.dev/User"), "users/{user}"
    if reference.type:
        found = regex(reference.type)
        return found, re.sub(r"\(\?P<(\w+)>.*?\)(?=/|$)", r"{\1}", found.pattern)
    return (re.compile(rule.pattern, re.ASCII), rule.pattern) if rule.pattern else (None, "")


def _number(rule: Rule) -> Callable[[str, float], Iterator[Violation]]:
    def check_number(path: str, value: float) -> Iterator[Violation]:
        if not math.isfinite(value):
            yield Violation(path, f"{value} is not a finite number")
        elif rule.above is not None and value <= rule.above:
            yield Violation(path, f"{value:g}, expected above {rule.above:g}")
        elif value < rule.least or value > rule.most:
            yield Violation(path, f"{value:g}, expected {rule.least:g} to {rule.most:g}")

    return check_number


def _if(wrong: bool, path: str, problem: str) -> Iterator[Violation]:
    if wrong:
        yield Violation(path, problem)
