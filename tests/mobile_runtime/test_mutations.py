"""Mutation test of the gates: a broken export is caught, and docs/parity.md says by what.

The table there is what is expected here. Every broken bundle is sealed again with right digests, so
that nothing but the gates (or, where the table says `refused`, the checks before loading) can see
it. The other half of the proof is that sound exports pass.
"""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from mobile_runtime.parity import measure_parity
from mobile_runtime.report import ParityResult
from protos.artifacts import open_artifact
from protos.errors import ArtifactError, MismatchError
from protos.golden import read_golden, write_golden
from protos.ptd import Tensor, read_ptd, write_ptd

PAGE = Path(__file__).parents[2] / "docs" / "parity.md"
Arrays = dict[str, np.ndarray]
Reseal = Callable[..., Path]


@dataclass(frozen=True)
class Bundles:
    """What parity is asked about."""

    base: Path | None
    adapter: Path | None = None


@dataclass(frozen=True)
class Lab:
    """A sound world, and the means to break a copy of it."""

    world: Any
    reseal: Reseal
    monkeypatch: pytest.MonkeyPatch

    def base(self, change: Callable[[Path], None]) -> Bundles:
        """The base alone, broken."""
        return Bundles(self.reseal(self.world.base, change))

    def weights(self, change: Callable[[Mapping[str, np.ndarray]], Arrays]) -> Bundles:
        """The base alone with other weights; `change` gives those that differ."""
        mine = load_file(self.world.base_model / "model.safetensors")
        return self.base(lambda d: overwrite(d / "foundation.ptd", mine, change(mine)))

    def adapter(self, change: Callable[[Arrays], Arrays]) -> Bundles:
        """Ada's adapter with other numbers: slot name -> array, in and out."""
        ada = self.world.adapters["ada"]
        changed = change(slot_arrays(ada))
        return Bundles(self.world.base, self.reseal(ada, lambda d: write_adapter(d, changed)))

    def rebound(self, base: Path) -> Bundles:
        """Ada's adapter on another base, as if it had been exported for it."""
        wanted = open_artifact(base).id
        bind = edit_json("adapter.json", lambda a: {**a, "base_bundle": wanted})
        parents = {"base_bundle": wanted}
        return Bundles(base, self.reseal(self.world.adapters["ada"], bind, parents))


