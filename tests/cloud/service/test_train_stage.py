"""The stage that trains, in this process: what it plans with."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloud.profiles import write_rows
from cloud.service.stages.train import Member, train_members
from cloud.train import TrainConfig
from protos.artifacts import create, open_artifact
from protos.base_model import open_base
from protos.progress import silent

STEPS, BATCH = 2, 4


@pytest.mark.parametrize(("jobs_at_once", "recomputed"), [(1, 0), (1 << 50, STEPS * BATCH)])
def test_jobs_at_once_share_the_memory_that_is_free(
    tmp_path: Path, tiny_base: Path, jobs_at_once: int, recomputed: int
):
    """The share of a job among so many holds no sequence, and each of them is recomputed."""
    make_dataset(tmp_path / "dataset")
    config = TrainConfig(epochs=STEPS, batch_size=BATCH, dtype="float32", patience=STEPS)
    member = Member(str(tmp_path / "dataset"), str(tmp_path / "adapter"), config)
    digest = open_base(str(tiny_base)).digest
    said = train_members([member], str(tiny_base), digest, jobs_at_once, 1, silent)
    measured = open_artifact(tmp_path / "adapter", "Adapter").manifest.measured
    assert said == [None]
    assert int(str(measured.get("recomputed", 0)).split()[0]) == recomputed


def test_one_who_left_before_its_dataset_was_opened_leaves_the_others(
    tmp_path: Path, tiny_base: Path
):
    make_dataset(tmp_path / "dataset")
    config = TrainConfig(epochs=1, batch_size=BATCH, dtype="float32")
    gone = Member(str(tmp_path / "ann" / "dataset"), str(tmp_path / "ann" / "adapter"), config)
    kept = Member(str(tmp_path / "dataset"), str(tmp_path / "adapter"), config)
    digest = open_base(str(tiny_base)).digest
    error, none = train_members([gone, kept], str(tiny_base), digest, 1, 1, silent)
    assert "no such artifact directory" in str(error)
    assert none is None
    assert open_artifact(tmp_path / "adapter", "Adapter").manifest.measured["users"] == 1
    assert not (tmp_path / "ann").exists()


def make_dataset(path: Path) -> None:
    rows = [{"prompt": f"news {n}", "completion": "Fox"} for n in range(BATCH)]
    with create(path, "Dataset", {}, {}) as draft:
        write_rows(draft.path / "train.jsonl", rows)
        write_rows(draft.path / "valid.jsonl", rows[:1])
