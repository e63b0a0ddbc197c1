"""Resource names and the ids in them: what may stand where, and how to take them apart.

Ids are ASCII letters, digits, `.`, `_` and `-`, and begin with a letter or digit: no id can be a
path, escape a folder, hide a NUL or look like another one.
"""

from __future__ import annotations

import re
from functools import cache

ID = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
DIGEST = r"[0-9a-f]{64}"
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
TASK = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"

PATTERNS = {
    "pocketune.dev/User": "users/{user}",
    "pocketune.dev/Consent": "users/{user}/consent",
    "pocketune.dev/Profile": "users/{user}/profiles/{task}",
    "pocketune.dev/Adapter": "users/{user}/adapters/{digest}",
    "pocketune.dev/Bundle": "users/{user}/bundles/{digest}",
    "pocketune.dev/ParityReport": "users/{user}/parityReports/{uuid}",
    "pocketune.dev/Base": "bases/{base}",
    "pocketune.dev/Operation": "operations/{uuid}",
}
_PARTS = {"user": ID, "base": ID, "task": TASK, "digest": DIGEST, "uuid": UUID}


@cache
def regex(resource_type: str) -> re.Pattern[str]:
    """The names that a resource of this type can have."""
    pattern = PATTERNS[resource_type]
    return re.compile(re.sub(r"\{(\w+)\}", lambda m: f"(?P<{m[1]}>{_PARTS[m[1]]})", pattern))


def parts(resource_type: str, name: str) -> tuple[str, ...]:
    """The ids in a name that has been checked: `users/a/profiles/b` gives `("a", "b")`.

    Raises:
        ValueError: the name has another form.
    """
    found = regex(resource_type).fullmatch(name)
    if found is None:
        raise ValueError(f"expected {PATTERNS[resource_type]}")
    return found.groups()


def user(user_id: str) -> str:
    """`users/{user}`."""
    return f"users/{user_id}"


def profile(user_id: str, task: str) -> str:
    """`users/{user}/profiles/{task}`."""
    return f"users/{user_id}/profiles/{task}"


def operation(operation_id: str) -> str:
    """`operations/{operation}`."""
    return f"operations/{operation_id}"
