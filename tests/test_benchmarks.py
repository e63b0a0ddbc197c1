"""The suite says what failed and goes on, and a benchmark notices what is wrong.

That all benchmarks still run is shown by `make bench-quick`, which CI runs; what they measure is
not looked at.
"""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


SOUND = """
from benchmarks.rows import Row

def rows(quick, work):
    print("what a benchmark prints is no result")
    (work / "file").write_text("")
    return [Row("two and two", 4.0, "apples", "three", 3.0, 4 / 3, (1.3, 1.4), 1.0)]
"""
BROKEN = """
def rows(quick, work):
    raise SystemExit("wrong: 1 item is lost")
"""


def test_a_benchmark_that_fails_has_its_error_in_its_file_and_the_others_run(tmp_path: Path):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "broken.py").write_text(BROKEN, "utf-8")
    (tmp_path / "benchmarks" / "sound.py").write_text(SOUND, "utf-8")
    code = "from benchmarks import suite; suite.BENCHMARKS = ('broken', 'sound'); suite.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--quick", "--out", str(tmp_path / "out")], cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "failed: broken\n"), done.stderr
    broken, sound = (
        json.loads((tmp_path / "out" / f"{name}.json").read_text("utf-8"))
        for name in ("broken", "sound")
    )
    assert (broken["rows"], broken["error"]) == ([], "wrong: 1 item is lost")
    assert "error" not in sound
    assert sound["rows"] == [
        {"figure": "two and two", "ours": 4.0, "unit": "apples", "peer": "three", "theirs": 3.0,
         "ratio": 4 / 3, "spread": [1.3, 1.4], "aim": 1.0, "note": "", "missing": False}
    ]  # fmt: skip
    assert "FAILED: wrong: 1 item is lost" in done.stdout
    assert "two and two: 4 apples, three 3: 1.33" in done.stdout


LACKING = """
from benchmarks.rows import Row

def rows(quick, work):
    note = "not measured: it cannot be built"
    return [Row("speed", 4.0, "1/s"), Row("speed", None, "1/s", "a peer", note=note, missing=True)]
"""


def test_a_peer_that_cannot_be_had_ends_a_full_run_with_1_after_all_was_written(tmp_path: Path):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "lacking.py").write_text(LACKING, "utf-8")
    (tmp_path / "benchmarks" / "sound.py").write_text(SOUND, "utf-8")
    code = "from benchmarks import suite; suite.BENCHMARKS = ('lacking', 'sound'); suite.main()"
    only = ["--only", "lacking", "--only", "sound"]
    for options, ended in ((only, 1), ([*only, "--quick"], 0)):
        out = tmp_path / f"out{ended}"
        done = subprocess.run(
            [sys.executable, "-c", code, *options, "--out", str(out)], cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
            timeout=60,
        )  # fmt: skip
        assert done.returncode == ended, done.stderr
        said = "missing: lacking: a peer, not measured: it cannot be built\n"
        assert done.stderr == (said if ended else "")
        lacking = json.loads((out / "lacking.json").read_text("utf-8"))
        assert [row["ours"] for row in lacking["rows"]] == [4.0, None]
        assert (out / "sound.json").is_file()


def test_a_build_that_fails_gives_a_row_without_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import inference, models, peers

    def fail() -> Path:
        raise peers.PeerError("pip ended with 1")

    model = models.Model("135M shape", str(models.BUNDLED), ("a", "b"))
    monkeypatch.setattr(inference, "llama_cpp", fail)
    monkeypatch.setattr(models, "model", lambda quick: model)
    for name in ("_ours", "_hugging_face", "_answers", "_start", "_check", "_fastest", "_turns"):
        monkeypatch.setattr(inference, name, lambda *_: {})
    (row,) = inference.rows(False, tmp_path)
    assert (row.ours, row.theirs, row.ratio, row.missing) == (None, None, None, True)
    assert (row.peer, row.note) == ("llama.cpp Q4_0", "not measured: pip ended with 1")