def edit_json(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def mutate(directory: Path) -> None:
        value = json.loads((directory / name).read_text())
        (directory / name).write_text(json.dumps(change(value)))

    return mutate


def overwrite(file: Path, old: Mapping[str, np.ndarray], new: Arrays) -> None:
    """Put weights in the place where the old ones stand, found by content."""
    data = bytearray(file.read_bytes())
    sound = bytes(data)
    for name, array in new.items():
        at = sound.find(old[name].tobytes())
        assert at >= 0, f"{name} is not in {file.name}"
        data[at : at + array.nbytes] = np.ascontiguousarray(array, np.float32).tobytes()
    file.write_bytes(data)


def named(directory: Path, key_end: str, array: np.ndarray) -> None:
    """Overwrite the one constant whose key ends so."""
    file = directory / "foundation.ptd"
    (tensor,) = [t for t in read_ptd(file) if t.key.endswith(key_end)]
    assert tensor.size_bytes == array.nbytes
    data = bytearray(file.read_bytes())
    assert data[tensor.offset : tensor.offset + array.nbytes] != array.tobytes()
    data[tensor.offset : tensor.offset + array.nbytes] = array.tobytes()
    file.write_bytes(data)


def slot_arrays(bundle: Path) -> Arrays:
    held = {t.key: t for t in read_ptd(bundle / "adapter.ptd")}
    data = (bundle / "adapter.ptd").read_bytes()
    return {
        slot["name"]: np.frombuffer(
            data, np.float32, slot["size_bytes"] // 4, held[slot["key"]].offset
        ).reshape(slot["shape"])
        for slot in json.loads((bundle / "adapter.json").read_text())["slots"]
    }


def write_adapter(directory: Path, arrays: Arrays) -> None:
    """As the export does it: the tensors, and keys that follow from them, in all three files."""
    from export.executorch.layout import adapter_keys
    from export.peft_adapter import folded_digest

    raw = json.loads((directory / "adapter.json").read_text())
    slots = [dataclasses.make_dataclass("Slot", list(slot))(**slot) for slot in raw["slots"]]
    keys = adapter_keys(Slots(slots), folded_digest(arrays))  # type: ignore[arg-type]
    program = (directory / "program.pte").read_bytes()
    for slot in raw["slots"]:
        program = program.replace(slot["key"].encode(), keys[slot["name"]].encode())
        slot["key"] = keys[slot["name"]]
    (directory / "program.pte").write_bytes(program)
    (directory / "adapter.json").write_text(json.dumps(raw))
    write_tensors(directory / "adapter.ptd", {keys[n]: a for n, a in arrays.items()})


@dataclass(frozen=True)
class Slots:
    slots: list[Any]


def write_tensors(file: Path, arrays: Arrays) -> None:
    blob = file.parent.parent / f"{file.parent.name}.numbers"
    tensors: list[Tensor] = []
    with blob.open("wb") as stream:
        for key, array in arrays.items():
            tensors.append(Tensor(key, array.nbytes, blob, stream.tell()))
            stream.write(np.ascontiguousarray(array, np.float32).tobytes())
    with file.open("wb") as stream:
        write_ptd(stream, tensors)
    blob.unlink()


def of_layer(name: str, old: int, new: int) -> str:
    return name.replace(f".layers.{old}.", f".layers.{new}.")


def other_layer(name: str) -> str:
    return of_layer(name, 0, 1) if ".layers.0." in name else of_layer(name, 1, 0)


def side(arrays: Arrays, letter: str, change: Callable[[np.ndarray], np.ndarray]) -> Arrays:
    """Change the A or the B of every pair."""
    return {n: change(a) if n.endswith(f"lora_{letter}") else a for n, a in arrays.items()}


def rope(lab: Lab) -> Bundles:
    head_dim = 16
    wrong = 1 / 500_000 ** (np.arange(0, head_dim, 2) / head_dim)
    return lab.base(lambda d: named(d, "inv_freq", wrong.astype(np.float32)))


def layers_swapped(lab: Lab) -> Bundles:
    return lab.weights(
        lambda w: {n: w[other_layer(n)] for n, a in w.items() if ".layers." in n and a.ndim == 2}
    )


def weight_transposed(lab: Lab) -> Bundles:
    name = "model.layers.0.self_attn.o_proj.weight"
    return lab.weights(lambda w: {name: w[name].T})


def embedding_shifted(lab: Lab) -> Bundles:
    name = "model.embed_tokens.weight"
    return lab.weights(lambda w: {name: np.roll(w[name], 1, axis=0)})


def tail_zeroed(lab: Lab) -> Bundles:
    def half(weights: Mapping[str, np.ndarray]) -> Arrays:
        head = weights["lm_head.weight"].copy()
        head[len(head) // 2 :] = 0
        return {"lm_head.weight": head}

    return lab.weights(half)


def norm_changed(lab: Lab) -> Bundles:
    return lab.base(lambda d: named(d, "model.norm.weight", np.full(64, 1.01, np.float32)))


def shard_truncated(lab: Lab) -> Bundles:
    def cut(directory: Path) -> None:
        file = directory / "foundation.ptd"
        file.write_bytes(file.read_bytes()[:-4096])

    return lab.base(cut)


def tokenizer_off_by_one(lab: Lab) -> Bundles:
    def shift(tokenizer: Any) -> Any:
        vocab = tokenizer["model"]["vocab"]
        special = len(tokenizer["added_tokens"])
        count = len(vocab) - special
        tokenizer["model"]["vocab"] = {
            text: number if number < special else (number - special + 1) % count + special
            for text, number in vocab.items()
        }
        return tokenizer

    return lab.base(edit_json("tokenizer.json", shift))


def prompt_json(**change: Any) -> Callable[[Lab], Bundles]:
    return lambda lab: lab.base(edit_json("prompt.json", lambda p: {**p, **change}))


def template_changed(lab: Lab) -> Bundles:
    longer = edit_json("prompt.json", lambda p: {**p, "template": p["template"] + " "})
    return lab.base(longer)


def cache_not_reset(lab: Lab) -> Bundles:
    from mobile_runtime.executorch_engine import ExecuTorchEngine

    def forget_less(self: ExecuTorchEngine) -> None:
        self._position = 0 if self._position + 80 > self.context_length else 3

    lab.monkeypatch.setattr(ExecuTorchEngine, "reset", forget_less)
    return Bundles(lab.world.base)


def merged_twice(lab: Lab) -> Bundles:
    """The base that the phone holds has the adapter merged in already."""
    arrays = slot_arrays(lab.world.adapters["ada"])

    def merged(weights: Mapping[str, np.ndarray]) -> Arrays:
        modules = {name.rpartition(".")[0] for name in arrays}
        return {
            f"{m}.weight": weights[f"{m}.weight"] + arrays[f"{m}.lora_B"] @ arrays[f"{m}.lora_A"]
            for m in sorted(modules)
        }

    base = lab.weights(merged).base
    assert base is not None
    return lab.rebound(base)


def one_target_lost(lab: Lab) -> Bundles:
    return lab.adapter(
        lambda s: {n: a * 0 if ".1.self_attn.o_proj.lora_B" in n else a for n, a in s.items()}
    )


def ranks_cut(lab: Lab) -> Bundles:
    def upper(b: np.ndarray) -> np.ndarray:
        return np.concatenate([b[:, : b.shape[1] // 2], 0 * b[:, b.shape[1] // 2 :]], axis=1)

    return lab.adapter(lambda s: side(s, "B", upper))


def bfloat16(array: np.ndarray) -> np.ndarray:
    """Rounded to the nearest bfloat16."""
    bits = np.ascontiguousarray(array).view(np.uint32)
    return ((bits + 0x8000) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def keys_shared(lab: Lab) -> Bundles:
    """Bo's numbers under Ada's keys: each is sound alone, and two alive at once are not."""
    bo = slot_arrays(lab.world.adapters["bo"])
    ada = json.loads((lab.world.adapters["ada"] / "adapter.json").read_text())["slots"]
    golden = lab.world.adapters["bo"]

    def put(directory: Path) -> None:
        write_tensors(directory / "adapter.ptd", {slot["key"]: bo[slot["name"]] for slot in ada})
        for name in ("golden.json", "golden.safetensors"):
            shutil.copy(golden / name, directory / name)

    return Bundles(lab.world.base, lab.reseal(lab.world.adapters["ada"], put))


def another_users_goldens(lab: Lab) -> Bundles:
    def put(directory: Path) -> None:
        for name in ("golden.json", "golden.safetensors"):
            shutil.copy(lab.world.adapters["bo"] / name, directory / name)

    return Bundles(lab.world.base, lab.reseal(lab.world.adapters["ada"], put))


def transposed(a: np.ndarray) -> np.ndarray:
    """Written as [in, rank] and read as [rank, in]."""
    return np.ascontiguousarray(a.T).reshape(a.shape)


MUTATIONS: dict[str, Callable[[Lab], Bundles]] = {
    "rope base wrong (500,000 for 10,000)": rope,
    "layers swapped in the base": layers_swapped,
    "a square weight transposed": weight_transposed,
    "embedding table shifted by one row": embedding_shifted,
    "half of the head's rows zero": tail_zeroed,
    "final norm 1% too large": norm_changed,
    "last shard truncated": shard_truncated,
    "tokenizer off by one": tokenizer_off_by_one,
    "template changed by a space": template_changed,
    "EOS missing": prompt_json(eos_ids=[]),
    "EOS is another token": prompt_json(eos_ids=[0]),
    "KV cache not reset": cache_not_reset,
    "A transposed": lambda lab: lab.adapter(lambda s: side(s, "A", transposed)),
    "alpha dropped (B half as large)": lambda lab: lab.adapter(
        lambda s: side(s, "B", lambda b: b / 2)
    ),
    "alpha twice (B twice as large)": lambda lab: lab.adapter(
        lambda s: side(s, "B", lambda b: b * 2)
    ),
    "sign of B flipped": lambda lab: lab.adapter(lambda s: side(s, "B", lambda b: -b)),
    "zero adapter": lambda lab: lab.adapter(lambda s: side(s, "B", lambda b: 0 * b)),
    "another user's adapter": lambda lab: lab.adapter(
        lambda _: slot_arrays(lab.world.adapters["bo"])
    ),
    "another user's goldens": another_users_goldens,
    "the adapter's layers swapped": lambda lab: lab.adapter(
        lambda s: {n: s[other_layer(n)] for n in s}
    ),
    "one target of one layer lost": one_target_lost,
    "half of the ranks cut off": ranks_cut,
    "adapter rounded to bfloat16": lambda lab: lab.adapter(
        lambda s: {n: bfloat16(a) for n, a in s.items()}
    ),
    "merged twice": merged_twice,
    "key names shared between users": keys_shared,
}


def table(title: str) -> dict[str, tuple[str, str]]:
    """What is broken -> (what catches it, stage at fault), from the page's table under `title`."""
    text = PAGE.read_text("utf-8").split(f"## {title}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", text, re.MULTILINE)[1:]
    return {what: (by.strip("`"), stage) for what, by, stage in rows if not what.startswith("---")}


CAUGHT = table("What the gates catch")


def failed(result: ParityResult) -> set[str]:
    return {gate.name for gate in result.gates if not gate.passed}


def test_the_page_lists_these_mutations() -> None:
    assert list(CAUGHT) == [*MUTATIONS, *QUANTIZED]
    assert len(CAUGHT) >= 15


@pytest.mark.slow
@pytest.mark.parametrize("what", MUTATIONS)
def test_a_broken_export_is_caught_by_the_gate_that_the_page_names(
    world, reseal, monkeypatch, cache_dir, what
) -> None:
    by, stage = CAUGHT[what]
    broken = MUTATIONS[what](Lab(world, reseal, monkeypatch))
    if by.startswith("refused: "):
        with pytest.raises((ArtifactError, MismatchError), match=by.removeprefix("refused: ")):
            measure_parity(broken.base, broken.adapter, 1, cache_dir=cache_dir)
        return
    result = measure_parity(broken.base, broken.adapter, 1, cache_dir=cache_dir)
    assert by in failed(result)
    assert result.stage_at_fault == stage


def test_writing_the_same_numbers_again_breaks_nothing(world, reseal, monkeypatch, cache_dir):
    same = Lab(world, reseal, monkeypatch).adapter(lambda s: s)
    assert measure_parity(same.base, same.adapter, 1, cache_dir=cache_dir).passed


def group_off(lab: Lab) -> Bundles:
    """Each group of 32 weights gets its neighbour's scale."""

    def roll(directory: Path) -> None:
        import torch

        from export.executorch.quantize import quantize
        from export.recipes import find_recipe
        from protos.base_model import load_model, open_base

        model = load_model(open_base(str(lab.world.base_model)), torch.float32)
        quantize(model, find_recipe("executorch-xnnpack-8da4w"))
        weight: Any = model.get_submodule("model.layers.0.mlp.down_proj").weight
        scales = weight.scale.to(torch.bfloat16)
        old, new = (s.contiguous().view(torch.int16).numpy() for s in (scales, scales.roll(1, 1)))
        file = directory / "foundation.ptd"
        data = file.read_bytes()
        assert data.count(old.tobytes()) == 1
        file.write_bytes(data.replace(old.tobytes(), new.tobytes()))

    return lab.base(roll)


def float32_scales(lab: Lab) -> Bundles:
    """The reference's scales keep the bits that XNNPACK rounds away."""

    def record(directory: Path) -> None:
        import torch
        from torchao.quantization.granularity import PerGroup
        from torchao.quantization.quant_api import (
            Int8DynamicActivationIntxWeightConfig,
            quantize_,
        )

        from export.reference import Recorder, Reference
        from protos.base_model import load_model, open_base

        golden = read_golden(directory)
        model = load_model(open_base(str(lab.world.base_model)), torch.float32)
        wrong = Int8DynamicActivationIntxWeightConfig(
            weight_dtype=torch.int4, weight_granularity=PerGroup(32)
        )
        quantize_(model, wrong, lambda module, _: isinstance(module, torch.nn.Linear))
        recorder = Recorder([[*p.ids, *p.continuation] for p in golden.prompts], 352)
        recorder.ids = golden.ids
        rungs = {**golden.rungs, "fake_quant.off": recorder.record(Reference(model))}
        write_golden(directory, dataclasses.replace(golden, rungs=rungs))

    return lab.base(record)


QUANTIZED: dict[str, Callable[[Lab], Bundles]] = {
    "a quantization group off by one": group_off,
    "scales in float32": float32_scales,
}


@pytest.mark.slow
@pytest.mark.parametrize("what", QUANTIZED)
def test_a_broken_quantization_is_caught_by_the_gate_that_the_page_names(
    quantized, reseal, monkeypatch, cache_dir, what
) -> None:
    """On random weights rounding alone changes the likeliest token: that gate does not count."""
    by, stage = CAUGHT[what]
    sound = measure_parity(quantized.base, None, 1, cache_dir=cache_dir)
    assert failed(sound) <= {"lowering_top1.off"}
    broken = QUANTIZED[what](Lab(quantized, reseal, monkeypatch))
    result = measure_parity(broken.base, None, 1, cache_dir=cache_dir)
    assert by in failed(result) - failed(sound)
    assert result.stage_at_fault == stage


OPERATOR = "model.layers.1.self_attn.v_proj"


def recorded_again(directory: Path, model: Any, names: list[str]) -> None:
    """Put what an eager model says in the place of these rungs."""
    from export.reference import Recorder

    golden = read_golden(directory)
    recorder = Recorder([[*p.ids, *p.continuation] for p in golden.prompts], 352)
    recorder.ids = golden.ids
    rung, _ = recorder.record_with_noise(model, 0)
    rungs = {**golden.rungs, **dict.fromkeys(names, rung)}
    write_golden(directory, dataclasses.replace(golden, rungs=rungs))


@pytest.mark.slow
def test_an_adapter_transposed_at_one_operator_is_named_by_it(
    world, probe, reseal, monkeypatch, cache_dir
) -> None:
    broken = Lab(world, reseal, monkeypatch).adapter(
        lambda s: {n: transposed(a) if n == f"{OPERATOR}.lora_A" else a for n, a in s.items()}
    )
    result = measure_parity(broken.base, broken.adapter, 1, cache_dir=cache_dir, probe=probe)
    assert (result.stage_at_fault, result.operator_at_fault) == ("adapter", OPERATOR)


@pytest.mark.slow
def test_a_merge_that_is_wrong_at_one_operator_is_named_by_it(
    world, reseal, monkeypatch, cache_dir
) -> None:
    """The merge, and all that is made from it, has one change three times as large as PEFT."""
    import torch

    from export.lora import fill, insert_lora
    from protos.base_model import load_model, open_base

    lab = Lab(world, reseal, monkeypatch)
    wrong = {
        n: a * np.float32(3) if n == f"{OPERATOR}.lora_B" else a
        for n, a in slot_arrays(world.adapters["ada"]).items()
    }
    model = load_model(open_base(str(world.base_model)), torch.float32)
    fill(insert_lora(model, 4), {n: torch.from_numpy(a.copy()) for n, a in wrong.items()})
    broken = lab.adapter(lambda _: wrong)
    assert broken.adapter is not None
    adapter = reseal(
        broken.adapter, lambda d: recorded_again(d, model.eval(), ["merged.on", "fake_quant.on"])
    )
    result = measure_parity(broken.base, adapter, 1, cache_dir=cache_dir)
    assert (result.stage_at_fault, result.operator_at_fault) == ("merge", OPERATOR)


@pytest.mark.slow
def test_a_quantization_that_is_wrong_at_one_operator_is_named_by_it(
    quantized, reseal, monkeypatch, cache_dir
) -> None:
    """What is lowered, and so what the device holds, has one weight's scales 16 times as large."""
    import torch

    from export.executorch.quantize import quantize
    from export.recipes import find_recipe
    from protos.base_model import load_model, open_base

    model = load_model(open_base(str(quantized.base_model)), torch.float32)
    quantize(model, find_recipe("executorch-xnnpack-8da4w"))
    weight: Any = model.get_submodule(OPERATOR).weight
    old = weight.scale.to(torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes()
    weight.scale.mul_(16)
    new = weight.scale.to(torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes()

    def change(directory: Path) -> None:
        file = directory / "foundation.ptd"
        data = file.read_bytes()
        assert data.count(old) == 1
        file.write_bytes(data.replace(old, new))
        recorded_again(directory, model, ["fake_quant.off"])

    broken = Lab(quantized, reseal, monkeypatch).base(change)
    result = measure_parity(broken.base, None, 1, cache_dir=cache_dir)
    assert result.operators["quantization"].worst == OPERATOR
