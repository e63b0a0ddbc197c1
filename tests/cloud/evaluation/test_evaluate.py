"""Evaluations with a tiny real base, real training, and a teacher behind a real server."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloud.augment import AugmentConfig
from cloud.evaluation.arms import ARMS
from cloud.evaluation.evaluate import evaluate
from cloud.evaluation.inputs import derangement
from cloud.evaluation.plots import draw, made_ratio
from cloud.evaluation.report import markdown, summary
from cloud.profiles import Consent, Item, Profile, Question, read_rows, write_profile
from cloud.tasks import custom_task
from cloud.teachers import Calls
from protos.artifacts import Artifact, open_artifact, read_json
from protos.errors import InputError, TeacherError
from tests.cloud.evaluation.conftest import arms, headlines, lamp_files

SOUND = [
    ("A farmer sold nine pigs at dawn today.", "pigs sell at dawn"),
    ("Rain kept all ships inside for a week.", "ships stay for rain"),
    ("Two bakers won the big prize of bread.", "bakers win for bread"),
]
ASKED = "This person is now asked: "


def many(*users: str) -> dict[str, Any]:
    return {user: headlines(user) for user in users}


def line(text: str, output: str) -> str:
    return json.dumps({"input": text, "output": output})


def teach(message: str, number: int) -> str:
    """A held-out question, then what is too short, then three sound items; and true answers."""
    if ASKED in message:
        user, place = re.findall(r"Zebra (\w+) ran over field number (\d)", message)[-1]
        return f"Secret {user} zebra {place}"
    user = re.findall(r"of (\w+) opened", message)[0]
    leak = line(f"Zebra {user} ran over field number 0 at night.", "zebra runs at night")
    return "\n".join([leak, line("Short.", "s"), *(line(*pair) for pair in SOUND)])


def written(folder: Path) -> str:
    """All that any adapter trains on or is chosen by."""
    found = [*folder.rglob("train.jsonl"), *folder.rglob("valid.jsonl")]
    assert found
    return "".join(path.read_text() for path in found)


def results(made: Artifact) -> Any:
    return read_json(made.file("evaluation.json"))


def ages(folder: Path) -> dict[str, int]:
    """When each adapter under `folder` was made."""
    found = folder.rglob("adapter_model.safetensors")
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in found}


@pytest.mark.slow
def test_all_arms_answer_the_same_questions_and_no_answer_is_learned_from(
    tmp_path: Path, chat, means, imported
) -> None:
    chat.say = teach
    folder = lamp_files(
        tmp_path / "lamp", "LaMP_4", {u: headlines(u) for u in ("ann", "bob", "eve")}
    )
    more = lamp_files(tmp_path / "more", "LaMP_4", {u: headlines(u) for u in ("ann", "kim", "lee")})
    out, people = tmp_path / "out", imported(folder)
    given = means(chat.spec, others=imported(more, tmp_path / "others"))
    every = arms(",".join(ARMS), ratios="0,0.34,1")
    made = evaluate(people, given, out, every)

    found = results(made)
    wanted = [*ARMS, "ratio-0", "ratio-0.34", "ratio-1"]
    assert list(found["arms"]) == wanted
    golds = read_json(folder / "dev_outputs.json")["golds"]
    for arm in wanted:
        said = read_json(made.file(f"predictions/{arm}.json"))
        assert said["task"] == "LaMP_4"
        assert [each["id"] for each in said["golds"]] == [each["id"] for each in golds]
    for user in found["users"]:
        assert (user["items"], user["trained_on"], user["questions"]) == (4, 3, 2)
        assert list(user["values"]) == wanted
        assert user["other"] in {"ann", "bob", "eve"} - {user["user"]}
    assert found["arms"]["teacher"]["pooled"] == {"rouge-1": 1.0, "rouge-L": 1.0}
    assert read_json(made.file("predictions/teacher.json"))["golds"] == golds

    # the held-out questions and answers: the teacher is asked the questions, and that is all
    assert "Zebra" not in written(out)
    assert "Secret" not in written(out)
    taught = [message for message in chat.asked if ASKED not in message]
    assert len(taught) == 3, "one request a user feeds all arms and ratios"
    assert not any("Zebra" in message for message in taught)
    assert not any("Secret" in message for message in chat.asked)

    # what each adapter learned from
    def learned(data: str) -> list[tuple[str, str]]:
        rows = read_rows(out / "users" / "bob" / data / "train.jsonl")
        return [(row["origin"], row["output"]) for row in rows]

    real = [("real", f"{place} opens for bob") for place in ("zoo", "mill", "castle")]
    sound = [("synthetic", output) for _, output in SOUND]
    assert learned("real") == real
    assert learned("real-repeated") == real + real
    assert learned("augmented-1") == real + sound
    assert learned("synthetic") == sound
    assert learned("mixed-unfiltered") == [*real, ("synthetic", "s"), *sound[:2]]
    assert learned("ratio-1") == real + sound
    assert len(learned("ratio-0.34")) == 4
    shared = read_rows(out / "task" / "dataset" / "train.jsonl")
    assert {row["source"]["user"] for row in shared} == {"kim", "lee"}, "ann is evaluated"

    # it can be read and looked at
    page = markdown(made)
    assert "# LaMP_4: 3 users, 6 questions" in page
    assert "- mixed over other: " in page
    drawn = draw(made, tmp_path / "plots")
    assert sorted({path.stem for path in drawn}) == [
        "gain-by-items", "gain-by-ratio", "gain-per-user",
    ]  # fmt: skip
    assert all(path.stat().st_size > 5000 for path in drawn)

    # nothing is made twice
    calls, before = len(chat.bodies), ages(out)
    assert evaluate(people, given, out, every).id == made.id
    fewer = evaluate(people, given, out, arms("base,real,mixed,other"))
    assert len(chat.bodies) == calls
    assert ages(out) == before
    assert results(fewer)["arms"]["other"] == found["arms"]["other"]

    # another augmentation leaves alone what no teacher had a part in
    hotter = replace(given, augmenting=replace(given.augmenting, temperature=0.5))
    evaluate(people, hotter, out, arms("base,real,mixed"))
    changed = {name for name, age in ages(out).items() if before[name] != age}
    assert {name.split("/")[3] for name in changed} == {"mixed"}

    # a user who has changed changes what is made of this user
    evaluate(people, given, out, every)
    before = ages(out)
    chat.bodies.clear()
    users = {"ann": headlines("ann", 5), "bob": headlines("bob"), "eve": headlines("eve")}
    lamp_files(folder, "LaMP_4", users)
    evaluate(imported(folder), given, out, every)
    assert chat.asked
    assert all("ann" in message for message in chat.asked)
    changed = {name for name, age in ages(out).items() if before[name] != age}
    assert changed == {name for name in before if name.startswith("users/ann/")}


@pytest.mark.parametrize("count", [2, 3, 10])
def test_nobody_is_their_own_other(count: int) -> None:
    names = [str(number) for number in range(count)]
    for seed in range(20):
        partners = derangement(dict.fromkeys(names, 4), seed)
        assert all(name != other for name, other in partners.items())
        assert sorted(partners.values()) == sorted(names)
        assert derangement(dict.fromkeys(names, 4), seed) == partners
    every = {tuple(derangement(dict.fromkeys(names, 4), seed).items()) for seed in range(20)}
    assert len(every) > 1 or count == 2


@pytest.mark.parametrize(
    ("items", "apart"),
    [
        ([4, 4, 4, 29, 29, 64, 64, 64], 0),
        ([29, 4, 30, 4, 64, 4, 60], 4),  # 29 and 30, 60 and 64
        ([16, 11, 7, 4, 2, 1], 5),  # in pairs, though 4 is nearer to 2 than to 7
        ([5, 4, 4, 64], 60),  # nobody is like 64
        ([10, 11, 12, 13, 14], 2),
    ],
)
def test_the_other_has_as_many_items_or_nearly(items: list[int], apart: int) -> None:
    counts = {f"{place}": count for place, count in enumerate(items)}
    for seed in range(20):
        partners = derangement(counts, seed)
        assert all(name != other for name, other in partners.items())
        assert sorted(partners.values()) == sorted(counts)
        assert max(abs(counts[a] - counts[b]) for a, b in partners.items()) == apart


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from cloud.evaluation.evaluate import evaluate
    from cloud.evaluation.inputs import Means
    from cloud.teachers import open_teacher
    from protos.artifacts import open_artifact
    from protos.base_model import open_base
    from tests.cloud.evaluation.conftest import AUGMENTING, TRAINING, arms
    base, teacher, out, last = sys.argv[1:]
    def progress(message, fraction):
        if message.startswith(last):
            os.kill(os.getpid(), signal.SIGKILL)
    people = [open_artifact(Path(out) / "users" / u / "profile") for u in ("ann", "bob")]
    means = Means(open_base(base), open_teacher(teacher, 1), AUGMENTING, TRAINING)
    evaluate(people, means, Path(out), arms("base,real,mixed,teacher,other"), {}, progress)
"""


