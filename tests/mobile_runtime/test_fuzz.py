"""Nothing damaged is accepted and nothing crashes: 10,000 altered artifacts, 1,500 files that no
digest guards, 200 artifacts sealed again.

The first are read in this process. The two hundred carry right digests but wrong contents, so they
come as far as native code: they run in processes of their own.
"""

import contextlib
import dataclasses
import json
import math
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobile_runtime.prompt import PromptConfig, open_prompt
from protos.artifacts import (
    MANIFEST,
    Artifact,
    FileEntry,
    Manifest,
    digest_file,
    identity,
    open_artifact,
)
from protos.errors import PocketuneError
from protos.golden import Golden, Rung, read_golden, write_golden
from protos.int8_file import pack
from protos.int8_file import rounded as rounded_numbers
from protos.ptd import Tensor, read_floats, read_ptd, read_ptd8, write_ptd

ALTERED, MALFORMED = 10_000, 1500
SEALED = 200
ODD: list[Any] = [
    None, True, -1, 0, 1.5, math.nan, math.inf, 2**70, "", "x", "\ud800", "é" * 300, "../x", "a\0b",
    [], [1], {}, {"x": None}, "9" * 5000,
]  # fmt: skip


def seal(directory: Path, **changes: Any) -> Path:
    """Give a directory a manifest with right digests, without waiting for the disk."""
    manifest = json.loads((directory / MANIFEST).read_text())
    names = sorted(p.name for p in directory.iterdir() if p.name != MANIFEST)
    entries = {
        name: FileEntry(digest_file(directory / name), (directory / name).stat().st_size)
        for name in names
    }
    manifest["files"] = {name: vars(entry) for name, entry in entries.items()}
    manifest["parents"] = {**manifest["parents"], **changes}
    manifest["id"] = identity(manifest["kind"], entries, manifest["parents"], manifest["config"])
    (directory / MANIFEST).write_text(json.dumps(manifest))
    return directory


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Truncated, grown, or with some bytes changed; never as it was."""
    kind = rng.randrange(4)
    if kind == 0 and data:
        return data[: rng.randrange(len(data))]
    if kind == 1:
        return data + rng.randbytes(rng.randint(1, 64))
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        changed[rng.randrange(len(changed))] ^= rng.randint(1, 255)
    if kind == 2 and len(data) > 64:  # two blocks exchanged
        changed[:16], changed[-16:] = changed[-16:], changed[:16]
    return bytes(changed)


def strange(rng: random.Random, value: Any) -> Any:
    """A JSON value with something in it replaced, dropped or added."""
    value = json.loads(json.dumps(value))
    holder, places = value, list[Any]()
    while isinstance(holder, (dict, list)) and holder:
        places = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        place = rng.choice(places)
        if not isinstance(holder[place], (dict, list)) or rng.random() < 0.3:
            break
        holder = holder[place]
    if not isinstance(holder, (dict, list)) or not holder:
        return rng.choice(ODD)
    kind = rng.randrange(3)
    if kind == 0:
        del holder[place]
    elif kind == 1 and isinstance(holder, dict):
        holder[str(rng.choice(ODD))] = holder.pop(place)
    else:
        holder[place] = rng.choice(ODD)
    return value


@contextlib.contextmanager
def restored(path: Path) -> Generator[bytes]:
    data = path.read_bytes()
    try:
        yield data
    finally:
        path.write_bytes(data)


@pytest.mark.slow
def test_of_ten_thousand_altered_artifacts_none_is_accepted_and_none_crashes(
    world, quantized, merged_bundle, tmp_path
) -> None:
    """A base, an adapter in both forms of the wire, and a merged bundle, all with goldens."""
    sources = [world.base, world.adapters["ada"], quantized.adapters["ada"], merged_bundle]
    sounds = [with_few_prompts(source, tmp_path / str(n)) for n, source in enumerate(sources)]
    files = [path for sound in sounds for path in sound.path.iterdir()]
    assert {"adapter.ptd", "adapter.ptd8"} < {path.name for path in files}
    rng = random.Random(5)
    refused = Counter[Path]()
    while refused.total() < ALTERED:
        sound = sounds[refused.total() % len(sounds)]
        path = rng.choice(sorted(sound.path.iterdir()))
        with restored(path) as data:
            as_json = path.name == MANIFEST and rng.random() < 0.7
            said = json.dumps(strange(rng, json.loads(data))).encode() if as_json else None
            changed = said or damaged(rng, data)
            if changed == data:
                continue
            path.write_bytes(changed)
            try:
                opened = open_artifact(sound.path, sound.manifest.kind).manifest
            except PocketuneError:
                refused[path] += 1
                continue
            # time, tool versions and measurements are no part of the identity: not counted
            assert path.name == MANIFEST, f"an altered {path} was accepted"
            assert identified(opened) == identified(sound.manifest)
    assert refused.keys() == set(files)
    for sound in sounds:
        assert open_artifact(sound.path).id == sound.id


def with_few_prompts(source: Path, out: Path) -> Artifact:
    """A copy whose golden is short, so that a case takes less time."""
    shutil.copytree(source, out)
    write_golden(out, few_prompts(read_golden(source)))
    return open_artifact(seal(out))


def identified(manifest: Manifest) -> tuple[Any, ...]:
    """All that an artifact's id is made of, and the id."""
    return (manifest.id, manifest.kind, manifest.files, manifest.parents, manifest.config)


