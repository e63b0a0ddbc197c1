"""A library is compiled once, found again, and made anew if anything about it is not as it was."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mobile_runtime.mlc import library, model
from mobile_runtime.mlc.bundles import open_base
from mobile_runtime.mlc.library import open_library

OPEN = (
    "import sys; from pathlib import Path\n"
    "from mobile_runtime.mlc.engine import TvmEngine\n"
    "engine = TvmEngine(Path(sys.argv[1]), None, 1, Path(sys.argv[2]))\n"
    "print(engine.cost.written_bytes, engine.prefill([3, 4, 5]).argmax())\n"
)


@pytest.fixture
def config(delta):
    return open_base(delta.base).config


@pytest.fixture
def quick(monkeypatch) -> list[object]:
    """Compile something small instead: what is built is not the point here."""
    import tvm
    from tvm import te

    built: list[object] = []

    def build(*given: object) -> object:
        built.append(given)
        x = te.placeholder((1,), name="x")
        y = te.compute((1,), lambda i: x[i] + 1.0)
        return tvm.compile(te.create_prim_func([x, y]), target=given[2])

    monkeypatch.setattr(library, "build", build)
    return built


def test_it_is_found_again(config, quick, tmp_path) -> None:
    first, second = (open_library(config, {}, directory=tmp_path) for _ in range(2))
    assert (first.built, second.built, len(quick)) == (True, False, 1)
    assert first.size_bytes == second.size_bytes > 0


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_a_damaged_one_is_made_again(config, quick, tmp_path, damage) -> None:
    open_library(config, {}, directory=tmp_path)
    (path,) = tmp_path.glob("*.so")
    sound = path.read_bytes()
    damaged = bytearray(sound)
    damaged[len(damaged) // 2] ^= 1
    path.unlink()  # it is loaded: other bytes under the same inode would crash this very process
    path.write_bytes({"flip": bytes(damaged), "truncate": sound[:-9], "empty": b""}[damage])
    assert open_library(config, {}, directory=tmp_path).built
    assert len(list(tmp_path.glob("*.so"))) == 1


def test_all_that_decides_the_code_decides_the_name(config, quick, tmp_path, monkeypatch) -> None:
    def opened(config=config, ranks=None, dtype="float32") -> bool:
        return open_library(config, ranks or {}, dtype, tmp_path).built

    assert opened()
    assert opened(replace(config, rope_theta=5.0))
    assert opened(replace(config, quantization="q4f16_1"))
    assert opened(ranks={"model.layers.0.self_attn.o_proj": 4})
    assert opened(dtype="float16")
    assert not opened()
    monkeypatch.setattr(library.tvm, "__version__", "1.0")
    assert opened()
    copy = tmp_path / "model.py"
    copy.write_bytes(Path(model.__file__).read_bytes() + b"#")
    monkeypatch.setattr(library.model, "__file__", str(copy))
    assert opened()


def test_without_a_compiler_it_stays_in_memory(delta, config, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(library, "get_cc", lambda: None)
    opened = open_library(config, {}, directory=tmp_path)
    assert (opened.built, opened.size_bytes, list(tmp_path.iterdir())) == (True, 0, [])
    assert opened.module["vm_load_executable"]() is not None


def test_two_processes_at_once_make_one(delta, tmp_path) -> None:
    command = [sys.executable, "-c", OPEN, str(delta.base), str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = sorted(process.communicate()[0].split() for process in running)
    assert [process.returncode for process in running] == [0, 0]
    assert said[0][0] == "0"
    assert int(said[1][0]) > 0
    assert said[0][1] == said[1][1]
    assert len(list(tmp_path.glob("*.so"))) == 1
