"""MLC's directories, run on TVM, say what transformers says about the same weights."""

from collections.abc import Callable

import numpy as np
import pytest

from mobile_runtime.engine import Engine, open_engine
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