def readers(world: Any, home: Path) -> Iterator[tuple[Path, Callable[[], object]]]:
    """A file of each format, and what reads it and holds what was read to the right form."""
    for name in ("adapter.ptd", "golden.json", "golden.safetensors"):
        shutil.copy(world.adapters["ada"] / name, home / name)
    for name in ("prompt.json", "tokenizer.json"):
        shutil.copy(world.base / name, home / name)
    packed = home / "adapter.ptd8"
    packed.write_bytes(pack(rounded((home / "adapter.ptd").read_bytes())))
    golden = read_golden(home)
    write_golden(home, few_prompts(golden))
    yield home / "adapter.ptd", lambda: hold_tensors(read_ptd(home / "adapter.ptd"))
    yield packed, lambda: hold_tensors(read_ptd8(packed))
    yield home / "golden.json", lambda: hold_golden(read_golden(home))
    yield home / "golden.safetensors", lambda: hold_golden(read_golden(home))
    yield home / "prompt.json", lambda: hold_prompt(open_prompt(home).config)


def hold_tensors(tensors: list[Tensor]) -> None:
    """All of their bytes are in the file."""
    for tensor in tensors:
        assert isinstance(tensor.key, str)
        assert len(read_floats(tensor)) == tensor.size_bytes


def hold_golden(golden: Golden) -> None:
    """Each rung has a row of the kept ids for every token of every prompt."""
    rows = sum(len(prompt.ids) + len(prompt.continuation) for prompt in golden.prompts)
    for rung in golden.rungs.values():
        assert rung.logits.shape == golden.ids.shape
        assert len(rung.logits) == len(rung.logsumexp) == len(rung.argmax) == rows
        assert len(rung.full) == len(golden.full_rows)
    assert all(isinstance(limit, float) for limit in golden.thresholds.values())


def hold_prompt(config: PromptConfig) -> None:
    assert config.kind in ("chat", "plain")
    assert all(isinstance(text, str) for text in (config.template, *config.special_tokens.values()))
    assert all(isinstance(token, int) for token in config.eos_ids)


def rounded(ptd: bytes) -> bytes:
    """The same data file with numbers that are bytes with a scale for each 64."""
    head = int.from_bytes(ptd[32:40], "little")
    return ptd[:head] + rounded_numbers(np.frombuffer(ptd, "<f4", offset=head)).tobytes()


def test_no_format_crashes_its_reader(world, tmp_path) -> None:
    """These have no digest of their own: what is not refused must still be of the right form."""
    rng = random.Random(6)
    formats = list(readers(world, tmp_path))
    refused = 0
    for number in range(MALFORMED):
        path, read = formats[number % len(formats)]
        with restored(path) as data:
            if path.suffix == ".json" and rng.random() < 0.8:
                path.write_text(json.dumps(strange(rng, json.loads(data))))
            else:
                head = 4000 if path.suffix != ".safetensors" else 2000
                path.write_bytes(damaged(rng, data[:head]) + data[head:])
            try:
                read()
            except PocketuneError:
                refused += 1
    for _, read in formats:
        read()
    assert refused > MALFORMED / 4


