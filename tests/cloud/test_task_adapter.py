"""Task adapters: who may teach everybody, what comes of it, and how somebody leaves again."""

import hashlib
import json
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from cloud.pocket.world import sample_items, sample_user
from cloud.profiles import Consent, Item, Profile, read_rows, write_profile
from cloud.task_adapter import train_task
from cloud.tasks import TASKS
from cloud.teachers import POCKET_TEACHER
from cloud.train import TrainConfig
from pocketune import main
from protos.artifacts import Artifact, open_artifact
from protos.base_model import open_base
from protos.errors import InputError, MismatchError

POCKET_BASE = POCKET_TEACHER.with_name("base")
FAST = TrainConfig(learning_rate=5e-3, epochs=2, batch_size=4, dtype="float32", rank=4)
AGREED = Consent(contributes=True)


@pytest.fixture
def person(tmp_path: Path) -> Callable[..., Artifact]:
    """`person(name, …)`: the Profile of somebody with four headlines, who agreed."""

    def make(name: str, consent: Consent = AGREED, task: str = "LaMP_4", place: str = "") -> Any:
        items = [
            Item(str(n), f"{name} saw {n} foxes jump over the dog.", f"fox {n} of {name}")
            for n in range(4)
        ]
        if TASKS[task].labels:
            items = [Item(item.id, item.input, TASKS[task].labels[0]) for item in items]
        profile = Profile(TASKS[task], name, "en", consent, items, [])
        return write_profile(profile, tmp_path / "profiles" / (place or name))

    return make


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


def one_line(done: Result, code: int, *says: str) -> None:
    assert done.exit_code == code, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error:")]
    assert len(errors) == 1, done.stderr
    for text in says:
        assert text in errors[0]


