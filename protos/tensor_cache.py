"""MLC's tensor cache: `tensor-cache.json` and the shards that it names, raw bytes in a row.

In: named arrays. Out: shards of at most 32 MB and the file that says where each tensor stands; and
back. MLC's own loader checks a shard's length only; whoever opens one of our artifacts has checked
its digest, and `read_tensor_cache` checks all that can be told from the cache itself.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protos.artifacts import read_json
from protos.errors import ArtifactError, InputError

FILE = "tensor-cache.json"
SHARD_BYTES = 32 * 2**20
DTYPES = ("float32", "float16", "uint32")

Array = NDArray[Any]


@dataclass(frozen=True)
class Record:
    """One tensor of a shard. format: always "raw"; MLC's "f32-to-bf16" would round the numbers."""

    name: str
    shape: list[int]
    dtype: str
    format: str
    nbytes: int
    byteOffset: int  # noqa: N815 - the format's own name


@dataclass(frozen=True)
class Shard:
    """One file of the cache, under the names that the format gives its fields."""

    dataPath: str  # noqa: N815 - the format's own name
    format: str
    nbytes: int
    md5sum: str
    records: list[Record]


def write_shards(directory: Path, prefix: str, tensors: Iterable[tuple[str, Array]]) -> list[Shard]:
    """Write tensors, in order, into files `<prefix>_<n>.bin` of at most 32 MB.

    A tensor that is larger than that has a shard of its own. Only one shard is in memory at once.
    """
    shards: list[Shard] = []
    content, records = bytearray(), list[Record]()

    def flush() -> None:
        path = directory / f"{prefix}_{len(shards)}.bin"
        path.write_bytes(content)
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        shards.append(Shard(path.name, "raw-shard", len(content), digest, list(records)))
        content.clear()
        records.clear()

    for name, array in tensors:
        if array.dtype.name not in DTYPES:
            raise ValueError(f"{name}: a tensor cache of ours holds no {array.dtype.name}")
        if content and len(content) + array.nbytes > SHARD_BYTES:
            flush()
        shape = [int(size) for size in array.shape]
        records.append(Record(name, shape, array.dtype.name, "raw", array.nbytes, len(content)))
        content += np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()
    if content:
        flush()
    return shards


def write_tensor_cache(directory: Path, shards: Sequence[Shard]) -> None:
    """Write `tensor-cache.json`; the shards may stand in other directories.

    Raises:
        ValueError: two shards hold a tensor of the same name: which one counts is not defined.
    """
    records = [record for shard in shards for record in shard.records]
    names = [record.name for record in records]
    if len(set(names)) != len(names):
        raise ValueError("two tensors of the cache have one name")
    size = sum(shard.nbytes for shard in shards)
    count = sum(math.prod(record.shape) for record in records)
    metadata = {"ParamSize": len(records), "ParamBytes": size, "BitsPerParam": 8 * size / count}
    value = {"metadata": metadata, "records": [asdict(shard) for shard in shards]}
    (directory / FILE).write_text(json.dumps(value, indent=1) + "\n", "utf-8")


def read_shards(file: Path) -> list[Shard]:
    """What a `tensor-cache.json` says.

    Raises:
        ArtifactError: it is malformed, names a file outside its directory, or a tensor twice.
    """
    try:
        shards = [_shard(raw) for raw in read_json(file)["records"]]
    except (InputError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{file}: malformed tensor cache ({error})") from None
    names = [record.name for shard in shards for record in shard.records]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ArtifactError(f"{file}: names the tensor {twice} twice")
    return shards


def read_tensor_cache(file: Path, folders: Sequence[Path]) -> dict[str, Array]:
    """Every tensor by its name; a shard is taken from the first of `folders` that has it.

    Raises:
        ArtifactError: the cache is malformed, or a shard is missing or of another length.
    """
    tensors: dict[str, Array] = {}
    for shard in read_shards(file):
        tensors |= read_shard(shard, folders)
    return tensors


def read_shard(shard: Shard, folders: Sequence[Path]) -> Mapping[str, Array]:
    """The tensors of one shard, read-only views of its bytes.

    Raises:
        ArtifactError: the file is missing or of another length.
    """
    path = next((found for f in folders if (found := f / shard.dataPath).is_file()), None)
    if path is None:
        raise ArtifactError(f"{folders[0] / shard.dataPath}: this shard is missing")
    content = path.read_bytes()
    if len(content) != shard.nbytes:
        raise ArtifactError(
            f"{path}: {len(content):,} bytes, the tensor cache says {shard.nbytes:,}"
        )
    return {
        r.name: np.frombuffer(
            content, np.dtype(r.dtype).newbyteorder("<"), math.prod(r.shape), r.byteOffset
        ).reshape(r.shape)
        for r in shard.records
    }


def _shard(raw: Any) -> Shard:
    name, nbytes = str(raw["dataPath"]), int(raw["nbytes"])
    if Path(name).name != name or raw["format"] != "raw-shard":
        raise ValueError(f"shard {name!r} is no plain file beside the cache")
    records = [_record(each, nbytes) for each in raw["records"]]
    return Shard(name, "raw-shard", nbytes, str(raw["md5sum"]), records)


def _record(raw: Any, shard_bytes: int) -> Record:
    shape = [int(size) for size in raw["shape"]]
    dtype, nbytes, offset = str(raw["dtype"]), int(raw["nbytes"]), int(raw["byteOffset"])
    sound = (
        dtype in DTYPES
        and raw["format"] == "raw"
        and all(size > 0 for size in shape)
        and nbytes == math.prod(shape) * np.dtype(dtype).itemsize
        and 0 <= offset <= shard_bytes - nbytes
    )
    if not sound:
        raise ValueError(f"tensor {raw['name']!r} does not fit its shard")
    return Record(str(raw["name"]), shape, dtype, "raw", nbytes, offset)
