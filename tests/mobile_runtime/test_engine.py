"""The engine says what transformers with PEFT says, also with several of them alive."""

import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from export.base import export_base
from mobile_runtime.engine import Engine, open_engine
from mobile_runtime.executorch_engine import ExecuTorchEngine
from protos.errors import ArtifactError, InputError, UnsupportedError

IDS = [3, 40, 41, 77, 120, 200, 9, 33]
Open = Callable[..., Engine]


@pytest.fixture
def opened(cache_dir: Path) -> Open:
    return lambda base, adapter=None: open_engine(base, adapter, 1, cache_dir)


def read(engine: Engine, ids: list[int], answer: list[int]) -> np.ndarray:
    engine.reset()
    return np.array([engine.prefill(ids), *(engine.decode(token) for token in answer)])


@pytest.mark.parametrize("user", [None, "ada", "bo"])
def test_logits_equal_transformers_with_peft(world, references, opened, user) -> None:
    reference = references[user]
    answer = reference.greedy(IDS, 24)
    wanted = reference.logits([*IDS, *answer])[len(IDS) - 1 :]
    found = read(opened(world.base, world.adapters.get(user)), IDS, answer)
    assert np.abs(found - wanted).max() < 1e-4
    assert found.argmax(1).tolist() == wanted.argmax(1).tolist()


def test_two_users_alive_at_once_get_their_own_answers(world, references, opened) -> None:
    engines = {user: opened(world.base, path) for user, path in world.adapters.items()}
    answers = {user: references[user].greedy(IDS, 12) for user in engines}
    assert answers["ada"] != answers["bo"]
    logits = {user: [engine.prefill(IDS)] for user, engine in engines.items()}
    for step in range(12):  # interleaved, token by token
        for user, engine in engines.items():
            logits[user].append(engine.decode(answers[user][step]))
    for user, other in (("ada", "bo"), ("bo", "ada")):
        path = [*IDS, *answers[user]]
        mine, theirs = (references[u].logits(path)[len(IDS) - 1 :] for u in (user, other))
        assert np.abs(np.array(logits[user]) - mine).max() < 1e-4
        assert np.abs(np.array(logits[user]) - theirs).max() > 0.1


def test_changing_the_adapter_equals_opening_anew(world, opened) -> None:
    engine = opened(world.base, world.adapters["ada"])
    for user in ("bo", None, "ada"):
        cost = engine.set_adapter(world.adapters.get(user))
        assert engine.position == 0
        assert cost.opened_bytes > cost.phone_bytes > 0
        fresh = opened(world.base, world.adapters.get(user))
        assert np.array_equal(read(engine, IDS, [5, 6]), read(fresh, IDS, [5, 6]))


@pytest.mark.slow
def test_a_merged_bundle_runs_without_a_base(merged_bundle, references, opened) -> None:
    engine = opened(None, merged_bundle)
    wanted = references["ada"].logits(IDS)[-1]
    assert np.abs(engine.prefill(IDS) - wanted).max() < 1e-4
    with pytest.raises(UnsupportedError, match="merged into the program"):
        engine.set_adapter(None)


def test_prefill_in_chunks_equals_prefill_at_once(world, opened, monkeypatch) -> None:
    engine = opened(world.base, world.adapters["ada"])
    assert isinstance(engine, ExecuTorchEngine)
    ids = (IDS * 12)[:90]
    whole = engine.prefill(ids)
    for most in (1, 7, 45, 89, 90):
        engine.reset()
        monkeypatch.setattr(engine._program, "max_tokens", most)
        assert np.abs(engine.prefill(ids) - whole).max() < 1e-5
        assert engine.position == 90


def test_the_context_can_be_filled_and_not_overrun(world, opened) -> None:
    engine = opened(world.base)
    engine.prefill([5] * (engine.context_length - 1))
    engine.decode(5)
    with pytest.raises(InputError, match=f"context of {engine.context_length}"):
        engine.decode(5)
    engine.reset()
    with pytest.raises(InputError, match="do not fit the context"):
        engine.prefill([5] * (engine.context_length + 1))
    assert engine.prefill([5] * engine.context_length).shape == (engine.vocab_size,)


@pytest.mark.parametrize(("ids", "message"), [([], "no tokens"), ([-1], "-1"), ([9999], "9999")])
def test_ids_that_make_no_sense_are_refused(world, opened, ids, message) -> None:
    with pytest.raises(InputError, match=message):
        opened(world.base).prefill(ids)


def test_logits_that_are_not_finite_name_the_bundle(world, opened, monkeypatch) -> None:
    engine: Any = opened(world.base, world.adapters["ada"])
    monkeypatch.setattr(
        engine._program, "forward", lambda ids, at: np.full(engine.vocab_size, np.nan, np.float32)
    )
    with pytest.raises(ArtifactError, match=f"{world.adapters['ada']}.*not finite"):
        engine.prefill(IDS)


def test_weights_of_nan_are_refused_when_they_answer(world, opened, reseal) -> None:
    def poison(directory: Path) -> None:
        path = directory / "foundation.ptd"
        data = bytearray(path.read_bytes())
        data[-4:] = np.float32(np.nan).tobytes()
        path.write_bytes(data)

    with pytest.raises(ArtifactError, match="not finite"):
        opened(reseal(world.base, poison)).prefill(IDS)


PREFILL = """
import os, sys
from pathlib import Path
from mobile_runtime.engine import open_engine
import torch
engine = open_engine(Path(sys.argv[1]), None, 2, Path(sys.argv[2]))
before, torchs = len(os.listdir("/proc/self/task")), torch.get_num_threads()
for _ in range(3):
    engine.reset()
    engine.prefill([3, *range(3, 50)] * 10)
print(len(os.listdir("/proc/self/task")) - before, torch.get_num_threads() - torchs)
"""


def test_reading_takes_no_more_threads_than_asked_for(tmp_path, cache_dir, tiny_base) -> None:
    """Each thread of the pool calls PyTorch's BLAS, which once began as many more of its own."""
    base = shutil.copytree(tiny_base, tmp_path / "model")
    config = LlamaConfig.from_pretrained(base, head_dim=64, max_position_embeddings=512)
    LlamaForCausalLM(config).save_pretrained(base)
    export_base(str(base), tmp_path / "base", "executorch-xnnpack-fp32", threads=1)
    command = [sys.executable, "-c", PREFILL, str(tmp_path / "base"), str(cache_dir)]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == ["0", "0"]


def test_another_thread_count_is_refused_while_an_engine_lives(world, cache_dir) -> None:
    gc.collect()
    engine = open_engine(world.base, None, 1, cache_dir)
    with pytest.raises(InputError, match="thread pool is shared"):
        open_engine(world.base, None, 2, cache_dir)
    first = engine.prefill(IDS)
    del engine
    gc.collect()
    two = open_engine(world.base, None, 2, cache_dir)
    assert np.abs(two.prefill(IDS) - first).max() < 1e-5
    del two
    gc.collect()


def test_neither_base_nor_adapter_is_refused(cache_dir) -> None:
    with pytest.raises(InputError, match="neither"):
        open_engine(None, None, 1, cache_dir)


@pytest.mark.slow
def test_quantized_answers_stay_near_the_float_reference(quantized, references, opened) -> None:
    engine = opened(quantized.base, quantized.adapters["ada"])
    wanted = references["ada"].logits(IDS)[-1]
    found = engine.prefill(IDS)
    assert np.abs(found - wanted).max() > 0
    assert np.corrcoef(found, wanted)[0, 1] > 0.9