def logits(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits


def test_the_merged_base_says_what_peft_says_and_learned_from_the_contributors(
    tmp_path: Path,
) -> None:
    """On the bundled base; the reference is PEFT's own unmerged adapter in eager PyTorch."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    profiles = []
    for number in range(3):
        user = sample_user("LaMP_4", number)
        rows = sample_items(user, 5)
        items = [Item(str(n), r["input"], r["output"], r["date"]) for n, r in enumerate(rows)]
        profile = Profile(TASKS["LaMP_4"], user.id, "en", AGREED, items, [])
        profiles.append(write_profile(profile, tmp_path / user.id))
    config = TrainConfig(learning_rate=2e-3, epochs=3, dtype="float32")
    made = train_task(profiles, open_base(str(POCKET_BASE)), tmp_path / "task", config, 1)

    measured = made.manifest.measured
    assert measured["valid_loss_after"] < measured["valid_loss_before"]
    assert measured["rows"] == 12, "four of five items of each; the newest validate"
    for part in ("base", "adapter", "dataset"):
        listed = open_artifact(tmp_path / "task" / part).config["contributors"]
        assert len(set(listed)) == measured["contributors"] == 3
    rows = read_rows(tmp_path / "task" / "dataset" / "train.jsonl")
    assert {row["source"]["user"] for row in rows} == {f"LaMP_4-{n}" for n in range(3)}

    ids = AutoTokenizer.from_pretrained(made.path)(rows[0]["prompt"])["input_ids"]
    plain = AutoModelForCausalLM.from_pretrained(POCKET_BASE, dtype=torch.float32).eval()
    before = logits(plain, ids)
    tuned = PeftModel.from_pretrained(plain, tmp_path / "task" / "adapter").eval()
    wanted = logits(tuned, ids)
    merged = AutoModelForCausalLM.from_pretrained(made.path, dtype=torch.float32).eval()
    assert float((wanted - before).abs().max()) > 0.01
    assert float((logits(merged, ids) - wanted).abs().max()) < 1e-3


@pytest.mark.slow
def test_users_adapters_on_a_task_base_are_exported_and_sound(
    tmp_path: Path, tiny_base: Path, person
) -> None:
    from export.adapter import export_adapter
    from export.base import export_base
    from mobile_runtime.parity import parity

    for name in ("ann", "bob"):
        person(name)
    task = tmp_path / "task"
    given = ("--epochs", "2", "--rank", "4", "--learning-rate", "5e-3", "--threads", "1")
    done = run(
        "task", "train", "--users", tmp_path / "profiles", "--base", tiny_base, "--out", task,
        *given, "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["contributors"] == 2
    own = person("eve", Consent(), place="../eve")
    dataset, adapter = tmp_path / "data", tmp_path / "adapter"
    done = run("augment", "--profile", own.path, "--per-real", "0", "--out", dataset)
    assert done.exit_code == 0, done.stderr
    trained = run("train", "--dataset", dataset, "--base", task / "base", "--out", adapter, *given)
    assert trained.exit_code == 0, trained.stderr

    recipe, whole = "executorch-xnnpack-fp32", str(task / "base")
    lowered = export_base(whole, tmp_path / "lowered", recipe, rank=4, threads=1).path
    exported = export_adapter(adapter, lowered, tmp_path / "bundle", base=whole, threads=1)
    _, result = parity(lowered, exported.path, tmp_path / "parity", 1)
    assert result.passed, [gate for gate in result.gates if not gate.passed]
    with pytest.raises(MismatchError, match="this bundle was made from base model"):
        export_adapter(adapter, lowered, tmp_path / "other", base=str(tiny_base), threads=1)

    # somebody leaves: nothing new is made of the base, and what is on phones goes on running
    assert (
        run("task", "withdraw", "bob", task).stdout == f"{task}: marked: base, adapter, dataset\n"
    )
    for refused in (
        ("train", "--dataset", dataset, "--base", whole, "--out", tmp_path / "a2"),
        ("export", "base", "--base", whole, "--out", tmp_path / "l2", "--recipe", recipe),
        ("export", "adapter", adapter, "--base", whole, "--bundle", lowered, "--out",
         tmp_path / "b2"),
        ("export", "merged", task / "adapter", "--base", tiny_base, "--out", tmp_path / "m2",
         "--recipe", recipe),
    ):  # fmt: skip
        one_line(run(*refused), 2, "a contributor withdrew on 20", "`pocketune task train`")
    _, still = parity(lowered, exported.path, tmp_path / "still", 1)
    assert still.passed


def test_who_did_not_agree_is_refused_by_name_before_anything_is_made(
    tmp_path: Path, tiny_base: Path, person
) -> None:
    people = [person("ann"), person("bob", Consent()), person("eve", Consent(third_party=True))]
    task = tmp_path / "task"
    with pytest.raises(InputError, match=r"bob did not agree .*; eve did not agree") as raised:
        train_task(people, open_base(str(tiny_base)), task, FAST, 1)
    assert "ann" not in str(raised.value)
    assert not task.exists()

    over = person("kim", Consent(retention_days=1, contributes=True))
    manifest = json.loads((over.path / "manifest.json").read_text())
    manifest["created"] = "2020-01-01T00:00:00+00:00"  # no part of the identity
    (over.path / "manifest.json").write_text(json.dumps(manifest))
    given = ("task", "train", "--base", tiny_base, "--out", task)
    one_line(run(*given, "--users", over.path), 2, "kim's consent is over")
    rated = person("lee", task="LaMP_3")
    one_line(
        run(*given, "--users", people[0].path, "--users", rated.path), 2,
        "several tasks (LaMP_3, LaMP_4)",
    )  # fmt: skip
    twice = person("ann", place="ann-again")
    one_line(run(*given, "--users", people[0].path, "--users", twice.path), 2, "ann: given twice")
    one_line(run(*given, "--users", tmp_path), 2, "no Profile, and no folder of Profiles")


def test_an_import_contributes_only_if_it_says_so(tmp_path: Path) -> None:
    items = tmp_path / "items.jsonl"
    items.write_text('{"input": "a fox", "output": "b"}\n{"input": "c", "output": "d"}\n')
    for flags, agreed in (((), False), (("--contributes",), True)):
        out = tmp_path / f"profile-{agreed}"
        done = run("profile", "import", items, "--user", "ann", "--out", out, *flags)
        assert done.exit_code == 0, done.stderr
        assert open_artifact(out).config["consent"]["contributes"] is agreed


def test_contributors_are_told_with_the_key_only_and_who_withdraws_stays_out(
    tmp_path: Path, tiny_base: Path, person
) -> None:
    people, base = [person("ann"), person("bob")], open_base(str(tiny_base))
    task, other = tmp_path / "task", tmp_path / "other"
    made = train_task(people, base, task, FAST, 1)
    elsewhere = train_task(people, base, other, FAST, 1)
    listed = set(made.config["contributors"])
    assert not listed & set(elsewhere.config["contributors"]), "no telling who is in both"
    assert not listed & {hashlib.sha256(name.encode()).hexdigest() for name in ("ann", "bob")}
    published = [made.path, task / "adapter"]
    texts = "".join(f.read_text(errors="ignore") for p in published for f in p.rglob("*.json"))
    assert not any(name in texts for name in ('"ann"', '"bob"', "foxes"))
    assert stat.S_IMODE((task / "contributors.key").stat().st_mode) == 0o600
    assert train_task(people, base, task, FAST, 1).manifest.created == made.manifest.created

    one_line(run("task", "withdraw", "eve", task, other), 2, "eve is no contributor of any")
    assert open_artifact(made.path).id == made.id, "nothing is marked for a stranger"
    one_line(run("task", "withdraw", "bob", tmp_path / "profiles"), 2, "no task adapter in it")

    done = run("task", "withdraw", "bob", task)
    assert done.exit_code == 0, done.stderr
    assert not (task / "dataset").exists(), "the items go at once"
    for place in ("base", "adapter"):
        with pytest.raises(InputError, match="a contributor withdrew on"):
            open_artifact(task / place)
    assert run("task", "withdraw", "bob", task).exit_code == 0, "twice is no fault"
    assert open_artifact(other / "base").id == elsewhere.id, "each folder is asked for itself"
    with pytest.raises(InputError, match=r"bob withdrew on .*, after this Profile was imported"):
        train_task(people, base, task, FAST, 1)

    alone = train_task(people[:1], base, task, FAST, 1)
    assert len(alone.config["contributors"]) == 1
    assert set(alone.config["contributors"]) < listed
    assert open_base(str(alone.path)).digest != open_base(str(elsewhere.path)).digest
    fresh = train_task(people[:1], base, tmp_path / "fresh", FAST, 1)
    assert open_base(str(fresh.path)).digest == open_base(str(alone.path)).digest, (
        "the very model that was never shown the one who left"
    )
    with pytest.raises(InputError, match="bob withdrew"):
        train_task(people, base, task, FAST, 1)

    # whoever agrees again is in again, and out again
    manifest = json.loads((people[1].path / "manifest.json").read_text())
    manifest["created"] = datetime.now(UTC).isoformat(timespec="seconds")
    while manifest["created"] <= json.loads((task / "withdrawn.json").read_text()).popitem()[1]:
        manifest["created"] = datetime.now(UTC).isoformat(timespec="seconds")
    (people[1].path / "manifest.json").write_text(json.dumps(manifest))
    people[1] = open_artifact(people[1].path)
    assert set(train_task(people, base, task, FAST, 1).config["contributors"]) == listed
    assert run("task", "withdraw", "bob", task).exit_code == 0
    with pytest.raises(InputError, match="bob withdrew"):
        train_task(people, base, task, FAST, 1)
    (task / "contributors.key").write_text("lost")
    one_line(run("task", "withdraw", "ann", task), 2, "contributors.key: expected a key of 64")
    (task / "contributors.key").unlink()
    one_line(run("task", "withdraw", "ann", task), 2, "contributors.key: expected a key of 64")
    with pytest.raises(InputError, match=r"contributors\.key: expected a key of 64"):
        train_task(people, base, task, FAST, 1)  # or bob would be in again
