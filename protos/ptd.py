"""ExecuTorch data files (`.ptd`, the FlatTensor format): what is in one, and several put into one.

In: files. Out: the place and size of every tensor in them, and one file that holds them all, which
is what Python's loader takes. A file is read with every offset checked, so that a damaged one gives
an error and never a crash; tensor bytes are not looked at.

Format: executorch `extension/flat_tensor/serialize/flat_tensor.fbs`, a FlatBuffer with a 40-byte
header (padded to 48) after its first 8 bytes, followed by the tensors' bytes.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import flatbuffers

from protos.errors import ArtifactError
from protos.int8_file import BLOCK, START_BYTES, floats, scales_bytes, unpack

_HEADER = struct.Struct("<4sIQQQQ")
_HEADER_AT = 8
_HEADER_BYTES = 48
_SEGMENT_ALIGNMENT = 128
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Layout:
    """How a tensor lies in its bytes; XNNPACK's own constants have none."""

    scalar_type: int
    sizes: tuple[int, ...]
    dim_order: tuple[int, ...]


@dataclass(frozen=True)
class Tensor:
    """One named run of bytes: `size_bytes` at `offset` of `path`, or that many zeros.

    scales_at: where their scales begin, if they are float32 numbers that are stored there as bytes
    (`protos.int8_file`).
    """

    key: str
    size_bytes: int
    path: Path | None
    offset: int = 0
    layout: Layout | None = None
    scales_at: int | None = None

    @property
    def stored_bytes(self) -> int:
        count = self.size_bytes // 4
        return self.size_bytes if self.scales_at is None else count + scales_bytes(count)


def zeros(key: str, size_bytes: int) -> Tensor:
    """A tensor of zero bytes, which need not be stored anywhere."""
    return Tensor(key, size_bytes, path=None)


def read_ptd(path: Path) -> list[Tensor]:
    """What a `.ptd` file holds, in its order.

    Raises:
        ArtifactError: it is truncated, malformed, or names a key twice.
    """
    try:
        tensors = _parse(path, path.read_bytes())
    except (struct.error, ValueError, IndexError, OSError) as error:
        raise ArtifactError(f"{path}: not a sound ExecuTorch data file ({error})") from None
    keys = [tensor.key for tensor in tensors]
    if len(set(keys)) != len(keys):
        raise ArtifactError(f"{path}: a key occurs twice in it")
    return tensors