@pytest.mark.slow
def test_killed_while_it_augments_trains_and_answers_it_ends_the_same(
    tmp_path: Path, tiny_base: Path, chat, means, imported
) -> None:
    chat.say = teach
    folder = lamp_files(tmp_path / "lamp", "LaMP_4", many("ann", "bob"))
    whole = evaluate(
        imported(folder, tmp_path / "whole"), means(chat.spec), tmp_path / "whole",
        arms("base,real,mixed,teacher,other"),
    )  # fmt: skip
    asked = sorted(chat.asked)
    chat.bodies.clear()
    out = tmp_path / "out"
    people = imported(folder, out)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    for last in ("bob: data of mixed", "4 users", "teacher: answers of bob"):
        arguments = [str(tiny_base), chat.spec, str(out), last]
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(KILLED), *arguments], env=environment,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not (out / "evaluation").exists()
    made = evaluate(people, means(chat.spec), out, arms("base,real,mixed,teacher,other"))
    assert made.id == whole.id
    assert results(made) == results(whole)
    assert sorted(chat.asked) == asked, "nothing was asked twice"


def test_a_user_for_whom_nothing_passes_counts_with_what_they_would_get(
    tmp_path: Path, chat, means, imported
) -> None:
    chat.say = lambda message, number: (
        '{"input": "x", "output": "y"}' if "of ann" in message else teach(message, number)
    )
    folder = lamp_files(tmp_path / "lamp", "LaMP_4", many("ann", "bob"))
    people, given = imported(folder), means(chat.spec)
    evaluate(people, given, tmp_path / "out", arms("base,real,mixed,synthetic"))
    seeds = [body["seed"] for body in chat.bodies if "of ann" in body["messages"][-1]["content"]]
    assert len(seeds) == len(set(seeds)) > 1, "each request once, for all arms"
    evaluate(people, given, tmp_path / "out", arms("base,mixed,mixed-unfiltered"))
    assert len(chat.bodies) == len(seeds) + 1, "ann's are not asked for again, bob's was one"
    made = evaluate(people, given, tmp_path / "out", arms("base,real,mixed,synthetic"))
    ann, bob = results(made)["users"]
    assert ann["fell_back"] == ["mixed", "synthetic"]
    assert bob["fell_back"] == []
    said = {
        arm: read_json(made.file(f"predictions/{arm}.json"))["golds"][:2] for arm in ann["values"]
    }
    assert said["mixed"] == said["real"]
    assert said["synthetic"] == said["base"]
    assert "Nothing that the teacher wrote passed for 1 of them (ann)" in markdown(made)


