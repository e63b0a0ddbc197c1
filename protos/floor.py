"""Prove that the generated code runs with the oldest protobuf and gRPC that pyproject.toml allows.

    python -m protos.floor FOLDER    make an environment there with just those, and prove it in it

The proof: every module of `protos.v1` is imported, and every message, with every field set, comes
back equal from its bytes.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NAMES = (
    "googleapis-common-protos", "grpcio", "grpcio-health-checking", "grpcio-reflection", "protobuf",
)  # fmt: skip


def main() -> int:
    """Make the environment, or prove it where this runs inside of one."""
    if sys.argv[1:] == ["--here"]:
        return _prove()
    folder = Path(sys.argv[1])
    venv.create(folder, clear=True, with_pip=True)
    python = folder / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *_oldest()], check=True)
    return subprocess.run([python, "-m", "protos.floor", "--here"], cwd=ROOT).returncode


def _oldest() -> list[str]:
    """The oldest versions that are allowed, as pip takes them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lines = project["optional-dependencies"]["cloud"]
    oldest = [line.replace(">=", "==") for line in lines if line.split(">=")[0] in NAMES]
    if len(oldest) != len(NAMES):
        raise SystemExit(f"of {', '.join(NAMES)}, pyproject.toml names only {oldest}")
    return oldest


def _prove() -> int:
    """Import and send everything once, in this process."""
    count = 0
    for path in sorted((ROOT / "protos" / "v1").glob("*_pb2*.py")):
        module = importlib.import_module(f"protos.v1.{path.stem}")
        if path.stem.endswith("_pb2"):
            for descriptor in _messages(module.DESCRIPTOR.message_types_by_name.values()):
                message = _filled(descriptor)
                again = type(message).FromString(message.SerializeToString())
                if again != message or not message.ByteSize():
                    sys.stderr.write(f"{descriptor.full_name} does not come back as it was\n")
                    return 1
                count += 1
    versions = ", ".join(f"{name} {version(name)}" for name in NAMES)
    sys.stdout.write(f"{count} messages come back as they were with {versions}\n")
    return 0


def _messages(descriptors: Iterable[Any]) -> Iterable[Any]:
    """Message types and those inside of them, which have fields."""
    for descriptor in descriptors:
        if descriptor.fields and not descriptor.GetOptions().map_entry:
            yield descriptor
        yield from _messages(descriptor.nested_types)


def _filled(descriptor: Any, depth: int = 3) -> Any:
    """A message of this type with every field set, down to a depth."""
    from google.protobuf.message_factory import GetMessageClass

    message = GetMessageClass(descriptor)()
    for field in descriptor.fields:
        kind, values = field.message_type, getattr(message, field.name)
        if kind is None:
            value = _scalar(field)
            if field.is_repeated:
                values.append(value)
            else:
                setattr(message, field.name, value)
        elif kind.GetOptions().map_entry:
            key, value = kind.fields_by_name["key"], kind.fields_by_name["value"]
            if value.message_type is None:
                values[_scalar(key)] = _scalar(value)
        elif depth:
            inner = _filled(kind, depth - 1)
            (values.add() if field.is_repeated else values).CopyFrom(inner)
    return message


def _scalar(field: Any) -> Any:
    """A value that is not the default of a field that is no message."""
    if field.enum_type is not None:
        return field.enum_type.values[-1].number
    default = field.default_value if not field.is_repeated else _EMPTY[field.cpp_type]
    return {bool: True, bytes: b"\x00x", float: 0.5, int: 7, str: "ä"}[type(default)]


_EMPTY: dict[int, Any] = {1: 0, 2: 0, 3: 0, 4: 0, 5: 0.0, 6: 0.0, 7: False, 9: ""}
"""Of the kinds of fields that descriptor.py calls CPPTYPE."""


if __name__ == "__main__":
    sys.exit(main())
