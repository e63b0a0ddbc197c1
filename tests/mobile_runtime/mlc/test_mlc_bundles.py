"""Nothing that does not belong together, and nothing altered, reaches TVM."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mobile_runtime.mlc.bundles import open_adapter, open_base
from protos.artifacts import open_artifact
from protos.errors import ArtifactError, InputError, MismatchError, UnsupportedError

Mutate = Callable[[Path], None]


def edit(name: str, change: Callable[[Any], object]) -> Mutate:
    def mutate(directory: Path) -> None:
        value = json.loads((directory / name).read_text())
        change(value)
        (directory / name).write_text(json.dumps(value))

    return mutate


def chat(**changes: Any) -> Mutate:
    return edit("mlc-chat-config.json", lambda c: c.update(changes))


def model(**changes: Any) -> Mutate:
    return edit("mlc-chat-config.json", lambda c: c["model_config"].update(changes))


def cache(change: Callable[[list[Any]], object]) -> Mutate:
    """Change the shards that the tensor cache names."""
    return edit("tensor-cache.json", lambda c: change(c["records"]))


def last(shards: list[Any]) -> dict[str, Any]:
    return shards[-1]["records"][-1]


def turned(record: dict[str, Any]) -> None:
    record["shape"].reverse()


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
@pytest.mark.parametrize("name", ["params_ada_0.bin", "tensor-cache.json", "adapter.json"])
def test_an_altered_file_is_refused(llama, tmp_path, name, damage) -> None:
    copy = shutil.copytree(llama.adapters["ada"], tmp_path / "copy")
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data if damage == "flipped" else data[:-1])
    if damage == "missing":
        (copy / name).unlink()
    with pytest.raises(ArtifactError, match=re.escape(name)):
        open_adapter(copy, open_base(llama.base))


BASES: dict[str, tuple[Mutate, type[Exception], str]] = {
    "other backend": (
        edit("layout.json", lambda x: x.update(backend="x")), UnsupportedError, "backend is 'x'",
    ),
    "other format": (edit("layout.json", lambda x: x.update(format=9)), ArtifactError, "format 1"),
    "other context": (
        edit("layout.json", lambda x: x.update(context_length=9)), ArtifactError, "context and voc",
    ),
    "family": (chat(model_type="mamba"), UnsupportedError, "model_type is 'mamba'"),
    "quantization": (chat(quantization="q3f16_1"), UnsupportedError, "is 'q3f16_1'"),
    "no config": (chat(model_config=None), ArtifactError, "malformed config"),
    "rope kind": (
        model(rope_scaling={"rope_type": "yarn"}), UnsupportedError, "rope_scaling is 'yarn'",
    ),
    "no rope": (model(position_embedding_base=0), ArtifactError, "must be given"),
    "two ropes": (model(rope_theta=1.0), ArtifactError, "say one thing"),
    "heads": (model(num_key_value_heads=3), ArtifactError, "cannot share"),
    "zero": (model(hidden_size=0), ArtifactError, "must be positive"),
    "llama with bias": (model(attention_bias=True), UnsupportedError, "has no bias"),
    "tied by mistake": (
        model(tie_word_embeddings=True), ArtifactError, r"does not have: lm_head\.weight",
    ),
    "more layers": (
        model(num_hidden_layers=3), ArtifactError, r"missing: model\.layers\.2.* and 2 more",
    ),
    "name": (
        cache(lambda s: last(s).update(name="x")), ArtifactError, "missing: model.*not have: x",
    ),
    "shape": (
        cache(lambda s: turned(s[0]["records"][0])), ArtifactError, "float32 .64, 131., expected",
    ),
    "dtype": (
        cache(lambda s: last(s).update(dtype="uint32")), ArtifactError, "uint32 .*expected float32",
    ),
    "twice": (
        cache(lambda s: s[0]["records"].append(s[0]["records"][0])), ArtifactError, "twice",
    ),
    "shard gone": (
        cache(lambda s: s[0].update(dataPath="y.bin")), ArtifactError, "y.bin, which is not in",
    ),
    "shard outside": (
        cache(lambda s: s[0].update(dataPath="../y.bin")), ArtifactError, "malformed tensor cache",
    ),
    "shard longer": (
        cache(lambda s: s[0].update(nbytes=s[0]["nbytes"] + 4)), ArtifactError, "bytes, .* says",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BASES)
def test_a_base_that_contradicts_itself_is_refused(llama, reseal, case) -> None:
    mutate, error, message = BASES[case]
    with pytest.raises(error, match=message):
        open_base(reseal(llama.base, mutate))


ADAPTERS: dict[str, tuple[Mutate, type[Exception], str]] = {
    "layout": (
        edit("adapter.json", lambda a: a.update(layout="x")), ArtifactError, "layout is 'x'",
    ),
    "base": (
        edit("adapter.json", lambda a: a.update(base_bundle="0" * 64)), MismatchError, "was made f",
    ),
    "config": (model(rms_norm_eps=0.5), MismatchError, "another model_config"),
    "a missing": (
        cache(lambda s: s[-1]["records"].pop(0)), MismatchError, "does not have: .*lora_b",
    ),
    "b missing": (
        cache(lambda s: s[-1]["records"].pop(1)), MismatchError, "are missing: .*lora_b",
    ),
    "shared shard altered": (
        cache(lambda s: last([s[0]]).update(name="x")), MismatchError, "is not as in the base",
    ),
    "shared shard left out": (cache(lambda s: s.pop(0)), MismatchError, "does not name the base"),
    "called delta-shards": (
        edit("adapter.json", lambda a: a.update(layout="delta-shards")), MismatchError, "A and B",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ADAPTERS)
def test_an_adapter_that_does_not_fit_is_refused(llama, reseal, case) -> None:
    mutate, error, message = ADAPTERS[case]
    with pytest.raises(error, match=message):
        open_adapter(reseal(llama.adapters["ada"], mutate), open_base(llama.base))


def test_a_merged_bundle_lacking_a_parameter_is_refused(qwen2, reseal) -> None:
    broken = reseal(qwen2.adapters["ada"], cache(lambda s: s[-1]["records"].pop()))
    with pytest.raises(ArtifactError, match="parameters are missing"):
        open_adapter(broken, None)


def test_an_adapter_without_its_base_is_refused(llama) -> None:
    with pytest.raises(InputError, match="needs its base"):
        open_adapter(llama.adapters["ada"], None)


def test_the_wrong_base_is_refused_and_both_are_named(llama, reseal) -> None:
    other = reseal(llama.base, chat(temperature=0.5))
    mine, theirs = open_artifact(llama.base).id, open_artifact(other).id
    with pytest.raises(MismatchError, match=mine) as refused:
        open_adapter(llama.adapters["ada"], open_base(other))
    assert theirs in str(refused.value)


def test_a_merged_bundle_of_another_base_model_is_refused(qwen2, llama) -> None:
    with pytest.raises(MismatchError, match="merged into the base model"):
        open_adapter(qwen2.adapters["ada"], open_base(llama.base))
