"""The main job, as the README tells it: from a bundled user's items to a verified package.

It runs the commands a person would run, on the bundled models and the real ExecuTorch runtime, and
then does to the result what a person might: another user's adapter, the wrong base, a second run.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import cloud.pocket
from cloud.metrics import bootstrap_interval
from cloud.profiles import read_profile, write_profile
from pocketune import POCKET_ARGUMENTS, answer_held_out
from protos.artifacts import open_artifact
from protos.progress import silent
from tests.cloud.conftest import chat as chat

POCKET = Path(cloud.pocket.__file__).parent
BASE = POCKET / "models" / "base"
pytestmark = pytest.mark.slow


def pocketune(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pocketune", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=900)


def users(task: str) -> list[str]:
    questions = json.loads((POCKET / "users" / task / "dev_questions.json").read_text())
    return list(dict.fromkeys(sample["user_id"] for sample in questions))


def personalize(
    task: str,
    user: str,
    out: Path,
    bases: Path,
    recipe: str = "executorch-xnnpack-8da4w",
    more: Sequence[str] = (),
) -> dict[str, Any]:
    folder = POCKET / "users" / task
    base_bundle = bases / ("base-bundle" if recipe.endswith("8da4w") else recipe)
    result = pocketune(
        "personalize", folder / "dev_questions.json", "--outputs", folder / "dev_outputs.json",
        "--user", user, "--base", BASE, "--teacher", "pocket", "--out", out,
        "--base-bundle", base_bundle, "--recipe", recipe, *POCKET_ARGUMENTS, *more, "--json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    warning = found["artifacts"]["dataset"]["measured"]["warning"]
    assert warning in result.stderr
    assert bool(warning) == ("Warning: " in result.stderr)
    return found


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipeline")


@pytest.fixture(scope="module")
def made(work: Path) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The task, the bundled user's result, and another user's on the same base."""
    task = "LaMP_4"
    one, other = users(task)[:2]
    first = personalize(task, one, work / task / "one", work)
    return task, first, personalize(task, other, work / task / "other", work)


def test_the_bundled_user_gains_and_the_interval_is_above_zero(made) -> None:
    _, first, _ = made
    assert first["held_out"]["questions"] >= 20
    assert first["held_out"]["gain_low"] > 0
    assert first["parity"]["passed"]


def test_another_users_adapter_does_not_help(made, work: Path) -> None:
    from cloud.metrics import item_scores
    from mobile_runtime.engine import open_engine
    from mobile_runtime.generate import Sampling, complete
    from mobile_runtime.prompt import open_prompt

    task, *_ = made
    user = read_profile(open_artifact(work / task / "one" / "profile"))
    base = work / "base-bundle"
    engine, prompt = open_engine(base, None, threads=2), open_prompt(base)
    scores: dict[str, list[float]] = {}
    for name in ("none", "one", "other"):
        bundle = None if name == "none" else work / task / name / "adapter-bundle"
        engine.set_adapter(bundle)
        said = [
            complete(engine, prompt, prompt.encode(q.query), Sampling())[0] for q in user.questions
        ]
        golds = [str(question.output) for question in user.questions]
        scores[name] = item_scores(user.task, said, golds)
    other = [b - a for a, b in zip(scores["none"], scores["other"], strict=True)]
    assert bootstrap_interval(other)[1] <= 0, "another user's adapter helps: it learned the task"
    own = [b - a for a, b in zip(scores["other"], scores["one"], strict=True)]
    assert bootstrap_interval(own)[1] > 0


def test_of_few_questions_no_interval_is_told(made, work: Path, tmp_path: Path) -> None:
    """Five answers that all got better are no proof, as `eval` holds of users."""
    task, first, _ = made
    one = work / task / "one"
    user = read_profile(open_artifact(one / "profile"))
    few = write_profile(replace(user, questions=user.questions[:5]), tmp_path / "few")
    given = (few, work / "base-bundle", one / "adapter-bundle", 2, silent)
    found = answer_held_out(*given)
    assert found is not None
    assert (found.questions, found.gain_low, found.gain_high) == (5, None, None)
    assert found.example == first["held_out"]["example"]


def test_a_rating_user_gets_a_sound_package_too(work: Path) -> None:
    """In float32. No gain is asserted: the bundled teacher reads tastes poorly from few ratings."""
    user = users("LaMP_3")[0]
    result = personalize("LaMP_3", user, work / "LaMP_3", work, "executorch-xnnpack-fp32")
    gates = {gate["name"]: gate for gate in result["parity"]["gates"]}
    assert gates["lowering_max_abs.on"]["value"] <= 1e-4
    assert gates["lowering_top1.on"]["value"] == 1.0
    assert result["held_out"]["score"] == "minus MAE"