def few_prompts(golden: Golden, count: int = 3) -> Golden:
    prompts = golden.prompts[:count]
    rows = sum(prompt.length for prompt in prompts)
    kept = golden.full_rows[golden.full_rows < rows]

    def cut(rung: Rung) -> Rung:
        return Rung(
            rung.logits[:rows], rung.logsumexp[:rows], rung.argmax[:rows], rung.full[: len(kept)],
            {name: each[:, : len(kept)] for name, each in rung.operators.items()},
        )  # fmt: skip

    return dataclasses.replace(
        golden, prompts=prompts, ids=golden.ids[:rows], full_rows=kept,
        rungs={name: cut(rung) for name, rung in golden.rungs.items()},
    )  # fmt: skip


Wrong = Callable[[random.Random, Path], None]


def json_field(name: str) -> Wrong:
    """A field of a JSON file becomes something else."""

    def mutate(rng: random.Random, directory: Path) -> None:
        value = json.loads((directory / name).read_text())
        changed = value
        while described(changed) == described(value):
            changed = strange(rng, value)
        (directory / name).write_text(json.dumps(changed))

    return mutate


def described(value: Any) -> str:
    """What a runtime goes by."""
    return json.dumps(
        {n: value.get(n) for n in ("format", "layout", "data", "base_bundle", "slots")}
    )


def slot_field(name: str) -> Wrong:
    """One slot gets another shape, size, key, name, dtype or offset."""

    def mutate(rng: random.Random, directory: Path) -> None:
        value = json.loads((directory / name).read_text())
        one, other = rng.sample(value["slots"], 2)
        # of a base alone no name is used; an adapter of other names is refused
        fields = [f for f in one if one[f] != other[f] and (f != "name" or name == "adapter.json")]
        field = rng.choice(fields)
        one[field] = rng.choice([other[field], rng.choice(ODD)])
        (directory / name).write_text(json.dumps(value))

    return mutate


