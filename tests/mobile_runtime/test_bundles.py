"""Nothing that does not belong together, and nothing altered, reaches ExecuTorch."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mobile_runtime.bundles import AdapterBundle, MergedBundle, layout_of, open_adapter, open_base
from protos.artifacts import open_artifact
from protos.errors import ArtifactError, InputError, MismatchError, UnsupportedError
from protos.ptd import Tensor, read_ptd, write_ptd


def edit(name: str, change: Callable[[Any], object]) -> Callable[[Path], None]:
    def mutate(directory: Path) -> None:
        value = json.loads((directory / name).read_text())
        change(value)
        (directory / name).write_text(json.dumps(value))

    return mutate


def rewrite_ptd(change: Callable[[list[Tensor]], list[Tensor]]) -> Callable[[Path], None]:
    def mutate(directory: Path) -> None:
        path = directory / "adapter.ptd"
        copy = path.rename(directory.parent / f"{directory.name}.original.ptd")
        with path.open("wb") as stream:
            write_ptd(stream, change(read_ptd(copy)))
        copy.unlink()

    return mutate


def test_sound_bundles_open(world) -> None:
    base = open_base(world.base)
    adapter = open_adapter(world.adapters["ada"], base)
    assert isinstance(adapter, AdapterBundle)
    assert len(adapter.tensors) == len(adapter.slots) == len(base.slots) > 0
    assert layout_of(world.adapters["ada"]) == "adapter"


def test_an_adapter_without_its_base_is_refused(world) -> None:
    with pytest.raises(InputError, match="needs its base"):
        open_adapter(world.adapters["ada"], None)


def test_the_wrong_base_is_refused_and_both_are_named(world, reseal) -> None:
    other = reseal(world.base, edit("prompt.json", lambda p: p.update(bos_id=7)))
    mine, theirs = open_artifact(world.base).id, open_artifact(other).id
    with pytest.raises(MismatchError, match=mine) as refused:
        open_adapter(world.adapters["ada"], open_base(other))
    assert theirs in str(refused.value)


def test_an_adapter_that_lies_about_its_base_is_refused(world, reseal) -> None:
    other = reseal(world.base, edit("prompt.json", lambda p: p.update(bos_id=7)))
    lied = reseal(
        world.adapters["ada"],
        edit("adapter.json", lambda a: None),
        parents={"base_bundle": open_artifact(other).id},
    )
    for base in (world.base, other):
        with pytest.raises(MismatchError, match="was made for the base bundle"):
            open_adapter(lied, open_base(base))


@pytest.mark.parametrize("name", ["program.pte", "adapter.ptd", "adapter.json", "golden.json"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_an_altered_file_is_refused(world, tmp_path, name, damage) -> None:
    import shutil

    copy = shutil.copytree(world.adapters["ada"], tmp_path / "copy")
    data = bytearray((copy / name).read_bytes())
    if damage == "missing":
        (copy / name).unlink()
    elif damage == "flipped":
        data[len(data) // 2] ^= 1
        (copy / name).write_bytes(data)
    else:
        (copy / name).write_bytes(data[:-1])
    with pytest.raises(ArtifactError, match=re.escape(name)):
        open_adapter(copy, open_base(world.base))


def swap_keys(slots: list[dict[str, Any]]) -> None:
    """Two slots of the same shape exchange their keys: the file loads, the answers are wrong."""
    first = slots[0]
    other = next(s for s in slots[1:] if s["shape"] == first["shape"])
    first["key"], other["key"] = other["key"], first["key"]


def shorten(tensors: list[Tensor]) -> list[Tensor]:
    first = tensors[0]
    return [Tensor(first.key, first.size_bytes - 16, first.path, first.offset), *tensors[1:]]


def overwrite(directory: Path, data: bytes) -> None:
    (directory / "adapter.ptd").write_bytes(data)


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


RESEALED: dict[str, tuple[Callable[[Path], None], str]] = {
    "keys swapped": (edit("adapter.json", lambda a: swap_keys(a["slots"])), "more than the keys"),
    "slot renamed": (edit("adapter.json", lambda a: a["slots"][0].update(name="x")), "slot x is"),
    "slot missing": (edit("adapter.json", lambda a: a["slots"].pop()), "does not list"),
    "shape changed": (
        edit("adapter.json", lambda a: a["slots"][0]["shape"].reverse()), "the base has",
    ),
    "size changed": (
        edit("adapter.json", lambda a: a["slots"][0].update(size_bytes=4)), "its shape and dtype",
    ),
    "dtype changed": (
        edit("adapter.json", lambda a: a["slots"][0].update(dtype="float16")), "its shape",
    ),
    "key not a digest": (
        edit("adapter.json", lambda a: a["slots"][0].update(key="A" * 64)), "hex characters",
    ),
    "key repeated": (
        edit("adapter.json", lambda a: a["slots"][0].update(key=a["slots"][1]["key"])), "share a k",
    ),
    "other base": (
        edit("adapter.json", lambda a: a.update(base_bundle="0" * 64)), "made for the base bundle",
    ),
    "unknown layout": (edit("adapter.json", lambda a: a.update(layout="x")), "layout is 'x'"),
    "unknown format": (edit("adapter.json", lambda a: a.update(format=2)), "format 1"),
    "no slots": (edit("adapter.json", lambda a: a.pop("slots")), "malformed adapter"),
    "called merged": (edit("adapter.json", lambda a: a.update(layout="merged")), "no adapter data"),
    "tensor shortened": (rewrite_ptd(shorten), "bytes in its data file"),
    "tensor missing": (rewrite_ptd(lambda t: t[1:]), "lacks keys"),
    "tensor too many": (
        rewrite_ptd(lambda t: [*t, Tensor("0" * 64, 16, t[0].path, t[0].offset)]), "not list",
    ),
    "not a data file": (lambda d: overwrite(d, b"x" * 400), "sound Ex"),
    "empty data file": (lambda d: overwrite(d, b""), "sound Ex"),
    "another program": (
        lambda d: longer(d / "program.pte"),
        "more than the keys",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RESEALED)
def test_wrong_content_under_right_digests_is_refused(world, reseal, name) -> None:
    mutate, message = RESEALED[name]
    with pytest.raises((ArtifactError, MismatchError), match=message):
        open_adapter(reseal(world.adapters["ada"], mutate), open_base(world.base))


def test_keys_of_the_template_are_refused(world, reseal) -> None:
    """Shared keys let one user's weights answer another's questions (XNNPACK's weight cache)."""
    base = open_base(world.base)
    keys = {slot.name: slot.key for slot in base.slots}

    def share(directory: Path) -> None:
        edit("adapter.json", lambda a: [s.update(key=keys[s["name"]]) for s in a["slots"]])(
            directory
        )
        old = {s.key: keys[s.name] for s in open_adapter(world.adapters["ada"], base).slots}
        rewrite_ptd(
            lambda tensors: [Tensor(old[t.key], t.size_bytes, t.path, t.offset) for t in tensors]
        )(directory)
        (directory / "program.pte").write_bytes(base.program.read_bytes())

    with pytest.raises(MismatchError, match="keys of the base"):
        open_adapter(reseal(world.adapters["ada"], share), base)


def test_users_share_no_key_with_each_other_or_with_the_base(world) -> None:
    """The Python wheel has XNNPACK's weight cache off and no switch for it: so the keys are held
    to what makes the cache harmless, that a key is of one content alone."""
    base = open_base(world.base)
    taken = {slot.key for slot in base.slots} | {tensor.key for tensor in base.foundation}
    for path in world.adapters.values():
        adapter = open_adapter(path, base)
        assert isinstance(adapter, AdapterBundle)
        keys = {tensor.key for tensor in adapter.tensors}
        assert len(keys) == len(base.slots)
        assert not keys & taken
        assert all(adapter.program.read_bytes().count(key.encode()) == 1 for key in keys)
        taken |= keys


def resize(sizes: dict[str, Any], value: object = 12) -> None:
    sizes[next(iter(sizes))] = value


BASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "offset moved": (edit("layout.json", lambda x: x["slots"][0].update(offset=8)), "no key of"),
    "offset negative": (edit("layout.json", lambda x: x["slots"][0].update(offset=-64)), "no key"),
    "other program": (edit("layout.json", lambda x: x["program"].update(sha256="0")), "not the"),
    "key unlisted": (edit("layout.json", lambda x: x["foundation"].popitem()), "does not list"),
    "key lacking": (edit("layout.json", lambda x: x["foundation"].update(x=4)), "lacks keys"),
    "bytes wrong": (edit("layout.json", lambda x: resize(x["foundation"])), "layout.json says"),
    "bytes no number": (edit("layout.json", lambda x: resize(x["foundation"], "x")), "malformed"),
    "keys without bytes": (
        edit("layout.json", lambda x: x.update(foundation=list(x["foundation"]))), "malformed",
    ),
    "no slots": (edit("layout.json", lambda x: x.pop("slots")), "malformed layout"),
    "no program": (edit("layout.json", lambda x: x.pop("program")), "malformed layout"),
    "not JSON": (lambda d: longer(d / "layout.json"), "layout.json"),
}  # fmt: skip


