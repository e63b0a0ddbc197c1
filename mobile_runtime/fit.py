"""What must hold before a bundle is loaded, because ExecuTorch itself never checks it.

In: opened bundles. Out: a list of problems, empty if all is well. A constant of the wrong size or
under another user's key loads without an error and gives wrong numbers, so names, shapes, sizes,
keys and every byte of the program are compared.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from protos.ptd import read_floats

if TYPE_CHECKING:
    from mobile_runtime.bundles import AdapterBundle, BaseBundle, Slot, TemplateBundle

KEY_LENGTH = 64
_KEY = re.compile(rf"[0-9a-f]{{{KEY_LENGTH}}}")
_DTYPE_BYTES = {"float32": 4}
_SHOWN = 4


def slot_problems(slots: list[Slot]) -> list[str]:
    """Each slot's size follows from its shape, and names and keys are unique."""
    problems = [
        f"slot {slot.name}: {slot.size_bytes} bytes, but its shape and dtype ask for others"
        for slot in slots
        if slot.size_bytes != math.prod(slot.shape) * _DTYPE_BYTES.get(slot.dtype, -1)
    ]
    problems += [
        f"slot {slot.name}: key {slot.key[:12]!r} is not {KEY_LENGTH} hex characters"
        for slot in slots
        if not _KEY.fullmatch(slot.key)
    ]
    if len({slot.key for slot in slots}) != len(slots):
        problems.append("two slots share a key")
    if len({slot.name for slot in slots}) != len(slots):
        problems.append("two slots share a name")
    return problems


def program_problems(base: TemplateBundle, sha256: str) -> list[str]:
    """The template must be the described program, and hold each key where the layout says."""
    problems: list[str] = []
    if base.artifact.manifest.files["program.pte"].sha256 != sha256:
        problems.append("program.pte is not the program that layout.json describes")
    program = base.program.read_bytes()
    for slot, offset in zip(base.slots, base.offsets, strict=True):
        if offset < 0 or program[offset : offset + KEY_LENGTH] != slot.key.encode():
            problems.append(f"program.pte holds no key of {slot.name} at byte {offset}")
        elif program.count(slot.key.encode()) != 1:
            problems.append(f"program.pte holds the key of {slot.name} more than once")
    return problems


def foundation_problems(base: BaseBundle, listed: Mapping[str, int]) -> list[str]:
    """foundation.ptd must hold exactly the keys that layout.json lists, each with its bytes, and no
    adapter's.
    """
    held = {tensor.key: tensor.size_bytes for tensor in base.foundation}
    problems = _difference("foundation.ptd", set(held), set(listed), "layout.json")
    problems += [
        f"{key[:40]} has {held[key]} bytes in foundation.ptd, layout.json says {listed[key]}"
        for key in sorted(held.keys() & listed.keys())
        if held[key] != listed[key]
    ]
    if held.keys() & {slot.key for slot in base.slots}:
        problems.append("foundation.ptd holds an adapter's key")
    return problems


def tensor_problems(adapter: AdapterBundle) -> list[str]:
    """The adapter's data file must hold exactly the slots of adapter.json, each with its size."""
    held = {tensor.key: tensor for tensor in adapter.tensors}
    wanted = {slot.key: slot for slot in adapter.slots}
    problems = _difference("its data file", set(held), set(wanted), "adapter.json")
    for key in sorted(held.keys() & wanted.keys()):
        if held[key].size_bytes != wanted[key].size_bytes:
            problems.append(
                f"{wanted[key].name} has {held[key].size_bytes} bytes in its data file, "
                f"expected {wanted[key].size_bytes}"
            )
        if held[key].layout is not None:
            problems.append(f"{wanted[key].name} has a layout, which this backend would not read")
    return problems


def signature_problems(slots: Sequence[Slot], base: BaseBundle) -> list[str]:
    """Slots must be the base's in name, shape and size."""
    mine = {slot.name: slot.signature for slot in slots}
    theirs = {slot.name: slot.signature for slot in base.slots}
    return [
        f"slot {name} is {mine.get(name)}, the base has {theirs.get(name)}"
        for name in sorted(mine.keys() | theirs.keys())
        if mine.get(name) != theirs.get(name)
    ]


def probe_problems(probe: TemplateBundle, listed: Mapping[str, int], base: BaseBundle) -> list[str]:
    """A probe has the base's slots, and asks for no constant that the base does not have."""
    held = {tensor.key: tensor.size_bytes for tensor in base.foundation}
    missing = sorted(key for key, size in listed.items() if held.get(key) != size)
    problems = signature_problems(probe.slots, base)
    return problems + ([f"the base lacks its constants {_some(missing)}"] if missing else [])


def fit_problems(adapter: AdapterBundle, base: BaseBundle) -> list[str]:
    """Slots equal the base's, keys are the adapter's own, and the program differs in keys only."""
    problems: list[str] = []
    problems += signature_problems(adapter.slots, base)
    taken = {slot.key for slot in base.slots} | {tensor.key for tensor in base.foundation}
    shared = [slot.name for slot in adapter.slots if slot.key in taken]
    if shared:
        # XNNPACK finds constants by key: a shared one could answer with another user's weights.
        problems.append(f"keys of the base instead of the adapter's own: {_some(shared)}")
    keys = {slot.name: slot.key for slot in adapter.slots}
    if not problems and adapter.program.read_bytes() != patched(base, keys):
        problems.append("program.pte differs from the base's program in more than the keys")
    return problems


def key_problems(adapter: AdapterBundle) -> list[str]:
    """Keys must follow from the adapter's content, as the export makes them.

    So two adapters share a key only if they are the same: XNNPACK's weight cache finds constants by
    key alone, and is on in the presets for phones.
    """
    tensors = {tensor.key: tensor for tensor in adapter.tensors}
    content = hashlib.sha256()
    for slot in sorted(adapter.slots, key=lambda slot: slot.name):
        content.update(f"{slot.name}:{slot.shape}\n".encode())
        content.update(read_floats(tensors[slot.key]))
    digest = content.hexdigest()
    wrong = [
        slot.name
        for slot in adapter.slots
        if slot.key != hashlib.sha256(f"{digest}:{slot.name}".encode()).hexdigest()
    ]
    return [f"keys that do not follow from its content: {_some(wrong)}"] if wrong else []


def patched(template: TemplateBundle, keys: Mapping[str, str]) -> bytes:
    """The template's program with these keys, slot name -> key: what an adapter must have."""
    program = bytearray(template.program.read_bytes())
    for slot, offset in zip(template.slots, template.offsets, strict=True):
        program[offset : offset + KEY_LENGTH] = keys[slot.name].encode()
    return bytes(program)


def _difference(what: str, held: set[str], wanted: set[str], where: str) -> list[str]:
    problems: list[str] = []
    if missing := sorted(wanted - held):
        problems.append(f"{what} lacks keys that {where} lists: {_some(missing)}")
    if surplus := sorted(held - wanted):
        problems.append(f"{what} holds keys that {where} does not list: {_some(surplus)}")
    return problems


def _some(names: list[str]) -> str:
    shown = ", ".join(name[:40] for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