def read_ptd8(path: Path) -> list[Tensor]:
    """What a `.ptd8` file holds (format: `protos.int8_file`); raises as `read_ptd` does."""
    try:
        data, head_bytes = unpack(path.read_bytes())
        tensors = _parse(path, data)
    except (struct.error, ValueError, IndexError, OSError) as error:
        raise ArtifactError(f"{path}: not a sound data file of bytes ({error})") from None
    if len({tensor.key for tensor in tensors}) != len(tensors):
        raise ArtifactError(f"{path}: a key occurs twice in it")
    if any(_misplaced(tensor, head_bytes) for tensor in tensors):
        raise ArtifactError(f"{path}: a tensor begins amid {BLOCK} numbers, or is not of float32")
    scales = START_BYTES + head_bytes
    numbers = scales + scales_bytes((len(data) - head_bytes) // 4)
    places = [(tensor.offset - head_bytes) // 4 for tensor in tensors]
    return [
        replace(tensor, offset=numbers + place, scales_at=scales + scales_bytes(place))
        for tensor, place in zip(tensors, places, strict=True)
    ]


def _misplaced(tensor: Tensor, head_bytes: int) -> bool:
    start = tensor.offset - head_bytes
    return start < 0 or bool(start % (4 * BLOCK)) or bool(tensor.size_bytes % 4)


def read_floats(tensor: Tensor) -> bytes:
    """A stored tensor's bytes as float32, as a program gets them."""
    assert tensor.path is not None
    return b"".join(_bytes(_place(tensor)))


def write_ptd(stream: BinaryIO, tensors: Sequence[Tensor]) -> str:
    """Write one data file that holds `tensors`; returns the sha256 of what was written.

    Keys that share their bytes (tied weights) share them in the new file as well.
    """
    places = dict.fromkeys(_place(tensor) for tensor in tensors)
    offsets: list[int] = []
    end = 0
    for _, _, size, _ in places:
        offsets.append(_aligned(end))
        end = offsets[-1] + size
    index = {place: number for number, place in enumerate(places)}
    segments = [(offset, place[2]) for offset, place in zip(offsets, places, strict=True)]
    digest = hashlib.sha256()
    for piece in _pieces(_head(tensors, index, segments), list(places), offsets):
        digest.update(piece)
        stream.write(piece)
    return digest.hexdigest()


_Place = tuple[str, int, int, int | None]


def _place(tensor: Tensor) -> _Place:
    """Tensors of the same place have the same bytes; zeros are never shared."""
    if tensor.path is None:
        return (f"zeros:{tensor.key}", 0, tensor.size_bytes, None)
    return (str(tensor.path), tensor.offset, tensor.size_bytes, tensor.scales_at)


def _aligned(size: int) -> int:
    return -(-size // _SEGMENT_ALIGNMENT) * _SEGMENT_ALIGNMENT


def _pieces(head: bytes, places: list[_Place], offsets: list[int]) -> Iterator[bytes]:
    yield head
    written = 0
    for place, offset in zip(places, offsets, strict=True):
        yield bytes(offset - written)
        yield from _bytes(place)
        written = offset + place[2]


def _bytes(place: _Place) -> Iterator[bytes]:
    """A tensor's bytes, as a program gets them."""
    source, start, size, scales_at = place
    if scales_at is None:
        yield from _source_bytes(source, start, size)
        return
    count = size // 4
    scales = b"".join(_source_bytes(source, scales_at, scales_bytes(count)))
    yield floats(scales, b"".join(_source_bytes(source, start, count))).tobytes()


def _source_bytes(source: str, start: int, size: int) -> Iterator[bytes]:
    if source.startswith("zeros:"):
        yield bytes(size)
        return
    with Path(source).open("rb") as stream:
        stream.seek(start)
        while size:
            piece = stream.read(min(size, _CHUNK_BYTES))
            if not piece:
                raise ArtifactError(f"{source}: became shorter while it was read")
            size -= len(piece)
            yield piece


def _head(tensors: Sequence[Tensor], index: dict[_Place, int], segments: list[_Segment]) -> bytes:
    """Everything before the tensors' bytes, padded to their alignment."""
    buffer = _flatbuffer(tensors, index, segments)
    base = _aligned(_HEADER_BYTES + len(buffer))
    data_bytes = segments[-1][0] + segments[-1][1] if segments else 0
    header = _HEADER.pack(b"FH01", _HEADER.size, _HEADER_BYTES, len(buffer), base, data_bytes)
    # The header pushes the FlatBuffer's body away from its root offset, so that offset grows.
    root = int(struct.unpack_from("<I", buffer)[0]) + _HEADER_BYTES
    head = struct.pack("<I", root) + buffer[4:8] + header.ljust(_HEADER_BYTES, b"\0") + buffer[8:]
    return head.ljust(base, b"\0")


_Segment = tuple[int, int]


def _flatbuffer(
    tensors: Sequence[Tensor], index: dict[_Place, int], segments: list[_Segment]
) -> bytes:
    builder = flatbuffers.Builder(1024)
    named = [_named(builder, tensor, index[_place(tensor)]) for tensor in tensors]
    named_at = _offsets(builder, named)
    segment_at = _offsets(builder, [_segment(builder, *segment) for segment in segments])
    builder.StartObject(3)
    builder.PrependUint32Slot(0, 0, 0)
    builder.PrependUOffsetTRelativeSlot(1, segment_at, 0)
    builder.PrependUOffsetTRelativeSlot(2, named_at, 0)
    builder.Finish(builder.EndObject(), file_identifier=b"FT01")
    return bytes(builder.Output())


def _named(builder: flatbuffers.Builder, tensor: Tensor, segment: int) -> int:
    key = builder.CreateString(tensor.key)
    layout = _layout(builder, tensor.layout) if tensor.layout else 0
    builder.StartObject(3)
    builder.PrependUOffsetTRelativeSlot(0, key, 0)
    builder.PrependUint32Slot(1, segment, 0)
    builder.PrependUOffsetTRelativeSlot(2, layout, 0)
    return int(builder.EndObject())


def _layout(builder: flatbuffers.Builder, layout: Layout) -> int:
    builder.StartVector(4, len(layout.sizes), 4)
    for size in reversed(layout.sizes):
        builder.PrependInt32(size)
    sizes = builder.EndVector()
    order = builder.CreateByteVector(bytes(layout.dim_order))
    builder.StartObject(3)
    builder.PrependInt8Slot(0, layout.scalar_type, 0)
    builder.PrependUOffsetTRelativeSlot(1, sizes, 0)
    builder.PrependUOffsetTRelativeSlot(2, order, 0)
    return int(builder.EndObject())


def _segment(builder: flatbuffers.Builder, offset: int, size: int) -> int:
    builder.StartObject(2)
    builder.PrependUint64Slot(0, offset, 0)
    builder.PrependUint64Slot(1, size, 0)
    return int(builder.EndObject())


def _offsets(builder: flatbuffers.Builder, tables: Iterable[int]) -> int:
    items = list(tables)
    builder.StartVector(4, len(items), 4)
    for table in reversed(items):
        builder.PrependUOffsetTRelative(table)
    return int(builder.EndVector())


def _parse(path: Path, data: bytes) -> list[Tensor]:
    magic, _, _, _, base, data_bytes = _HEADER.unpack_from(data, _HEADER_AT)
    if data[4:8] != b"FT01" or magic != b"FH01":
        raise ValueError("the file's first bytes are not those of the format")
    if base + data_bytes > len(data):
        raise ValueError(f"it ends at byte {len(data)}, expected {base + data_bytes}")
    root = _Table(data, _pointer(data, 0))
    segments = [(table.number(0, "Q"), table.number(1, "Q")) for table in root.tables(1)]
    if any(offset + size > data_bytes for offset, size in segments):
        raise ValueError("a tensor's bytes lie outside the file")
    tensors: list[Tensor] = []
    for table in root.tables(2):
        offset, size = segments[table.number(1, "I")]
        layout = _parse_layout(table.table(2))
        tensors.append(Tensor(table.text(0), size, path, base + offset, layout))
    return tensors


def _parse_layout(table: _Table | None) -> Layout | None:
    if table is None:
        return None
    sizes = tuple(table.vector(1, "i"))
    return Layout(table.number(0, "b"), sizes, tuple(table.vector(2, "B")))


def _pointer(data: bytes, at: int) -> int:
    """Follow a FlatBuffer offset, which is relative to where it stands."""
    return at + int(struct.unpack_from("<I", data, at)[0])


class _Table:
    """A FlatBuffer table; fields that are absent read as zero or empty."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at
        self._vtable = at - int(struct.unpack_from("<i", data, at)[0])
        if self._vtable < 0:
            raise ValueError("a table points before the file's beginning")
        self._vtable_bytes = int(struct.unpack_from("<H", data, self._vtable)[0])

    def _field(self, slot: int) -> int | None:
        entry = 2 * (slot + 2)  # after the vtable's own two 16-bit sizes
        if entry >= self._vtable_bytes:
            return None
        offset = int(struct.unpack_from("<H", self._data, self._vtable + entry)[0])
        return self._at + offset if offset else None

    def number(self, slot: int, code: str) -> int:
        at = self._field(slot)
        return int(struct.unpack_from(f"<{code}", self._data, at)[0]) if at is not None else 0

    def table(self, slot: int) -> _Table | None:
        at = self._field(slot)
        return _Table(self._data, _pointer(self._data, at)) if at is not None else None

    def vector(self, slot: int, code: str) -> tuple[int, ...]:
        at = self._field(slot)
        if at is None:
            return ()
        start = _pointer(self._data, at)
        length = int(struct.unpack_from("<I", self._data, start)[0])
        if length * struct.calcsize(code) > len(self._data):
            raise ValueError("a list is longer than the file")
        return struct.unpack_from(f"<{length}{code}", self._data, start + 4)

    def tables(self, slot: int) -> list[_Table]:
        at = self._field(slot)
        if at is None:
            return []
        start = _pointer(self._data, at) + 4
        pointers = range(start, start + 4 * len(self.vector(slot, "I")), 4)
        return [_Table(self._data, _pointer(self._data, pointer)) for pointer in pointers]

    def text(self, slot: int) -> str:
        return bytes(self.vector(slot, "B")).decode("utf-8")