def test_a_user_whose_every_request_is_refused_counts_with_the_real_items_and_is_named(
    tmp_path: Path, chat, means, imported
) -> None:
    """The error is left for a teacher of which nothing can be read for anybody."""
    policy = {"error": {"code": "content_filter", "message": "no"}}
    refused = ["of ann"]
    chat.say = lambda message, number: (
        (400, policy) if any(user in message for user in refused) else teach(message, number)
    )
    users = {"ann": headlines("ann", 2), "bob": headlines("bob")}
    people = imported(lamp_files(tmp_path / "lamp", "LaMP_4", users))
    every = arms("base,real,real-repeated,mixed,mixed-unfiltered,synthetic", ratios="1")
    made = evaluate(people, means(chat.spec), tmp_path / "out", every)
    ann, bob = results(made)["users"]
    assert ann["fell_back"] == ["mixed", "mixed-unfiltered", "ratio-1", "synthetic"]
    assert (ann["unreadable"], bob["unreadable"]) == (True, False)
    assert ann["rows"]["mixed"] == ann["rows"]["real-repeated"] == ann["rows"]["real"] == 1
    assert (ann["rows"]["synthetic"], bob["rows"]["synthetic"]) == (0, 3)
    page = markdown(made)
    assert "Nothing that the teacher wrote passed for 1 of them (ann)" in page
    assert "items, votes or marks could be read for 1 users (ann): refused, or not of the" in page

    calls = len(chat.bodies)
    fewer = evaluate(people, means(chat.spec), tmp_path / "out", arms("base,real,mixed"))
    assert results(fewer)["users"][0]["unreadable"]
    assert len(chat.bodies) == calls, "refusals are kept, too"
    alone = evaluate(people, means(chat.spec), tmp_path / "out", arms("base,real-repeated"))
    assert "could be read for 1 users (ann)" in markdown(alone)

    refused.append("of bob")
    with pytest.raises(TeacherError, match=r"2 of 2 users, the first: .*ann.*not one of 3 answers"):
        evaluate(people, means(chat.spec), tmp_path / "none", arms("base,real,mixed"))