def test_a_quick_run_that_takes_long_is_warned_of(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.suite import in_all

    assert in_all(299.6) == "in all: 300 s of 300 s"
    assert in_all(312.0).startswith("in all: 312 s of 300 s; warning")


def test_ratios_are_those_of_turns_that_belong_together(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.turns import compared

    # The machine is three times as slow in the second turn: ours is twice as fast in each.
    row = compared("f", "s", "p", [1.0, 3.0, 1.0], [2.0, 6.0, 2.5], less_is_better=True, aim=2.0)
    assert (row.ours, row.theirs, row.ratio, row.spread) == (1.0, 2.5, 2.0, (2.0, 2.5))
    rates = compared("f", "1/s", "p", [10.0, 30.0], [5.0, 10.0], less_is_better=False)
    assert (rates.ratio, rates.spread) == (2.5, (2.0, 3.0))


def test_samples_of_another_distribution_are_noticed(monkeypatch: pytest.MonkeyPatch):
    """Drawn by transformers' own nucleus, from logits that are the same after every token."""
    monkeypatch.syspath_prepend(ROOT)
    import torch
    from transformers import TopPLogitsWarper

    from benchmarks import sampling
    from cloud.teachers import Sampling

    torch.manual_seed(0)
    logits = 2 * torch.randn(1, 50)

    def deviation(temperature: float, top_p: float) -> float:
        kept = TopPLogitsWarper(top_p)(torch.tensor([[0]]), logits / temperature).softmax(-1)
        drawn = kept.multinomial(2000, replacement=True)[0].tolist()
        samples = [sampling.Written([0, 0], drawn[n : n + 20], 20) for n in range(0, 2000, 20)]
        return sampling.deviation(
            lambda input_ids: SimpleNamespace(logits=logits.expand(1, input_ids.shape[1], 50)),
            samples, Sampling(temperature=1.0, top_p=0.95),
        )  # fmt: skip

    assert abs(deviation(1.0, 0.95)) < sampling.CRITICAL
    assert deviation(1.2, 0.95) < -sampling.CRITICAL < sampling.CRITICAL < deviation(0.8, 0.95)
    assert deviation(1.0, 1.0) < -sampling.CRITICAL < sampling.CRITICAL < deviation(1.0, 0.8)


def test_the_peak_of_a_training_is_not_that_of_the_process_that_began_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import training

    base = ROOT / "cloud" / "pocket" / "models" / "base"
    training.make_datasets(tmp_path / "datasets", base, users=1)
    held = b"1" * (2 << 30)
    ran = training.run_side("ours", base, tmp_path / "datasets", tmp_path / "out")
    assert 100e6 < ran["peak_bytes"] < len(held)


def test_logits_of_another_model_end_a_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT)
    import numpy as np

    from benchmarks import startup

    wanted = np.array([3.0, 4.0, 0.0])
    for said, cosine in (([4.0, 4.0, 0.0], 0.99), ([4.0, -3.0, 0.0], 0.0), ([np.nan] * 3, np.nan)):
        np.save(tmp_path / "said.npy", np.array(said))
        with contextlib.ExitStack() as stack:
            if not cosine > 0.8:
                stack.enter_context(pytest.raises(SystemExit, match=f"cosine {cosine:.3f}"))
            startup.hold("ours", tmp_path / "said.npy", wanted)


class Saying:
    """What reads and says the logits that it was given, for each variant."""

    def __init__(self, logits: dict[str, Any]) -> None:
        self._logits = logits

    def read(self, variant: str, ids: Any, prompt: int, save: Path) -> None:
        import numpy as np

        np.save(save, self._logits[variant])


NAN = float("nan")


@pytest.mark.parametrize(
    ("base", "adapter", "found"),
    [
        ([3.0, 4.0, 0.0], [3.0, 5.0, 0.0], None),
        ([NAN] * 3, [3.0, 5.0, 0.0], "base does not answer"),
        ([3.0, -4.0, 0.0], [3.0, 5.0, 0.0], "base does not answer"),
        ([3.0, 4.0, 0.0], [3.0, NAN, 0.0], "adapter does not answer"),
        ([3.0, 4.0, 0.0], [3.0, 4.0, 0.0], "effect of the adapter nan"),
        ([3.0, 4.0, 0.0], [4.0, 4.0, 0.0], "effect of the adapter 0.000"),
    ],
)
def test_what_answers_otherwise_than_its_reference_ends_inference(
    base: list[float], adapter: list[float], found: str | None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.syspath_prepend(ROOT)
    import numpy as np

    from benchmarks import inference

    variants = {
        "base": inference.Variant("here", {}, ("plain", 0.9)),
        "adapter": inference.Variant("here", {}, ("tuned", 0.9), effect_of="base"),
    }
    wanted = {"plain": np.array([[3.0, 4.0, 0.0]]), "tuned": np.array([[3.0, 5.0, 0.0]])}
    runner: Any = Saying({"base": np.array([base]), "adapter": np.array([adapter])})
    with ends(found):
        inference._check(variants, dict.fromkeys(variants, runner), wanted, [1], 1, tmp_path)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ([1.0, 2.0], None),
        ([2.0, 1.0], "differ by 1.00e\\+00"),
        ([NAN, NAN], "differ by nan"),
        ([1.0, NAN], "differ by nan"),
    ],
)
def test_what_answers_otherwise_than_hugging_face_ends_mlc(
    said: list[float], found: str | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(ROOT)
    import numpy as np

    from benchmarks import mlc

    for ours, theirs in ((said, [1.0, 2.0]), ([1.0, 2.0], said)):
        with ends(found):
            mlc._turn([], lambda _, o=ours: np.array(o), lambda _, t=theirs: np.array(t), None)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ([1.0, 0.0], None),
        ([0.0, 1.0], "cosine 0.000 to ours, other 1.000"),
        ([0.6, 0.8], "cosine 0.600 to ours, other 0.800"),
        ([NAN, NAN], "cosine nan"),
    ],
)
def test_an_adapter_that_answers_like_another_ends_startup(
    said: list[float], found: str | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(ROOT)
    import numpy as np

    from benchmarks import startup

    like = [np.array([1.0, 0.0]), np.array([0.0, 1.0])]
    for user in (0, 1):
        with ends(found):
            startup.hold_user(user, np.array(said), like[:: -1 if user else 1])


@pytest.mark.parametrize(
    ("loss", "found"), [(1.009, None), (0.991, None), (1.02, "1.02"), (0.98, "0.98"), (NAN, "nan")]
)
def test_another_loss_ends_a_benchmark(
    loss: float, found: str | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import quantization_aware, training

    with ends(found):
        training.agree("ours", loss, 1.0)
    with ends(found):
        quantization_aware.hold("ours", loss, 1.0, 0.01)


def parity_fails(gates: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Parity of what is merged misses these gates; all else is sound."""
    from mobile_runtime import parity

    def measure(base: Path, adapter: Path, *_: Any, **__: Any) -> Any:
        merged = "merged" in adapter.name
        rows = [SimpleNamespace(name=name, passed=not merged) for name in gates]
        return SimpleNamespace(gates=[SimpleNamespace(name="effect_present", passed=True), *rows])

    monkeypatch.setattr(parity, "measure_parity", measure)


def bundle(path: Path, content: str = "weights") -> Any:
    from protos.artifacts import create, open_artifact

    with create(path, "AdapterBundle", {}, {"content": content}) as draft:
        (draft.path / "program").write_text(content, "utf-8")
        draft.measured |= {"wire_bytes": 7, "lowering_seconds": 2.0, "golden_seconds": 1.0}
        draft.measured |= {"user_shard_bytes": 1, "shared_shard_bytes": 2}
    return open_artifact(path)


@pytest.mark.parametrize(
    ("merged", "wrong"),
    [
        ([3.0, 4.1, 1.0], None),
        ([3.0, 4.1, 0.0], "8da4w merged does not answer .* effect of the adapter 0.1"),
        ([-3.0, 4.1, 1.0], "8da4w merged does not answer as merged 8da4w does"),
        ([NAN] * 3, "8da4w merged does not answer as merged 8da4w does: cosine nan"),
    ],
)
def test_the_merged_peer_is_held_against_pytorch_before_exports_are_timed(
    merged: list[float], wrong: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(ROOT)
    import numpy as np

    from benchmarks import export_adapter, inference, models

    exported: list[str] = []

    def export(user: int, of: Any, base: Path, out: Path, *, goldens: bool = False) -> Path:
        exported.append(out.name)
        return bundle(out).path

    plain, tuned = np.array([[3.0, 4.0, 0.0]]), np.array([[3.0, 4.1, 1.0]])
    said = {"8da4w base": plain, "8da4w base + adapter": tuned, "8da4w merged": np.array([merged])}
    said |= {"float32": plain, "PEFT float32": tuned, "8da4w": plain, "PEFT 8da4w": tuned}
    said |= {"merged 8da4w": tuned}
    lowered = bundle(tmp_path / "bundle")
    facts = SimpleNamespace(path=lowered.path, measured=lowered.manifest.measured)
    model = models.Model("small", str(models.BUNDLED), ("a", "b"))
    monkeypatch.setattr(models, "model", lambda quick: model)
    monkeypatch.setattr(models, "lowered", lambda *_: facts)
    monkeypatch.setattr(models, "exported", export)
    monkeypatch.setattr(inference, "running", lambda *_: contextlib.nullcontext(Saying(said)))
    parity_fails([], monkeypatch)
    (tmp_path / "work").mkdir()
    with ends(wrong):
        export_adapter.rows(True, tmp_path / "work")
    timed = 0 if wrong else export_adapter.REPEATS
    assert exported == ["checked", "8da4w-adapter", *["again"] * timed]


@pytest.mark.parametrize(
    ("gates", "may_fail", "wrong"),
    [
        ([], (), None),
        (["effect_norm"], ("effect_norm",), None),
        (["effect_norm"], (), "merged does not answer as PEFT does: effect_norm"),
        (["lowering_max_abs.on"], ("effect_norm",), "merged does not answer as PEFT does"),
    ],
)
def test_parity_of_what_mlc_ships_comes_before_it_is_timed(
    gates: list[str], may_fail: tuple[str, ...], wrong: str | None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.syspath_prepend(ROOT)
    import export.adapter
    import export.base
    from benchmarks import mlc, models

    exported: list[str] = []

    def export_adapter(adapter: Path, to: Path, out: Path, **_: Any) -> Any:
        exported.append(out.name)
        return bundle(out)

    monkeypatch.setattr(export.base, "export_base", lambda _, out, *__, **___: bundle(out))
    monkeypatch.setattr(export.adapter, "export_adapter", export_adapter)
    parity_fails(gates, monkeypatch)
    model = models.Model("small", str(models.BUNDLED), ("", ""))
    with ends(wrong):
        mlc.ship(model, tmp_path, may_fail)
    assert ("merged-timed" in exported) is not bool(wrong)


def test_what_is_timed_is_what_was_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import answers

    for name, content in (("checked", "weights"), ("same", "weights"), ("other", "others")):
        bundle(tmp_path / name, content)
    answers.hold_same("a bundle", tmp_path / "checked", tmp_path / "same")
    with pytest.raises(SystemExit, match="a bundle: not the bundle that was checked: program"):
        answers.hold_same("a bundle", tmp_path / "checked", tmp_path / "other")


class Training:
    """In place of benchmarks/training.py's processes: each writes the loss that it is given."""

    def __init__(self, losses: dict[str, float]) -> None:
        self._losses = losses
        self.began: list[str] = []
        self.looked_at: list[str] = []

    def run_side(
        self, side: str, base: Path, datasets: Path, out: Path, users: int = 0, *,
        gpu: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        self.began.append(out.name)
        (out / "user00").mkdir(parents=True)
        (out / "user00" / "adapter_model.safetensors").write_text(
            str(self._losses.get(out.name, 2.0)), "utf-8"
        )
        return {"seconds": 1.0, "peak_bytes": 1, "dtype": "bfloat16"}

    def mean_loss(self, base: Path, datasets: Path, adapters: Path, users: int = 0) -> float:
        self.looked_at.append(adapters.name)
        return float((adapters / "user00" / "adapter_model.safetensors").read_text("utf-8"))


def trainings(losses: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> Training:
    """Trainings that end with these losses, by the names of their folders; others with 2."""
    from benchmarks import training

    fake = Training(losses)
    for name in ("run_side", "mean_loss"):
        monkeypatch.setattr(training, name, getattr(fake, name))
    monkeypatch.setattr(training, "make_datasets", lambda *given: list(given))
    return fake


@pytest.mark.parametrize("wrong", [2.1, NAN])
def test_losses_are_compared_before_trainings_are_timed(
    wrong: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import training

    fake = trainings({"ours": wrong, "ours0": wrong, "ours1": wrong}, monkeypatch)
    with pytest.raises(SystemExit, match="losses differ"):
        training.compare(tmp_path, tmp_path, "small", users=1, repeats=2)
    assert fake.began == ["ours", "peer"]


@pytest.mark.parametrize("wrong", [2.1, NAN])
def test_another_loss_of_a_timed_training_is_noticed_and_the_same_adapters_cost_nothing(
    wrong: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import training

    fake = trainings({"peer1": 2.01}, monkeypatch)
    training.compare(tmp_path / "sound", tmp_path, "small", users=1, repeats=2)
    assert fake.looked_at == ["ours", "peer", "peer1"]
    for side in ("ours1", "peer1"):
        trainings({side: wrong}, monkeypatch)
        with pytest.raises(SystemExit, match=f"small, {side}: losses differ"):
            training.compare(tmp_path / side, tmp_path, "small", users=1, repeats=2)


@pytest.mark.parametrize("wrong", [2.1, NAN])
def test_a_user_whose_loss_depends_on_the_number_of_others_is_noticed(
    wrong: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import training

    trainings({"of4": 2.01, "of4-1": 2.01}, monkeypatch)
    training.growth(tmp_path / "sound", tmp_path, "small", repeats=2)
    for name in ("of16", "of8-1"):
        fake = trainings({name: wrong}, monkeypatch)
        with pytest.raises(SystemExit, match=r"the first of (8|16) users: losses differ"):
            training.growth(tmp_path / name, tmp_path, "small", repeats=2)
        assert ("of1-0" in fake.began) == ("-" in name)


def test_the_mean_loss_is_that_of_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT)
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from benchmarks import training

    base = ROOT / "cloud" / "pocket" / "models" / "base"
    (dataset,) = training.make_datasets(tmp_path / "datasets", base, users=1)
    model = AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(model, LoraConfig(r=1)).save_pretrained(str(tmp_path / "out" / "user00"))

    def loss() -> float:
        return training.mean_loss(base, tmp_path / "datasets", tmp_path / "out")

    before, rows = loss(), (dataset / "train.jsonl").read_text("utf-8").splitlines()
    last = json.loads(rows[-1])
    rows[-1] = json.dumps(last | {"completion": last["prompt"]})
    (dataset / "train.jsonl").write_text("\n".join(rows) + "\n", "utf-8")
    assert abs(loss() - before) > 0.01


def ends(found: str | None) -> contextlib.AbstractContextManager[Any]:
    """SystemExit that says so, or nothing of the kind."""
    return pytest.raises(SystemExit, match=found) if found else contextlib.nullcontext()


def test_wrong_bytes_end_a_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import service_processes as processes

    for method in ("GetUser", "GetProfile", "GetAdapter"):
        (tmp_path / method).write_bytes(b"")
    content = b"altered" * 100_000
    (tmp_path / "content").write_bytes(content)

    def download(sha256: str) -> None:
        with processes.bare(tmp_path, tmp_path / "content") as plain:
            processes.client(
                "downloads", targets={"bare": (*plain, "memory")}, name="", size=len(content),
                sha256=sha256, rounds=1, streams=1,
            )  # fmt: skip

    download(hashlib.sha256(content).hexdigest())
    with pytest.raises(SystemExit):
        download(hashlib.sha256(b"what was stored").hexdigest())
    assert "bare: what was downloaded is not what was stored" in capfd.readouterr().err