def tensors(name: str) -> Wrong:
    """Tensors of a data file are dropped, renamed, cut, grown, or exchange their bytes."""

    def mutate(rng: random.Random, directory: Path) -> None:
        path = directory / name
        copy = path.rename(directory.parent / f"{directory.name}.ptd")
        held = read_ptd(copy)
        data = copy.read_bytes()
        big = [n for n, t in enumerate(held) if any(data[t.offset : t.offset + t.size_bytes])]
        at, other = rng.sample(big, 2)
        tensor = held[at]
        kind = rng.randrange(5)
        if kind == 0:
            del held[at]
        elif kind == 1:
            held[at] = dataclasses.replace(tensor, key=tensor.key[::-1])
        elif kind == 2:
            held[at] = dataclasses.replace(tensor, size_bytes=tensor.size_bytes // 2)
        elif kind == 3:
            second = held[other]
            held[at] = dataclasses.replace(second, key=tensor.key, layout=tensor.layout)
            held[other] = dataclasses.replace(tensor, key=second.key, layout=second.layout)
        else:
            held[at] = Tensor(tensor.key, tensor.size_bytes, None, 0, tensor.layout)
        with path.open("wb") as stream:
            write_ptd(stream, held)
        copy.unlink()

    return mutate


def program_bytes(rng: random.Random, directory: Path) -> None:
    """A block of the program is overwritten, and the layout describes the new one."""
    path = directory / "program.pte"
    data = bytearray(path.read_bytes())
    at = rng.randrange(len(data) - 64)
    data[at : at + 64] = rng.randbytes(64)
    path.write_bytes(data)
    layout = directory / "layout.json"
    if layout.is_file():
        value = json.loads(layout.read_text())
        value["program"]["sha256"] = digest_file(path)
        layout.write_text(json.dumps(value))


def golden_arrays(rng: random.Random, directory: Path) -> None:
    """A rung says something else, or is of another shape."""
    golden = read_golden(directory)
    name = rng.choice([n for n in golden.rungs if n.startswith("fake_quant")])
    rung = golden.rungs[name]
    part = rng.choice(["logits", "logsumexp", "argmax", "full"])
    array = getattr(rung, part)
    wrong = [np.roll(array, 1, axis=0), array[::-1], array[:-1], array + array.dtype.type(3)]
    changed = dataclasses.replace(rung, **{part: np.ascontiguousarray(rng.choice(wrong))})
    write_golden(directory, dataclasses.replace(golden, rungs={**golden.rungs, name: changed}))


ADAPTER_WRONGS: list[Wrong] = [
    slot_field("adapter.json"), json_field("adapter.json"), tensors("adapter.ptd"), program_bytes,
    golden_arrays,
]  # fmt: skip
BASE_WRONGS: list[Wrong] = [
    slot_field("layout.json"), tensors("foundation.ptd"), tensors("foundation.ptd"), program_bytes,
    golden_arrays,
]  # fmt: skip
JUDGE = """
import json, sys
from pathlib import Path
from mobile_runtime.parity import measure_parity
from protos.errors import PocketuneError
FEW = {"structure_prompts", "structure_positions"}
for case in sys.argv[2:]:
    home = Path(case)
    adapter = home / "adapter" if (home / "adapter").exists() else None
    try:
        result = measure_parity(home / "base", adapter, 1, cache_dir=Path(sys.argv[1]))
        caught = sorted(g.name for g in result.gates if not g.passed and g.name not in FEW)
        answers = {s: [c.max_abs, c.mean_abs, c.kl_mean] for s, c in result.lowering.items()}
        said = f"caught: {caught[0]}" if caught else f"passed: {answers}"
    except PocketuneError as error:
        said = f"refused: {type(error).__name__}"
    print(json.dumps([case, said]), flush=True)
"""


def judged(cases: list[Path], cache: Path) -> dict[str, str]:
    """Case -> what became of it; behind a case that kills its process another one is started."""
    found: dict[str, str] = {}
    while left := [str(case) for case in cases if str(case) not in found]:
        done = subprocess.run(
            [sys.executable, "-c", JUDGE, str(cache), *left], capture_output=True, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
        )  # fmt: skip
        found |= dict(json.loads(line) for line in done.stdout.splitlines() if line[:1] == "[")
        if done.returncode == 0:
            break
        assert done.returncode < 0, done.stderr  # a Python error is a defect; a signal is not ours
        died = next(case for case in left if case not in found)
        found[died] = f"killed by signal {-done.returncode}"
    return found


@pytest.mark.slow
def test_of_two_hundred_sealed_with_wrong_contents_none_is_silently_wrong(
    world, tmp_path, cache_dir
) -> None:
    sound = tmp_path / "sound"
    for name, source in (("base", world.base), ("adapter", world.adapters["ada"])):
        shutil.copytree(source, sound / name)
        write_golden(sound / name, few_prompts(read_golden(source)))
    base_id = open_artifact(seal(sound / "base")).id
    described = json.loads((sound / "adapter" / "adapter.json").read_text())
    described["base_bundle"] = base_id
    (sound / "adapter" / "adapter.json").write_text(json.dumps(described))
    seal(sound / "adapter", base_bundle=base_id)
    rng = random.Random(7)
    cases: list[Path] = []
    for number in range(SEALED):
        case = tmp_path / f"case-{number:03}"
        of_adapter = number % 2 == 0
        (case).mkdir()
        mutable = "adapter" if of_adapter else "base"
        shutil.copytree(sound / mutable, case / mutable)
        if of_adapter:
            (case / "base").symlink_to(sound / "base")
        before = {p.name: p.read_bytes() for p in (case / mutable).iterdir()}
        wrongs = ADAPTER_WRONGS if of_adapter else BASE_WRONGS
        while {p.name: p.read_bytes() for p in (case / mutable).iterdir()} == before:
            wrongs[number // 2 % len(wrongs)](rng, case / mutable)
        seal(case / mutable)
        cases.append(case)
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "base").symlink_to(sound / "base")
    found = judged([sound, alone, *cases], cache_dir)
    right = {found.pop(str(sound)), found.pop(str(alone))}
    assert all(said.startswith("passed") for said in right)
    kinds = [said.split(":")[0] for said in found.values()]
    assert len(found) == SEALED
    # Some change nothing, such as padding of the program: those answer to the bit as the sound one.
    assert [s for s in found.items() if s[1].startswith("passed") and s[1] not in right] == []
    assert kinds.count("passed") < SEALED / 20
    assert kinds.count("refused") > 0
    assert kinds.count("caught") > 0