def test_what_was_made_is_told_and_not_what_was_asked_for(
    tmp_path: Path, chat, means, imported
) -> None:
    """ann has 3 items to train on and 3 that pass, bob 4 and the same 3; eve has none that pass."""
    chat.say = lambda message, number: (
        line("x", "y") if "of eve" in message else teach(message, number)
    )
    users = {"ann": headlines("ann"), "bob": headlines("bob", 5), "eve": headlines("eve")}
    people = imported(lamp_files(tmp_path / "lamp", "LaMP_4", users))
    every = arms("base,real,real-repeated,mixed,synthetic,other", ratios="0,0.34,2")
    given = means(chat.spec)
    made = evaluate(people, given, tmp_path / "out", every)
    found = results(made)
    told = {user["user"]: (user["rows"], user["synthetic"]) for user in found["users"]}
    names = ("real", "mixed", "synthetic", "ratio-0", "ratio-0.34", "ratio-2")
    assert {user: tuple(rows[name] for name in names) for user, (rows, _) in told.items()} == {
        "ann": (3, 6, 3, 3, 4, 6), "bob": (4, 7, 3, 4, 5, 7), "eve": (3, 3, 0, 3, 3, 3),
    }  # fmt: skip
    assert {user: tuple(part[name] for name in names) for user, (_, part) in told.items()} == {
        "ann": (0, 3, 3, 0, 1, 3), "bob": (0, 3, 3, 0, 1, 3), "eve": (0, 0, 0, 0, 0, 0),
    }  # fmt: skip
    for user in found["users"]:
        assert user["rows"]["real-repeated"] == user["rows"]["mixed"]
        assert user["synthetic"]["real-repeated"] == 0
        rows, part = told[user["other"]]
        assert (user["rows"]["other"], user["synthetic"]["other"]) == (rows["mixed"], part["mixed"])
        assert "base" not in user["rows"]
    made_ratios = [made_ratio(found, ratio) for ratio in (0, 0.34, 2)]
    assert made_ratios == pytest.approx([0, (1 / 3 + 1 / 4) / 3, (1 + 3 / 4) / 3])
    page = [row.split(" | ") for row in markdown(made).splitlines() if row.startswith("| ")]
    where = page[0].index("rows")
    shown = {row[0].strip("| "): tuple(row[where : where + 2]) for row in page}
    assert shown["arm"] == ("rows", "synthetic")
    assert (shown["base"], shown["mixed"]) == (("", ""), ("5.3", "2.0"))
    assert (shown["real"], shown["ratio-2"]) == (("3.3", "0.0"), ("5.3", "2.0"))
    assert shown["real-repeated"] == ("5.3", "0.0")
    assert found["users"][2]["fell_back"] == ["mixed", "ratio-0.34", "ratio-2", "synthetic"]

    # the epoch of 6 and of 7 rows is 2 batches of 4, that of 3 and of 4 rows is 1
    steps = {arm: cost["train_steps"] for arm, cost in made.manifest.measured["costs"].items()}
    assert steps["mixed"] == steps["real-repeated"] == pytest.approx(5 / 3)
    assert (steps["real"], steps["base"]) == (1, None)
    gain = found["gains"]["rouge-L"]["mixed"]["real-repeated"]
    scores = [[user["values"][arm]["rouge-L"] for user in found["users"]]
              for arm in ("mixed", "real-repeated")]  # fmt: skip
    assert gain["mean"] == pytest.approx((sum(scores[0]) - sum(scores[1])) / 3)
    assert "- mixed over real: " in markdown(made)
    assert "- mixed over real-repeated: " in markdown(made)
    assert "| mixed over real | mixed over real-repeated | " in summary([found])