def test_where_nothing_passes_the_real_items_alone_make_a_sound_package(work: Path, chat) -> None:
    """As `eval` scores it; and it is said where a person looks and where a script does."""
    chat.say = lambda message, number: json.dumps({"input": "x", "output": "y"})
    task = "LaMP_4"
    more = ["--teacher", chat.spec, "--scrub", "off", "--tries", "1"]
    result = personalize(task, users(task)[0], work / "in-vain", work, more=more)
    data = result["artifacts"]["dataset"]["measured"]
    assert (data["real"], data["synthetic"], data["wanted"]) == (10, 0, 38)
    assert data["warning"].startswith(f"nothing that {chat.spec} wrote passed the filters (")
    rows = open_artifact(work / "in-vain" / "dataset").file("train.jsonl").read_text().splitlines()
    assert [json.loads(row)["origin"] for row in rows] == ["real"] * 10
    assert result["parity"]["passed"]


@pytest.mark.parametrize(
    ("wrong", "code", "message"),
    [
        (("--recipe", "executorch-xnnpack-8da5w"), 2, "8da5w' is unknown"),
        (("--recipe", "executorch-coreml"), 5, "has no base apart from its adapters"),
        (("--context-length", "32"), 2, "context length 32 is too short"),
        (("--context-length", "100000"), 5, "context length 100000 is more than"),
    ],
)
def test_what_cannot_be_exported_is_said_before_the_teacher_is_sent_anything(
    tmp_path: Path, chat, wrong, code, message
) -> None:
    folder = POCKET / "users" / "LaMP_4"
    refused = pocketune(
        "personalize", folder / "dev_questions.json", "--outputs", folder / "dev_outputs.json",
        "--user", users("LaMP_4")[0], "--base", BASE, "--teacher", chat.spec, "--scrub", "off",
        "--out", tmp_path / "out", *wrong,
    )  # fmt: skip
    assert (refused.returncode, message in refused.stderr) == (code, True), refused.stderr
    assert not chat.bodies
    assert not (tmp_path / "out").exists()


def test_the_same_adapter_helps_as_much_on_mlc(made, work: Path) -> None:
    """The other backend: TVM answers from MLC's directories, with weights in four bits."""
    task, first, _ = made
    shutil.copytree(work / task / "one", work / task / "mlc")
    result = personalize(task, users(task)[0], work / task / "mlc", work, "mlc-q4f16_1")
    assert result["artifacts"]["adapter"]["id"] == first["artifacts"]["adapter"]["id"]
    assert result["parity"]["passed"]
    assert result["held_out"]["gain_low"] > 0


def test_the_same_again_skips_every_stage(made, work: Path) -> None:
    task, first, _ = made
    started = time.monotonic()
    again = personalize(task, users(task)[0], work / task / "one", work)
    assert again["artifacts"] == first["artifacts"]
    assert time.monotonic() - started < 120


def test_an_adapter_for_another_base_is_refused_and_never_run(
    made, work: Path, tmp_path: Path, tiny_base: Path
) -> None:
    task, *_ = made
    bundle = work / task / "one" / "adapter-bundle"
    adapter = work / task / "one" / "adapter"
    other = tmp_path / "other-base"
    lowered = pocketune(
        "export", "base", "--base", tiny_base, "--out", other,
        "--recipe", "executorch-xnnpack-fp32", "--context-length", "128",
    )  # fmt: skip
    assert lowered.returncode == 0, lowered.stderr
    ran = pocketune("run", "--base-bundle", other, "--adapter-bundle", bundle, "hello")
    assert ran.returncode == 4
    assert ran.stdout == ""
    assert "made for" in ran.stderr or "base" in ran.stderr
    exported = pocketune(
        "export", "adapter", adapter, "--base", tiny_base, "--bundle", other,
        "--out", tmp_path / "bundle",
    )  # fmt: skip
    assert exported.returncode == 4
    assert not (tmp_path / "bundle").exists()


def test_the_phone_answers_in_the_users_manner(made, work: Path) -> None:
    task, first, _ = made
    question = first["held_out"]["example"]["asked"]
    bundles = ("--base-bundle", work / "base-bundle")
    own = (*bundles, "--adapter-bundle", work / task / "one" / "adapter-bundle")
    assert pocketune("run", *own, question).stdout.strip() == first["held_out"]["example"]["after"]
    before = pocketune("run", *bundles, question).stdout.strip()
    assert before == first["held_out"]["example"]["before"]


def test_evaluation_times_answers_on_the_base_that_is_lowered_already(made, work: Path) -> None:
    task, *_ = made
    out = work / "eval"
    lowered = out / "device" / "base-bundle"
    shutil.copytree(work / "base-bundle", lowered)
    before = (lowered / "manifest.json").stat().st_mtime_ns
    done = pocketune(
        "eval", "--profiles", work / task / "one" / "profile", "--base", BASE, "--out", out,
        "--arms", "base,real", "--max-length", "512", "--epochs", "1", "--device", "--no-plots",
        "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    costs = json.loads(done.stdout)["costs"]
    assert 0 < costs["base"]["device_ms"] < 60_000
    assert 0 < costs["real"]["device_ms"] < 60_000
    assert (lowered / "manifest.json").stat().st_mtime_ns == before
    bundles = [open_artifact(path.parent) for path in lowered.parent.glob("*/manifest.json")]
    kinds = [bundle.manifest.kind for bundle in bundles]
    assert sorted(kinds) == ["AdapterBundle", "BaseBundle"]
    assert "phone's runtime" in (out / "evaluation.md").read_text("utf-8")
