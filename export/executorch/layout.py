"""The layout of a base: which key in its program stands for which adapter tensor.

A program names its constants by keys of 64 hex characters. The template's keys are overwritten, in
place, with keys of the adapter: XNNPACK's weight cache finds constants by key alone, so two users
whose adapters shared keys would get each other's answers, without an error.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.executorch.data_file import read_data_file
from export.executorch.lower import Lowered
from export.peft_adapter import Arrays
from protos.artifacts import read_json, write_json
from protos.errors import ArtifactError, InputError
from protos.shipped_weights import StoredWeight, weights_json

FORMAT = 1
FILE = "layout.json"
KEY_LENGTH = 64
_FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Slot:
    """One adapter tensor of the program.

    name: `<module path>.lora_A` or `.lora_B`. shape: [rank, in] or [out, rank], float32.
    key: the template's key. offset: where the key stands in the program, bytes from its start.
    """

    name: str
    shape: tuple[int, int]
    dtype: str
    size_bytes: int
    key: str
    offset: int

    @property
    def module(self) -> str:
        """The linear layer that the slot adapts."""
        return self.name.rpartition(".")[0]


@dataclass(frozen=True)
class Layout:
    """What an adapter must look like to fit a base.

    foundation: key -> bytes of every constant in the base's data file.
    """

    backend: str
    rank: int
    context_length: int
    vocab_size: int
    program_sha256: str
    program_size_bytes: int
    slots: Sequence[Slot]
    foundation: Mapping[str, int]

    @property
    def modules(self) -> list[str]:
        """The linear layers that an adapter can change, in order."""
        return list(dict.fromkeys(slot.module for slot in self.slots))


def make_layout(
    lowered: Lowered, template: Arrays, *, backend: str, rank: int, context_length: int, vocab: int
) -> Layout:
    """Find every template tensor in a lowered model.

    Raises:
        AssertionError: lowering changed a tensor or its naming: not a state that input can cause.
    """
    assert lowered.foundation is not None
    assert lowered.adapter is not None
    keys = {data: key for key, data in read_data_file(lowered.adapter).items()}
    foundation = read_data_file(lowered.foundation)
    assert len(keys) == len(template), f"{len(keys)} adapter constants of {len(template)} tensors"
    slots = [
        _slot(name, array, keys[array.tobytes()], lowered.program)
        for name, array in template.items()
    ]
    return Layout(
        backend=backend,
        rank=rank,
        context_length=context_length,
        vocab_size=vocab,
        program_sha256=hashlib.sha256(lowered.program).hexdigest(),
        program_size_bytes=len(lowered.program),
        slots=slots,
        foundation={key: len(foundation[key]) for key in sorted(foundation)},
    )


def _slot(name: str, array: NDArray[np.float32], key: str, program: bytes) -> Slot:
    encoded = key.encode()
    assert len(encoded) == KEY_LENGTH, f"{name}: key {key!r} is not {KEY_LENGTH} characters"
    assert program.count(encoded) == 1, f"{name}: its key occurs {program.count(encoded)} times"
    rows, columns = array.shape
    return Slot(name, (rows, columns), "float32", array.nbytes, key, program.index(encoded))


def write_layout(directory: Path, layout: Layout, weights: Sequence[StoredWeight] = ()) -> None:
    """Write `layout.json`; `weights` says which key stands for which weight of the base, with its
    shape and form.
    """
    value = {
        "format": FORMAT,
        "backend": layout.backend,
        "rank": layout.rank,
        "context_length": layout.context_length,
        "vocab_size": layout.vocab_size,
        "dtype": "float32",
        "program": {"sha256": layout.program_sha256, "size_bytes": layout.program_size_bytes},
        "slots": [asdict(slot) for slot in layout.slots],
        "foundation": dict(layout.foundation),
        "weights": weights_json(weights),
    }
    write_json(directory / FILE, value)


def read_layout(path: Path) -> Layout:
    """Read `layout.json` and check that it is consistent in itself.

    Raises:
        ArtifactError: it is malformed; nothing would keep us from writing over the wrong bytes.
    """
    try:
        raw = read_json(path)
        layout = _parse(raw)
    except (InputError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: malformed layout ({error})") from None
    wrong = [slot.name for slot in layout.slots if not _sound(slot, layout)]
    if wrong:
        raise ArtifactError(f"{path}: malformed slots {', '.join(wrong[:4])}")
    return layout


def _parse(raw: Any) -> Layout:
    if raw["format"] != FORMAT:
        raise ValueError(f"format is {raw['format']!r}, this build reads {FORMAT}")
    return Layout(
        backend=str(raw["backend"]),
        rank=int(raw["rank"]),
        context_length=int(raw["context_length"]),
        vocab_size=int(raw["vocab_size"]),
        program_sha256=str(raw["program"]["sha256"]),
        program_size_bytes=int(raw["program"]["size_bytes"]),
        slots=[_parse_slot(slot) for slot in raw["slots"]],
        foundation={str(key): int(size) for key, size in raw["foundation"].items()},
    )


def _parse_slot(raw: Any) -> Slot:
    rows, columns = raw["shape"]
    return Slot(
        name=str(raw["name"]),
        shape=(int(rows), int(columns)),
        dtype=str(raw["dtype"]),
        size_bytes=int(raw["size_bytes"]),
        key=str(raw["key"]),
        offset=int(raw["offset"]),
    )


def _sound(slot: Slot, layout: Layout) -> bool:
    return (
        layout.rank in slot.shape
        and slot.dtype == "float32"
        and slot.size_bytes == _FLOAT32_BYTES * math.prod(slot.shape)
        and len(slot.key) == KEY_LENGTH
        and 0 <= slot.offset <= layout.program_size_bytes - KEY_LENGTH
    )


def adapter_keys(layout: Layout, digest: str) -> dict[str, str]:
    """Slot name -> key, for the adapter whose folded tensors have this digest."""
    return {
        slot.name: hashlib.sha256(f"{digest}:{slot.name}".encode()).hexdigest()
        for slot in layout.slots
    }


def patch_keys(program: bytes, layout: Layout, keys: Mapping[str, str]) -> bytes:
    """The template program with each slot's key replaced; same length, nothing else changed.

    Raises:
        ArtifactError: the program is not the one that the layout describes.
    """
    patched = bytearray(program)
    for slot in layout.slots:
        place = slice(slot.offset, slot.offset + KEY_LENGTH)
        if bytes(patched[place]) != slot.key.encode():
            raise ArtifactError(f"program: no key of {slot.name} at byte {slot.offset}")
        patched[place] = keys[slot.name].encode()
    return bytes(patched)