def test_costs_hold_what_teachers_read_and_wrote_and_their_price(
    tmp_path: Path, chat, means, imported
) -> None:
    """Each call is 100 tokens read and 20 written: one for the items, one for each question."""
    chat.say = teach
    people = imported(lamp_files(tmp_path / "lamp", "LaMP_4", {"ann": headlines("ann")}))
    priced = means(chat.spec, calls=Calls(retries=0, price_in=1.0, price_out=5.0))
    made = evaluate(people, priced, tmp_path / "out", arms("base,mixed,teacher"))
    costs = made.manifest.measured["costs"]
    found = {
        name: [row[f"teacher_{what}"] for what in ("prompt_tokens", "tokens", "cost")]
        for name, row in costs.items()
    }
    assert found == {
        "base": [None, None, None],
        "mixed": [100, 20, pytest.approx(2e-4)],
        "teacher": [200, 40, pytest.approx(4e-4)],
    }
    page = markdown(made)
    assert "| teacher read | teacher wrote | teacher's price |" in page
    assert "| 100 tokens | 20 tokens | 0.0002 |" in page
    free = evaluate(people, means(chat.spec), tmp_path / "free", arms("base,mixed"))
    assert "teacher's price" not in markdown(free)


def test_the_phones_runtime_is_timed_on_the_first_users_questions_and_the_page_says_so(
    tmp_path: Path, means, imported
) -> None:
    timed: list[tuple[bool, list[str]]] = []

    def device(adapter: Artifact | None, queries: Sequence[str], room: int) -> float:
        timed.append((adapter is not None, list(queries)))
        return 7.0 if adapter else 5.0

    people = imported(lamp_files(tmp_path / "lamp", "LaMP_4", many("ann", "bob")))
    made = evaluate(people, means(device=device), tmp_path / "out", arms("base,real"))
    anns = [query for query, _ in headlines("ann")[1]]
    assert timed == [(False, anns), (True, anns)]
    costs = made.manifest.measured["costs"]
    assert (costs["base"]["device_ms"], costs["real"]["device_ms"]) == (5.0, 7.0)
    page = markdown(made)
    assert "| phone's runtime |" in page
    said = "The phone's runtime was timed on the questions of the first user alone (ann)."
    assert said in page
    untimed = evaluate(people, means(), tmp_path / "out", arms("base,real"))
    assert "phone's runtime" not in markdown(untimed)


def test_prices_that_are_named_later_are_shown_and_nothing_is_paid_for_again(
    tmp_path: Path, chat, means, imported
) -> None:
    chat.say = teach
    people = imported(lamp_files(tmp_path / "lamp", "LaMP_4", {"ann": headlines("ann")}))
    free = evaluate(people, means(chat.spec), tmp_path / "out", arms("base,teacher"))
    assert free.manifest.measured["costs"]["teacher"]["teacher_cost"] is None
    calls = len(chat.bodies)
    priced = means(chat.spec, calls=Calls(retries=0, price_in=1.0, price_out=5.0))
    made = evaluate(people, priced, tmp_path / "out", arms("base,teacher"))
    assert made.manifest.measured["costs"]["teacher"]["teacher_cost"] == pytest.approx(4e-4)
    assert "| 0.0004 |" in markdown(made)
    assert len(chat.bodies) == calls == 2


