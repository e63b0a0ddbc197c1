"""The tensor cache: TVM's own two loaders read what we write; what is damaged is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from protos.errors import ArtifactError
from protos.tensor_cache import (
    FILE,
    SHARD_BYTES,
    read_shards,
    read_tensor_cache,
    write_shards,
    write_tensor_cache,
)

TENSORS = {
    "model.norm.weight": np.arange(7, dtype=np.float16),
    "model.a.q_weight": np.arange(24, dtype=np.uint32).reshape(3, 8) * 0x01234567,
    "model.a.q_scale": np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2),
}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    write_tensor_cache(tmp_path, write_shards(tmp_path, "params_shard", TENSORS.items()))
    return tmp_path


def same(found, wanted=TENSORS) -> None:
    assert set(found) == set(wanted)
    for name, array in wanted.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert np.array_equal(found[name], array), name


def test_what_is_written_is_read(cache):
    same(read_tensor_cache(cache / FILE, [cache]))


def test_tvms_loader_of_mlc_reads_it(cache):
    import tvm

    tvm.get_global_func("vm.builtin.tensor_cache.clear")()
    tvm.get_global_func("vm.builtin.tensor_cache.load")(
        str(cache), tvm.cpu().dlpack_device_type(), 0
    )
    get = tvm.get_global_func("vm.builtin.param_array_from_cache_by_name")
    same(dict(zip(TENSORS, (t.numpy() for t in get(list(TENSORS))), strict=True)))
    tvm.get_global_func("vm.builtin.tensor_cache.clear")()


def test_tvms_javascript_form_reads_it(cache):
    import tvm
    from tvm.contrib import tvmjs

    found, metadata = tvmjs.load_tensor_cache(str(cache), tvm.cpu())
    same({name: tensor.numpy() for name, tensor in found.items()})
    assert metadata["ParamSize"] == len(TENSORS)
    assert metadata["ParamBytes"] == sum(array.nbytes for array in TENSORS.values())


def test_shards_are_cut_at_their_size(tmp_path):
    third = SHARD_BYTES // 3 // 4
    tensors = {f"t{n}": np.full(third, n, np.float32) for n in range(4)}
    shards = write_shards(tmp_path, "s", tensors.items())
    assert [len(shard.records) for shard in shards] == [3, 1]
    assert [(tmp_path / s.dataPath).stat().st_size for s in shards] == [s.nbytes for s in shards]
    write_tensor_cache(tmp_path, shards)
    same(read_tensor_cache(tmp_path / FILE, [tmp_path]), tensors)


def test_a_shard_may_stand_in_another_folder(cache, tmp_path_factory):
    other = tmp_path_factory.mktemp("user")
    user = write_shards(other, "params_shard_user", [("model.b", np.ones(3, np.float32))])
    write_tensor_cache(other, [*read_shards(cache / FILE), *user])
    wanted = {**TENSORS, "model.b": np.ones(3, np.float32)}
    same(read_tensor_cache(other / FILE, [other, cache]), wanted)


def test_a_name_twice_is_never_written(tmp_path):
    one = write_shards(tmp_path, "one", [("a", np.zeros(1, np.float32))])
    two = write_shards(tmp_path, "two", [("a", np.ones(1, np.float32))])
    with pytest.raises(ValueError, match="one name"):
        write_tensor_cache(tmp_path, [*one, *two])


def edit(cache: Path, change) -> None:
    raw = json.loads((cache / FILE).read_text())
    change(raw["records"])
    (cache / FILE).write_text(json.dumps(raw))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r[0].update(dataPath="../outside.bin"), "no plain file"),
        (lambda r: r[0]["records"][0].update(nbytes=15), "does not fit its shard"),
        (lambda r: r[0]["records"][0].update(format="f32-to-bf16"), "does not fit its shard"),
        (lambda r: r[0]["records"][1].update(byteOffset=10**9), "does not fit its shard"),
        (lambda r: r[0]["records"][1].update(dtype="object"), "does not fit its shard"),
        (lambda r: r.append(r[0]), "twice"),
        (lambda r: r[0].pop("nbytes"), "malformed"),
        (lambda r: r[0].update(dataPath="gone.bin"), "missing"),
    ],
)
def test_what_does_not_fit_is_refused(cache, change, message):
    edit(cache, change)
    with pytest.raises(ArtifactError, match=message):
        read_tensor_cache(cache / FILE, [cache])


def test_a_shard_cut_short_is_refused(cache):
    shard = cache / "params_shard_0.bin"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="the tensor cache says"):
        read_tensor_cache(cache / FILE, [cache])
