"""MLC's directories, run on TVM, say what transformers says about the same weights."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mobile_runtime.engine import Engine, open_engine
from mobile_runtime.mlc.engine import TvmEngine
from protos.errors import ArtifactError, InputError, MismatchError, UnsupportedError

IDS = [3, 40, 41, 77, 120, 20, 9, 33, 64, 2, 5, 99, 101, 7, 55, 81, 30]
Open = Callable[..., Engine]


@pytest.fixture
def opened(libraries) -> Open:
    return lambda base, adapter=None: open_engine(base, adapter, 1, libraries)


def read(engine: Engine, ids: list[int], answer: list[int]) -> np.ndarray:
    engine.reset()
    return np.array([engine.prefill(ids), *(engine.decode(token) for token in answer)])


def assert_equal(found: np.ndarray, wanted: np.ndarray) -> None:
    assert np.abs(found - wanted).max() <= 1e-4
    assert found.argmax(1).tolist() == wanted.argmax(1).tolist()


@pytest.mark.parametrize("user", [None, "ada", "bo"])
def test_logits_equal_transformers(world, opened, user) -> None:
    engine = opened(world.base, world.adapters.get(user))
    wanted = world.logits(user, [*IDS, *IDS])
    assert_equal(read(engine, IDS, IDS), wanted[len(IDS) - 1 :])
    others = [world.logits(other, IDS)[-1] for other in world.models if other != user]
    assert min(np.abs(wanted[len(IDS) - 1] - other).max() for other in others) > 0.1


@pytest.mark.parametrize("length", [1, 23, 24, 25, 49, 90])
def test_a_prompt_in_chunks_says_the_same(llama, opened, length) -> None:
    """Chunks of 24: one, a whole one, one and a token, several."""
    ids = (IDS * 6)[:length]
    engine = opened(llama.base)
    wanted = llama.logits(None, [*ids, 7, 8])
    assert_equal(read(engine, ids, [7, 8]), wanted[length - 1 :])
    assert engine.position == length + 2


def test_changing_the_adapter_equals_opening_anew(world, opened) -> None:
    if world.layout == "merged":
        pytest.skip("merged bundles are opened, not changed")
    opened(world.base)  # so that this library is compiled, too, whatever ran before
    engine = opened(world.base, world.adapters["ada"])
    base_bytes = sum(path.stat().st_size for path in world.base.glob("params_*.bin"))
    for user in ("bo", None, "ada"):
        engine.prefill(IDS)
        cost = engine.set_adapter(world.adapters.get(user))
        assert engine.position == 0
        assert cost.written_bytes == 0
        if user == "bo":  # the library runs already, and the base is not read again
            own = world.adapters["bo"].glob("params_*.bin")
            assert cost.opened_bytes == sum(path.stat().st_size for path in own) < base_bytes
        fresh = opened(world.base, world.adapters.get(user))
        assert np.array_equal(read(engine, IDS, [5, 6]), read(fresh, IDS, [5, 6]))


def test_a_refused_adapter_changes_nothing(llama, delta, opened) -> None:
    engine = opened(llama.base, llama.adapters["ada"])
    before, cost = engine.prefill(IDS), engine.cost
    with pytest.raises(MismatchError, match="was made for the base bundle"):
        engine.set_adapter(delta.adapters["ada"])
    assert (engine.position, engine.cost) == (len(IDS), cost)
    assert np.array_equal(read(engine, IDS, [])[0], before)


def test_two_engines_live_side_by_side(llama, opened) -> None:
    ada, bo = (opened(llama.base, llama.adapters[user]) for user in ("ada", "bo"))
    path, found = [*IDS, 9, 8, 7], {"ada": [ada.prefill(IDS)], "bo": [bo.prefill(IDS)]}
    for token in path[len(IDS) :]:
        found["ada"].append(ada.decode(token))
        found["bo"].append(bo.decode(token))
    for user, logits in found.items():
        assert_equal(np.array(logits), llama.logits(user, path)[len(IDS) - 1 :])


def test_more_threads_say_the_same(delta, libraries) -> None:
    one = read(open_engine(delta.base, None, 1, libraries), IDS, [5])
    two = read(open_engine(delta.base, None, 2, libraries), IDS, [5])
    assert np.array_equal(one, two)


def test_a_merged_bundle_runs_without_a_base(qwen2, opened) -> None:
    engine = opened(None, qwen2.adapters["ada"])
    assert_equal(read(engine, IDS, [5]), qwen2.logits("ada", [*IDS, 5])[len(IDS) - 1 :])
    with pytest.raises(UnsupportedError, match="merged into the weights"):
        engine.set_adapter(None)


def test_the_context_can_be_filled_and_not_overrun(llama, opened) -> None:
    engine = opened(llama.base)
    engine.prefill([5] * (engine.context_length - 1))
    engine.decode(5)
    with pytest.raises(InputError, match=f"context of {engine.context_length}"):
        engine.decode(5)
    engine.reset()
    with pytest.raises(InputError, match="do not fit the context"):
        engine.prefill([5] * (engine.context_length + 1))
    assert engine.prefill([5] * engine.context_length).shape == (engine.vocab_size,)


@pytest.mark.parametrize(("ids", "message"), [([], "no tokens"), ([-1], "-1"), ([131], "131")])
def test_ids_that_make_no_sense_are_refused(llama, opened, ids, message) -> None:
    with pytest.raises(InputError, match=message):
        opened(llama.base).prefill(ids)


def test_weights_that_are_not_finite_are_refused(llama, opened, reseal) -> None:
    def poison(directory: Path) -> None:
        shard = next(directory.glob("params_ada_*.bin"))
        shard.write_bytes(np.float32(np.nan).tobytes() + shard.read_bytes()[4:])

    with pytest.raises(ArtifactError, match="lora_a holds what is not finite"):
        opened(llama.base, reseal(llama.adapters["ada"], poison))


def test_neither_base_nor_adapter_is_refused(libraries) -> None:
    with pytest.raises(InputError, match="neither"):
        TvmEngine(None, None, 1, libraries)


def test_without_tvm_one_line_says_how_to_get_it(llama, libraries, monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'pocketune\[mlc\]'"):
        open_engine(llama.base, None, 1, libraries)


def test_what_the_export_writes_is_read(
    model_dir, peft_dirs, references, tmp_path, libraries
) -> None:
    """The product's own export, in both forms of an adapter, against PEFT."""
    from export.adapter import export_adapter
    from export.base import export_base

    base = export_base(str(model_dir), tmp_path / "base", "mlc-q0f32", context_length=96)
    ids = [3, 40, 41, 77, 120, 200, 9, 33]
    for mode in ("lora-parameters", "merged"):
        out = export_adapter(
            peft_dirs["ada"], base.path, tmp_path / mode, base=str(model_dir), mode=mode,
            trust_base=True, goldens=False,
        )  # fmt: skip
        engine = open_engine(base.path, out.path, 1, libraries)
        assert_equal(engine.prefill(ids)[None], references["ada"].logits(ids)[-1:])
        engine.set_adapter(None)
        assert_equal(engine.prefill(ids)[None], references[None].logits(ids)[-1:])


def test_computing_in_halves_costs_a_few_thousandths(qwen3, libraries) -> None:
    """What a phone does that computes in float16: why such recipes have a wider threshold."""
    engine = TvmEngine(qwen3.base, None, 1, libraries, dtype="float16")
    wanted = qwen3.logits(None, [*IDS, *IDS])[len(IDS) - 1 :]
    found = read(engine, IDS, IDS)
    assert 1e-4 < np.abs(found - wanted).max() < 1.2e-2
    assert found.argmax(1).tolist() == wanted.argmax(1).tolist()