def test_one_user_whose_labels_are_all_equal_has_scores_and_no_interval(
    tmp_path: Path, means, imported
) -> None:
    profile = [
        {"id": str(n), "text": f"Review {n} of a thing.", "score": "5", "date": f"2020-01-0{n + 1}"}
        for n in range(3)
    ]
    asked = [("What is the score of the following review on a scale of 1 to 5? just answer with 1, "
              f"2, 3, 4, or 5 without further explanation. review: Fine {n}.", "5")
             for n in range(2)]  # fmt: skip
    folder = lamp_files(tmp_path / "lamp", "LaMP_3", {"ann": (profile, asked)})
    made = evaluate(imported(folder), means(), tmp_path / "out", arms("base,real"))
    found = results(made)
    gain = found["gains"]["mae"]["real"]["base"]
    values = found["users"][0]["values"]
    assert gain["mean"] == pytest.approx(values["base"]["mae"] - values["real"]["mae"])
    assert (gain["low"], gain["detectable"]) == (None, None)
    assert "MAE" in markdown(made)
    assert draw(made, tmp_path / "plots") == [], "nothing that is drawn was compared"


def test_an_evaluation_by_earlier_rules_is_made_anew_of_the_same_answers(
    tmp_path: Path, means, imported, monkeypatch: pytest.MonkeyPatch
) -> None:
    people, out = imported(lamp_files(tmp_path / "lamp", "LaMP_4", many("ann"))), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("cloud.evaluation.evaluate.FORM", 1)
        earlier = evaluate(people, means(), out, arms("base"))
    answers = {path: path.stat().st_mtime_ns for path in (out / "answers").iterdir()}
    made = evaluate(people, means(), out, arms("base"))
    assert made.id != earlier.id
    assert {path: path.stat().st_mtime_ns for path in (out / "answers").iterdir()} == answers
    assert evaluate(people, means(), out, arms("base")).id == made.id


CHINESE = [("我今天去了博物馆看新的展览。", "博物馆的新展览"),
           ("市长昨天为新的大桥剪了彩。", "大桥剪彩"),
           ("下雪以后所有的学校都关门了。", "大雪让学校关门")]  # fmt: skip
ARABIC = [("ذهبت اليوم إلى المتحف لأرى المعرض", "معرض جديد"),
          ("افتتح رئيس البلدية الجسر", "الجسر الجديد"),
          ("أغلقت المدارس أبوابها بسبب الثلج", "الثلج يغلق المدارس")]  # fmt: skip
CODE = [("def f(x):\n    return x + 1", "Adds one"), ("<p>Hello <b>you</b></p>", "Greets in bold"),
        ("for i in range(9):\n    print(i)", "Prints nine numbers")]  # fmt: skip
LONG = [(f"The museum number {n} is open. " * 1800, f"museum {n} opens") for n in range(3)]


def user_of(name: str, pairs: list[tuple[str, str]]) -> Any:
    """A user without dates, whose last pair is the held-out one."""
    *own, (text, gold) = pairs
    profile = [{"id": f"{name}{n}", "text": a, "title": b} for n, (a, b) in enumerate(own)]
    return profile, [(f"Generate a headline for the following article: {text}", gold)]


def test_users_of_any_script_of_code_and_of_very_long_texts_are_answered_and_counted(
    tmp_path: Path, means, imported
) -> None:
    assert min(len(text) for text, _ in LONG) > 50_000
    users = {"zh": CHINESE, "ar": ARABIC, "code": CODE, "long": LONG}
    folder = lamp_files(tmp_path / "lamp", "LaMP_4", {n: user_of(n, p) for n, p in users.items()})
    made = evaluate(imported(folder), means(), tmp_path / "out", arms("base,base+bm25,real"))
    found = results(made)
    assert (found["left_out"], found["odd"]) == ({}, {})
    assert [user["user"] for user in found["users"]] == list(users)
    # LaMP's ROUGE knows words of ASCII letters only: nothing is alike in other scripts
    for user in found["users"][:2]:
        assert all(value == {"rouge-1": 0, "rouge-L": 0} for value in user["values"].values())
    assert found["arms"]["base"]["truncated"] == found["arms"]["real"]["truncated"] == 1
    page = markdown(made)
    assert "Prompts that were too long and lost their beginning: base 1, " in page


