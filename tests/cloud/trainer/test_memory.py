"""How much memory there is, from the files that the kernel writes, and what a sequence takes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cloud.checkpoint import State
from cloud.trainer import memory
from cloud.trainer.alone import first_factors
from cloud.trainer.fit import _packed
from cloud.trainer.learner import Learner
from cloud.trainer.memory import Budget, free_bytes, saved_bytes, scaled_bytes
from cloud.trainer.packing import Example, Piece, pack
from tests.cloud.trainer.conftest import FAMILIES, make_model, make_user

MIB = 1 << 20
V2 = f"""\
anon {20 * MIB}
file {90 * MIB}
kernel {MIB}
shmem {10 * MIB}
file_mapped {3 * MIB}
inactive_anon {25 * MIB}
active_anon {5 * MIB}
inactive_file {60 * MIB}
active_file {20 * MIB}
unevictable 0
workingset_refault_file 12
"""
V1 = f"""\
cache {MIB}
rss {2 * MIB}
inactive_file {MIB}
active_file 0
hierarchical_memory_limit {100 * MIB}
total_cache {90 * MIB}
total_inactive_file {60 * MIB}
total_active_file {20 * MIB}
total_unevictable 0
"""
V1_UNLIMITED = "9223372036854771712"


def free(files: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.setattr(memory, "_CGROUP", folder)
    return free_bytes(torch.device("cpu"))


def of_v2(limit: str, used: int, statistics: str = V2) -> dict[str, str]:
    return {
        "memory.max": f"{limit}\n", "memory.current": f"{used}\n", "memory.stat": statistics,
    }  # fmt: skip


def of_v1(limit: str, used: int, statistics: str = V1) -> dict[str, str]:
    return {
        "memory/memory.limit_in_bytes": f"{limit}\n",
        "memory/memory.usage_in_bytes": f"{used}\n",
        "memory/memory.stat": statistics,
    }


@pytest.mark.parametrize("files", [of_v2, of_v1])
@pytest.mark.parametrize(
    ("used", "left"),
    [
        (100, 80),  # full of files that the kernel drops as soon as somebody asks
        (95, 85),
        (60, 100),  # the statistics are a moment older than the usage
    ],
)
def test_what_only_keeps_files_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files, used: int, left: int
) -> None:
    found = free(files(str(100 * MIB), used * MIB), tmp_path, monkeypatch)
    assert found == int(left * MIB * 0.8)


@pytest.mark.parametrize("files", [of_v2, of_v1])
def test_without_statistics_all_that_is_used_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files
) -> None:
    found = free(files(str(100 * MIB), 90 * MIB, ""), tmp_path, monkeypatch)
    assert found == int(10 * MIB * 0.8)


@pytest.mark.parametrize("files", [{}, of_v2("max", MIB), of_v1(V1_UNLIMITED, MIB)])
def test_without_a_limit_it_is_the_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str]
) -> None:
    import psutil

    class Host:
        available = 10 * MIB

    monkeypatch.setattr(psutil, "virtual_memory", Host)
    assert free(files, tmp_path, monkeypatch) == 8 * MIB


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "phi3"])
def test_a_long_sequence_is_planned_for_without_being_run(
    tmp_path: Path, family: str, recompute: bool
) -> None:
    long = 1600
    model = make_model(family, max_position_embeddings=2048)
    user = make_user(1, 3, gradient_checkpointing=recompute)
    user.rows.append(Example([5] * long, 3))
    tensors, _ = first_factors(model, user.config)
    learner = Learner(tensors, user.rows, user.valid, user.config, tmp_path / "none")
    seen: list[int] = []
    model.get_decoder().register_forward_pre_hook(
        lambda _, __, given: seen.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    with _packed(model, [learner]) as passes:
        passes.plan(Budget(1 << 30, 1 << 30))
        assert max(seen) <= 704
        measured = passes._saved(long)
        assert seen[-1] == long
        assert scaled_bytes(passes._saved, long) == pytest.approx(measured, rel=0.01)
        assert scaled_bytes(passes._saved, 300) == passes._saved(300)


def learner_of(model: Any, folder: Path, **config: object) -> Learner:
    user = make_user(1, 3, **config)
    tensors, _ = first_factors(model, user.config)
    return Learner(tensors, user.rows, user.valid, user.config, folder / "none")


def test_rows_are_planned_by_whoever_needs_most_whatever_the_order(tmp_path: Path) -> None:
    model = make_model("llama")
    few = learner_of(model, tmp_path, rank=2)
    many = learner_of(model, tmp_path, rank=256)
    one = learner_of(model, tmp_path, rank=256, targets="q_proj", dropout=0.1)  # less than all of 2
    alone: list[int] = []
    for learner in (few, many, one):
        with _packed(model, [few, many, one]) as passes:
            passes._learners = [learner]
            alone.append(passes._saved(30))
    assert alone[1] > 2 * alone[0]
    tokens: list[int] = []
    for order in ([few, many, one], [many, one, few], [one, few, many], [few]):
        with _packed(model, order) as passes:
            if many in order:
                assert passes._saved(30) == alone[1] == max(alone)
            passes.plan(Budget(1 << 28, 1 << 30))
            tokens.append(passes._tokens)
    assert 0 < tokens[0] == tokens[1] == tokens[2] < tokens[3] / 2


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_keeps_no_more_than_is_planned_without(
    tmp_path: Path, family: str, recompute: bool
) -> None:
    model = make_model(family)
    learner = learner_of(model, tmp_path, dropout=0.1)
    learner.state = State(0, 0, [{"valid_loss": 1.0}])
    row = pack([Piece(0, 0, Example([5] * 100, 100))], model.device)
    with _packed(model, [learner]) as passes:
        passes._recompute = recompute
        expected = passes._saved(100)
        passes._routing.factors = [learner.routed(model.dtype)]
        with passes._recomputing(recompute):
            found = saved_bytes(lambda: passes._states(row), model.parameters())
    assert found <= expected