@pytest.mark.parametrize("name", BASES)
def test_a_base_that_contradicts_itself_is_refused(world, reseal, name) -> None:
    mutate, message = BASES[name]
    with pytest.raises(ArtifactError, match=message):
        open_base(reseal(world.base, mutate))


def test_a_base_for_another_engine_is_refused(world, reseal) -> None:
    other = reseal(world.base, edit("layout.json", lambda x: x.update(backend="mlc")))
    with pytest.raises(UnsupportedError, match="'mlc'"):
        open_base(other)


def test_wrong_kinds_and_missing_bundles_are_named(world, tmp_path) -> None:
    with pytest.raises(InputError, match="no such artifact"):
        open_base(tmp_path / "none")
    with pytest.raises(ArtifactError, match="expected a BaseBundle"):
        open_base(world.adapters["ada"])


@pytest.mark.slow
def test_a_merged_bundle_needs_no_base_but_refuses_one_of_another_model(
    world, merged_bundle, reseal
) -> None:
    assert isinstance(open_adapter(merged_bundle, None), MergedBundle)
    assert isinstance(open_adapter(merged_bundle, open_base(world.base)), MergedBundle)
    other = reseal(world.base, lambda d: None, parents={"base_model": "0" * 64})
    with pytest.raises(MismatchError, match="merged into the base model"):
        open_adapter(merged_bundle, open_base(other))