def test_a_question_that_the_teacher_refuses_or_has_no_room_for_is_scored_as_nothing_said(
    tmp_path: Path, chat, means, imported
) -> None:
    folder = lamp_files(tmp_path / "lamp", "LaMP_4", many("ann"))
    policy = {"error": {"code": "content_filter", "message": "no"}}
    chat.say = lambda said, number: (
        (400, policy) if "field number 1" in said.split(ASKED)[1] else teach(said, number)
    )
    made = evaluate(imported(folder), means(chat.spec), tmp_path / "out", arms("teacher"))
    assert results(made)["arms"]["teacher"]["pooled"]["rouge-L"] == 1 / 2
    assert results(made)["arms"]["teacher"]["empty"] == 1
    assert "Questions to which nothing was said: teacher 1." in markdown(made)
    profile, asked = headlines("bob")
    asked = [asked[0], (asked[1][0] + " And on." * 7000, asked[1][1])]
    folder = lamp_files(tmp_path / "more", "LaMP_4", {"bob": (profile, asked)})
    made = evaluate(imported(folder), means("pocket"), tmp_path / "local", arms("teacher"))
    assert read_json(made.file("predictions/teacher.json"))["golds"][1]["output"] == ""


def test_a_task_with_one_label_has_scores(tmp_path: Path, tiny_base: Path, chat, means) -> None:
    task = custom_task("mails", "classification", "Sort: {input}", ("ham",))
    items = [Item(str(n), f"mail {n}", "ham") for n in range(3)]
    asked = [Question(f"q{n}", task.query(f"new {n}"), f"new {n}", "ham") for n in range(2)]
    profile = write_profile(
        Profile(task, "ann", "en", Consent(), items, asked), tmp_path / "profile"
    )
    chat.say = lambda said, number: "ham" if "new 0" in said.split(ASKED)[1] else "spam"
    made = evaluate([profile], means(chat.spec), tmp_path / "out", arms("base,teacher"))
    # said once and right, wanted twice: F1 2/3
    assert results(made)["arms"]["teacher"]["pooled"] == {
        "accuracy": 1 / 2, "f1": pytest.approx(2 / 3)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("config", "users", "says"),
    [
        ({"names": "base,other"}, ("ann",), r"one user only \(ann\), so there is no other"),
        ({"names": "base,task"}, ("ann", "bob"), "nobody with this task besides those evaluated"),
        ({"names": "base"}, ("ann", "ann"), "user 'ann' is there twice"),
        ({"names": "base"}, (), "nobody to evaluate"),
    ],
)
def test_what_an_arm_lacks_is_said_before_anything_is_made(
    tmp_path: Path, means, imported, config: dict[str, str], users: tuple[str, ...], says: str
) -> None:
    people = [
        imported(lamp_files(tmp_path / user, "LaMP_4", {user: headlines(user)}))[0]
        for user in users
    ]
    with pytest.raises(InputError, match=says):
        evaluate(people, means(), tmp_path / "made", arms(**config))
    assert not (tmp_path / "made").exists()


def test_a_teacher_elsewhere_needs_every_users_consent(tmp_path: Path, means, imported) -> None:
    folder = lamp_files(tmp_path / "lamp", "LaMP_4", many("ann", "bob"))
    far = means("openai:https://example.com/v1#m")
    with pytest.raises(InputError, match="consent does not allow a third-party teacher"):
        evaluate(imported(folder), far, tmp_path / "made", arms("base,teacher"))
    made = evaluate(imported(folder), far, tmp_path / "made", arms("base"))
    assert open_artifact(made.path, "Evaluation").manifest.measured["users"] == 2


def test_what_leaves_for_the_teacher_in_context_is_scrubbed(
    tmp_path: Path, chat, means, imported
) -> None:
    pytest.importorskip("presidio_analyzer")
    profile, asked = headlines("ann")
    asked = [(f"{query} Write to ann@example.org.", gold) for query, gold in asked]
    folder = lamp_files(tmp_path / "lamp", "LaMP_4", {"ann": (profile, asked)})
    chat.say = lambda message, number: "Mail to <EMAIL_ADDRESS_1>"
    given = means(chat.spec, augmenting=replace(AugmentConfig(), scrub="auto"))
    made = evaluate(imported(folder), given, tmp_path / "out", arms("teacher"))
    assert not any("ann@example.org" in message for message in chat.asked)
    assert "<EMAIL_ADDRESS_1>" in chat.asked[0]
    said = read_json(made.file("predictions/teacher.json"))["golds"]
    assert {each["output"] for each in said} == {"Mail to ann@example.org"}
