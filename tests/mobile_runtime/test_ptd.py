"""Data files as ExecuTorch's own serializer reads and writes them, and never a crash on damage."""

import hashlib
import random
from pathlib import Path

import pytest

from protos.errors import ArtifactError
from protos.ptd import read_ptd, write_ptd, zeros


def official(path: Path) -> dict[str, tuple[bytes, object]]:
    from executorch.exir._serialize._cord import Cord
    from executorch.extension.flat_tensor.serialize.serialize import FlatTensorSerializer

    payload = FlatTensorSerializer().deserialize(Cord(path.read_bytes()))
    return {
        key: (bytes(payload.buffers[entry.buffer_index]), entry.tensor_layout)
        for key, entry in payload.named_data.items()
    }


def test_a_joined_file_reads_as_the_official_reader_says(world, tmp_path) -> None:
    parts = [world.base / "foundation.ptd", world.adapters["ada"] / "adapter.ptd"]
    joined = tmp_path / "joined.ptd"
    with joined.open("wb") as stream:
        digest = write_ptd(stream, [*(t for p in parts for t in read_ptd(p)), zeros("z" * 64, 48)])
    assert digest == hashlib.sha256(joined.read_bytes()).hexdigest()
    wanted = official(parts[0]) | official(parts[1]) | {"z" * 64: (bytes(48), None)}
    assert official(joined) == wanted
    ours = {
        t.key: joined.read_bytes()[t.offset : t.offset + t.size_bytes] for t in read_ptd(joined)
    }
    assert ours == {key: data for key, (data, _) in wanted.items()}
    assert any(layout is not None for _, layout in wanted.values())
    assert all(t.offset % 128 == 0 for t in read_ptd(joined))


def test_tied_tensors_stay_tied(world, tmp_path) -> None:
    tensor = read_ptd(world.adapters["ada"] / "adapter.ptd")[0]
    path = tmp_path / "tied.ptd"
    with path.open("wb") as stream:
        write_ptd(
            stream, [tensor, type(tensor)("other", tensor.size_bytes, tensor.path, tensor.offset)]
        )
    first, second = read_ptd(path)
    assert (first.offset, first.size_bytes) == (second.offset, second.size_bytes)


def test_damaged_heads_give_an_error_or_a_sound_reading(world, tmp_path) -> None:
    source = (world.adapters["ada"] / "adapter.ptd").read_bytes()
    rng = random.Random(0)
    path = tmp_path / "damaged.ptd"
    refused = 0
    for _ in range(400):
        data = bytearray(source)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(2000)] = rng.randrange(256)
        cut = rng.choice([len(data), rng.randrange(len(data))])
        path.write_bytes(data[:cut])
        try:
            tensors = read_ptd(path)
        except ArtifactError:
            refused += 1
        else:
            assert all(t.offset >= 0 and t.offset + t.size_bytes <= cut for t in tensors)
    assert refused > 200


def test_a_key_that_occurs_twice_is_refused(tmp_path) -> None:
    path = tmp_path / "twice.ptd"
    with path.open("wb") as stream:
        write_ptd(stream, [zeros("k", 16), zeros("k", 32)])
    with pytest.raises(ArtifactError, match="twice"):
        read_ptd(path)
