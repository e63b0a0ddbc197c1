"""The reader in examples/, which has no numpy, reads what ours reads."""

import runpy
from pathlib import Path

import numpy as np

from protos.golden import Golden, GoldenPrompt, NoiseFloor, Rung, read_golden, write_golden

EXAMPLE = Path(__file__).parents[2] / "examples" / "read_golden.py"


def golden() -> Golden:
    rng = np.random.default_rng(0)

    def rung() -> Rung:
        return Rung(
            rng.normal(size=(5, 4)).astype(np.float32), rng.normal(size=5).astype(np.float32),
            rng.integers(0, 9, 5).astype(np.int32), rng.normal(size=(2, 9)).astype(np.float32),
            rng.normal(size=(3, 2, 6)).astype(np.float32),
        )  # fmt: skip

    prompts = [GoldenPrompt("one", "é", "<é>", [1, 2], [3]), GoldenPrompt("two", "", "", [4], [5])]
    return Golden(
        prompts, rng.integers(0, 9, (5, 4)).astype(np.int32), np.array([0, 4], np.int32),
        {"peft.off": rung(), "fake_quant.off": rung()}, NoiseFloor(1e-9, 1e-8, 1.0, 1e-6, 1e-5),
        {"lowering_top1": 1.0}, 7, {"torch": "2.13.0"}, [2],
    )  # fmt: skip


def test_the_reader_is_short_and_plain() -> None:
    lines = EXAMPLE.read_text("utf-8").splitlines()
    assert len(lines) <= 40
    imported = {line.split()[1] for line in lines if line.startswith(("import", "from"))}
    assert imported == {"json", "struct", "sys", "pathlib"}


def test_the_reader_reads_what_ours_reads(tmp_path: Path) -> None:
    write_golden(tmp_path, golden())
    ours = read_golden(tmp_path)
    said, tensors = runpy.run_path(str(EXAMPLE))["read_golden"](tmp_path)
    assert [(p["name"], p["content"], p["ids"]) for p in said["prompts"]] == [
        (p.name, p.content, p.ids) for p in ours.prompts
    ]
    assert (said["thresholds"], said["eos_ids"]) == (ours.thresholds, ours.eos_ids)
    arrays = {"ids": ours.ids, "full_rows": ours.full_rows}
    for name, rung in ours.rungs.items():
        arrays |= {f"{name}.{part}": getattr(rung, part) for part in vars(rung)}
    assert set(tensors) == set(arrays)
    for name, (shape, numbers) in tensors.items():
        assert np.array_equal(np.array(numbers, arrays[name].dtype).reshape(shape), arrays[name])
