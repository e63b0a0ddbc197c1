"""Augmentation with real teachers: the bundled one, and a server over HTTP that also misbehaves."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import cloud.augment as stage
from cloud import selection
from cloud.augment import AugmentConfig, UnreadableError, augment, dry_run, examples, split
from cloud.cli import augment_command, import_profile
from cloud.profiles import Consent, Item, Profile, Question, read_profile, read_rows, write_profile
from cloud.tasks import TASKS, Task, custom_task
from cloud.teachers import Calls, open_teacher
from protos.artifacts import Artifact, open_artifact, write_json
from protos.errors import InputError, TeacherError

USERS = Path(stage.__file__).parent / "pocket" / "users"
GIVEN: dict[str, Any] = {
    "task": None, "kind": None, "prompt": "{input}", "labels": "", "language": "en",
    "purpose": "personalization", "retention_days": 30, "third_party": False,
}  # fmt: skip
ONCE = Calls(retries=0, timeout_s=30)


def bundled(task: str, out: Path) -> Artifact:
    questions = USERS / task / "dev_questions.json"
    user = json.loads(questions.read_text())[0]["user_id"]
    outputs = USERS / task / "dev_outputs.json"
    return import_profile(questions, out, **GIVEN, user=user, outputs=outputs)


@pytest.fixture(scope="module", params=["LaMP_3", "LaMP_4"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A profile and its dataset, made with the bundled teacher."""
    work = tmp_path_factory.mktemp(request.param)
    profile = bundled(request.param, work / "profile")
    teacher = open_teacher("pocket", threads=2)
    config = AugmentConfig(round=16, tries=10)
    return profile, augment(profile, teacher, work / "dataset", config), config, teacher


def test_all_real_rows_stay_and_every_synthetic_one_says_where_it_came_from(made) -> None:
    profile, dataset, *_ = made
    items = read_profile(profile).items
    rows = read_rows(dataset.file("train.jsonl"))
    real = [row for row in rows if row["origin"] == "real"]
    synthetic = [row for row in rows if row["origin"] == "synthetic"]
    valid = read_rows(dataset.file("valid.jsonl"))
    assert [row["source"]["item"] for row in real + valid] == [item.id for item in items]
    assert 5 <= len(synthetic) == dataset.manifest.measured["synthetic"] <= 10
    trained_ids = {row["source"]["item"] for row in real}
    for row in synthetic:
        assert set(row["source"]) == {
            "teacher", "strategy", "shots", "request", "seed", "index", "scores",
        }  # fmt: skip
        assert set(row["source"]["shots"]) <= trained_ids, "it was shown a held-out item"
    task = TASKS[profile.config["task"]["name"]]
    assert {row["prompt"] for row in rows} == {task.query(row["input"]) for row in rows}


@pytest.mark.parametrize("made", ["LaMP_3"], indirect=True)
def test_labels_come_as_the_user_gives_them_and_as_most_votes_do(made) -> None:
    profile, dataset, *_ = made
    user = read_profile(profile)
    train, _ = split(user.items)
    rows = read_rows(dataset.file("train.jsonl"))
    found = Counter(row["output"] for row in rows if row["origin"] == "synthetic")
    wanted = selection.quotas(user.task, train, 10)
    assert all(count <= wanted[label] for label, count in found.items())
    votes = [row["source"]["scores"]["votes"] for row in rows if row["origin"] == "synthetic"]
    assert set(votes) <= {round(2 / 3, 4), 1.0}
    rejected = read_rows(dataset.file("rejected.jsonl"))
    against = [r["source"]["scores"]["votes"] for r in rejected if r["reason"] == "inconsistent"]
    assert set(against) <= {0.0, round(1 / 3, 4)}
    assert against


def test_no_row_is_near_another_or_near_a_held_out_one(made) -> None:
    from rouge_score import rouge_scorer

    profile, dataset, *_ = made
    rows = read_rows(dataset.file("train.jsonl"))
    synthetic = [row["input"] for row in rows if row["origin"] == "synthetic"]
    held_out = [question.input for question in read_profile(profile).questions]
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    for number, text in enumerate(synthetic):
        for other in [*synthetic[:number], *held_out]:
            assert scorer.score(text, other)["rougeL"].fmeasure < 0.7


def test_counts_add_up_and_rejected_rows_are_kept_with_their_reason(made) -> None:
    _, dataset, *_ = made
    measured = dataset.manifest.measured
    rejected = read_rows(dataset.file("rejected.jsonl"))
    assert measured["asked"] == measured["synthetic"] + len(rejected)
    for name, count in measured["rejected"].items():
        assert count == sum(row["reason"] == name for row in rejected)
    for name, rows in examples(dataset, each=2).items():
        assert rows == [row for row in rejected if row["reason"] == name][:2]
    assert measured["spent"]["pocket"]["completion_tokens"] > 0


@pytest.mark.parametrize("made", ["LaMP_4"], indirect=True)
def test_a_seed_decides_everything(made, tmp_path: Path) -> None:
    profile, dataset, config, teacher = made
    assert augment(profile, teacher, tmp_path / "again", config).id == dataset.id
    other = AugmentConfig(round=16, tries=4, seed=5)
    assert augment(profile, teacher, tmp_path / "other", other).id != dataset.id


def test_without_synthetic_items_no_teacher_is_needed(tmp_path: Path) -> None:
    profile = bundled("LaMP_4", tmp_path / "profile")
    teacher = open_teacher("openai:http://127.0.0.1:9/v1#nobody", threads=1)
    dataset = augment(profile, teacher, tmp_path / "d", AugmentConfig(per_real=0))
    assert {row["origin"] for row in read_rows(dataset.file("train.jsonl"))} == {"real"}


PAIRS = [
    ("Fishermen found a bell from an old ship near the harbour wall.", "Bell out of the sea"),
    ("A night guard at the museum caught two thieves with paintings.", "Thieves caught at night"),
    ("All pupils of the valley get free lunch from next autumn on.", "Free lunch for pupils"),
    ("Bakers want to sell bread until midnight during the festival.", "Bread until midnight"),
    ("Engineers will close one lane while they repair rusty cables.", "One lane closes soon"),
    ("More than ninety volunteers sorted books after the pipe burst.", "Books saved by many"),
    ("The orchestra plays outdoors because its hall needs new seats.", "Music under the stars"),
    ("Gardeners plant two hundred oaks where the car park used to be.", "Oaks replace the cars"),
]


def line(text: str, output: str) -> str:
    return json.dumps({"input": text, "output": output}, ensure_ascii=False)


NEWS = [line(*pair) for pair in PAIRS]


def config(**given: Any) -> AugmentConfig:
    """Without scrubbing, which has tests of its own (test_privacy.py)."""
    return AugmentConfig(**{"scrub": "off", "pool": 1.0, **given})


def profile_of(
    out: Path, items: list[Item], task: Task = TASKS["LaMP_4"], **given: Any
) -> Artifact:
    consent = given.pop("consent", Consent())
    questions = given.pop("questions", [])
    return write_profile(Profile(task, "u", "en", consent, items, questions), out)


ITEMS = [
    Item(str(n), f"The {place} opened with {n} guests and some music.", f"{place} opens again")
    for n, place in enumerate(("zoo", "mill", "castle", "shop"))
]


@pytest.fixture
def small_profile(tmp_path: Path) -> Artifact:
    return profile_of(tmp_path / "profile", ITEMS)


def test_an_http_teacher_is_asked_with_the_items_and_read_strictly(
    tmp_path: Path, chat, small_profile: Artifact
) -> None:
    chat.say = lambda message, number: f"{NEWS[0]}\nnot json\n{NEWS[1]}"
    teacher = open_teacher(chat.spec, 1)
    prices = Calls(price_in=1.0, price_out=5.0)
    dataset = augment(
        small_profile, teacher, tmp_path / "d", config(per_real=0.7), calls=prices
    )  # fmt: skip
    measured = dataset.manifest.measured
    assert (measured["real"], measured["synthetic"]) == (3, 2)
    assert measured["rejected"]["unparsed"] == 1
    assert chat.bodies[0]["model"] == "small"
    assert '"input": "The zoo opened with 0 guests and some music."' in chat.asked[0]
    assert not any("The shop opened" in asked for asked in chat.asked), "the held-out item was sent"
    assert measured["spent"][chat.spec] == {
        "calls": 1, "prompt_tokens": 100, "completion_tokens": 20, "uncounted": 0,
        "cost": pytest.approx(2e-4),
    }  # fmt: skip


def test_it_is_said_once_what_a_server_did_not_take(
    tmp_path: Path, chat, small_profile: Artifact
) -> None:
    refused = {"error": {"message": "Unsupported parameter: 'seed'", "param": "seed"}}
    chat.say = lambda message, number: (
        (400, refused) if "seed" in chat.bodies[number] else f"{NEWS[0]}\n{NEWS[1]}"
    )
    arguments = [
        "--profile", str(small_profile.path), "--out", str(tmp_path / "d"), "--teacher", chat.spec,
        "--scrub", "off", "--per-real", "0.7", "--pool", "1", "--max-answer-tokens", "900",
    ]  # fmt: skip
    run = CliRunner().invoke(augment_command, arguments, catch_exceptions=False)
    assert [body["max_tokens"] for body in chat.bodies] == [900, 900]
    measured = open_artifact(tmp_path / "d", "Dataset").manifest.measured
    assert measured["without"] == {chat.spec: {"seed": 1}}
    said = f"Warning: {chat.spec} does not take every parameter; without seed (1 answers)\n"
    assert run.stderr.count(said) == 1


def test_prices_that_are_named_later_are_shown_of_what_is_there(
    tmp_path: Path, chat, small_profile: Artifact
) -> None:
    """A call of 100 tokens read and 20 written, a million tokens at 1 and at 5."""
    chat.say = lambda message, number: f"{NEWS[0]}\n{NEWS[1]}"
    arguments = [
        "--profile", str(small_profile.path), "--out", str(tmp_path / "d"), "--teacher", chat.spec,
        "--scrub", "off", "--per-real", "0.7", "--pool", "1", "--json",
    ]  # fmt: skip
    for prices, cost in (([], 0.0), (["--price-in", "1", "--price-out", "5"], 2e-4)):
        done = CliRunner().invoke(augment_command, [*arguments, *prices], catch_exceptions=False)
        assert json.loads(done.stdout)["spent"][chat.spec]["cost"] == pytest.approx(cost)
    assert len(chat.bodies) == 1


GERMAN = line("Die Bäcker wollen beim Fest bis Mitternacht Brot verkaufen.", "Brot bis Mitternacht")
ECHO = line("Today the castle at the lake burned down with all its towers.", "Castle at the lake")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("I cannot help with that.", "unparsed"),
        ("", "unparsed"),
        ("{" * 3000, "unparsed"),
        (
            f'{{"input": "The lake froze over on Monday night.", "output": {"9" * 5000}}}',
            "unparsed",
        ),
        (line("x", "y"), "length"),
        (line("The zoo opened with 0 guests and some music.", "the zoo again"), "near-duplicate"),
        (line(*PAIRS[0]) + "\n" + line(*PAIRS[0]), "duplicate"),
        (GERMAN, "language"),
        (ECHO, "leakage"),
        (line(PAIRS[2][0], "Fire burned the castle down"), "leakage"),
        (line(PAIRS[2][0], "!!! (42%) ??? 17:30 !!!"), "style"),
    ],
)
def test_what_a_bad_teacher_writes_is_counted_by_what_is_wrong_with_it(
    tmp_path: Path, chat, answer: str, reason: str
) -> None:
    held_out = Question("q", "?", "Today the castle at the lake burned down with all towers.",
                        "Fire burned the castle down")  # fmt: skip
    profile = profile_of(tmp_path / "profile", ITEMS, questions=[held_out])
    chat.say = lambda message, number: NEWS[1] if number == 0 else answer
    made = augment(profile, open_teacher(chat.spec, 1), tmp_path / "d", config(tries=2))
    measured = made.manifest.measured
    others = {name: n for name, n in measured["rejected"].items() if n and name != reason}
    assert measured["rejected"][reason] > 0
    assert set(others) <= {"duplicate"}, "the same wrong thing again"
    assert measured["synthetic"] == (2 if reason == "duplicate" else 1)
    assert measured["wanted"] == 3
    assert measured["asked"] >= 6


def test_a_teacher_of_whom_nothing_can_be_read_is_an_error_with_the_count(
    tmp_path: Path, chat, small_profile: Artifact
) -> None:
    chat.say = lambda message, number: "I cannot help with that."
    with pytest.raises(UnreadableError, match="not one of 18 answers was of the form") as error:
        augment(small_profile, open_teacher(chat.spec, 1), tmp_path / "d", config())
    assert error.value.exit_code == 6
    assert not (tmp_path / "d").exists()


def test_where_nothing_passes_the_real_items_remain_and_it_is_said(
    tmp_path: Path, chat, small_profile: Artifact
) -> None:
    chat.say = lambda message, number: GERMAN
    said: list[str] = []
    made = augment(
        small_profile, open_teacher(chat.spec, 1), tmp_path / "d", config(tries=1),
        lambda message, fraction: said.append(message),
    )  # fmt: skip
    rows = read_rows(made.file("train.jsonl"))
    assert [(row["origin"], row["input"]) for row in rows] == [
        ("real", item.input) for item in ITEMS[:3]
    ]
    measured = made.manifest.measured
    assert (measured["real"], measured["synthetic"], measured["wanted"]) == (3, 0, 3)
    assert measured["warning"] == said[-1]
    assert measured["warning"].endswith(
        "wrote passed the filters (duplicate 2, language 1): the Dataset holds the real items alone"
    )
    arguments = [
        "--profile", str(small_profile.path), "--out", str(tmp_path / "d"), "--teacher", chat.spec,
        "--scrub", "off", "--tries", "1", "--pool", "1",
    ]  # fmt: skip
    calls = len(chat.bodies)
    for more in ([], ["--json"]):
        run = CliRunner().invoke(augment_command, [*arguments, *more], catch_exceptions=False)
        assert f"Warning: {measured['warning']}" in run.stderr
    assert json.loads(run.stdout)["warning"] == measured["warning"]
    assert len(chat.bodies) == calls, "what is finished is not made again"
    others = augment(small_profile, open_teacher(chat.spec, 1), tmp_path / "e", config(per_real=0))
    assert others.manifest.measured["warning"] == ""


def test_an_interrupted_run_never_pays_twice(tmp_path: Path, chat, small_profile: Artifact) -> None:
    lines = ["nothing", *NEWS[:2], "nothing", *NEWS[2:]]
    chat.say = lambda message, number: lines[number % len(lines)]
    one_by_one = Calls(concurrency=1, retries=0)
    wanted = config(per_real=2.0, round=2, tries=4)
    whole = augment(small_profile, open_teacher(chat.spec, 1, one_by_one), tmp_path / "w", wanted)
    calls = len(chat.bodies)
    first = chat.bodies[:]
    for cut in range(1, calls):
        chat.bodies.clear()
        out = tmp_path / f"d{cut}"
        chat.say = lambda m, number, cut=cut: 403 if number >= cut else lines[number % len(lines)]
        with pytest.raises(TeacherError):
            augment(small_profile, open_teacher(chat.spec, 1, one_by_one), out, wanted)
        assert not out.exists()
        chat.say = lambda m, number: lines[(number - 1) % len(lines)]  # one was refused
        dataset = augment(small_profile, open_teacher(chat.spec, 1, one_by_one), out, wanted)
        assert dataset.id == whole.id
        refused = chat.bodies.pop(cut)
        assert chat.bodies == first, "each was answered once"
        assert refused == first[cut]
        assert dataset.manifest.measured["spent"] == whole.manifest.measured["spent"]


def test_other_options_and_a_run_in_vain_find_what_was_paid_for(tmp_path: Path, chat) -> None:
    """What is asked anew is only what the other option asks for: more votes, or a mark."""
    chat.say = lambda message, number: "3" if "how likely is it" in message else sorter(message)
    teacher = open_teacher(chat.spec, 1, Calls(concurrency=1, retries=0))
    profile, out = profile_of(tmp_path / "p", MAILS, HAM), tmp_path / "d"

    def asked(judge: bool = False, **given: Any) -> list[str]:
        chat.bodies.clear()
        made = augment(
            profile, teacher, out, config(tries=2, strategies="new", **given),
            judge=teacher if judge else None,
        )  # fmt: skip
        assert made.manifest.measured["synthetic"] == (0 if given.get("judge_least") else 5)
        kinds = {"how likely is it": "judge", "What is this person's output": "vote"}
        return [next((kinds[k] for k in kinds if k in m), "new") for m in chat.asked]

    assert asked() == ["new"] + ["vote"] * 3 * 6
    assert asked(round=1) == asked(votes=1) == []
    assert asked(votes=5) == ["vote"] * 2 * 6
    assert asked(pool=1.2) == ["new"]
    assert asked(judge=True, judge_least=4) == ["judge"] * 5, "nothing passes"
    assert asked(judge=True, judge_least=5) == asked() == []
    (kept,) = tmp_path.glob(".d.*.work")
    augment(profile_of(tmp_path / "q", MAILS[:5], HAM), teacher, out, config(tries=2))
    assert not kept.exists(), "it was written from items that are no longer there"
    assert len(list(tmp_path.glob(".d.*.work"))) == 1


HAM = custom_task("mails", "classification", "Sort: {input}", ("ham", "spam"))
MAILS = [
    Item(str(n), f"{text}, number {n} of this week", label)
    for n, (text, label) in enumerate([
        ("Notes of our meeting", "ham"), ("Cheap pills for everyone", "spam"),
        ("Minutes of the board", "ham"), ("The plan for the summer", "ham"),
        ("Win a lottery today", "spam"), ("Who brings the cake", "ham"),
    ])
]  # fmt: skip
WRITTEN = [
    ("Agenda for the next committee meeting", "ham"), ("Your loan is approved already", "spam"),
    ("Parking during the street works", "ham"), ("Meet singles who live near you", "ham"),
    ("Rooms for the choir weekend trip", "ham"), ("Lose some weight within a month", "spam"),
]  # fmt: skip


def sorter(message: str) -> str:
    """Takes what sounds like spam for it, whatever was claimed; writes mails if it is not asked."""
    asked = message.split("What is this person's output for ")
    if len(asked) == 1:
        return "\n".join(line(*pair) for pair in WRITTEN)
    return "spam" if any(word in asked[1] for word in ("loan", "singles", "weight")) else "ham"


def test_a_label_that_the_teacher_would_not_give_again_is_rejected(tmp_path: Path, chat) -> None:
    profile = profile_of(tmp_path / "p", MAILS, HAM)
    chat.say = lambda message, number: sorter(message)
    dataset = augment(profile, open_teacher(chat.spec, 1), tmp_path / "d", config(tries=2))
    rows = read_rows(dataset.file("train.jsonl"))
    synthetic = [(row["input"], row["output"]) for row in rows if row["origin"] == "synthetic"]
    # of 5 real ones 3 are ham; "Meet singles" was claimed to be ham, and all votes are against it
    assert Counter(label for _, label in synthetic) == {"ham": 3, "spam": 2}
    assert not any("singles" in text for text, _ in synthetic)
    rejected = read_rows(dataset.file("rejected.jsonl"))
    (singles,) = [row for row in rejected if row["reason"] == "inconsistent"]
    assert singles["pair"] == list(WRITTEN[3])
    assert singles["source"]["scores"] == {"votes": 0.0}
    votes = [message for message in chat.asked if "What is this person's output" in message]
    assert len(votes) == 3 * len(WRITTEN)
    assert len(set(votes[:3])) > 1, "the votes see the history in different selections"
    chat.bodies.clear()
    without = config(tries=2, votes=0)
    augment(profile, open_teacher(chat.spec, 1), tmp_path / "e", without)
    assert not any("What is this person's output" in message for message in chat.asked)


def test_free_outputs_asked_for_anew_take_the_place_of_those_that_were_drawn(
    tmp_path: Path, chat, small_profile: Artifact
) -> None:
    """One changes, one stays, one is now what the user has written before, one has no answer."""
    anew = {"bell": "A bell is found", "guard": PAIRS[1][1], "pupils": ITEMS[0].output, "lane": " "}

    def say(message: str, number: int) -> str:
        asked = message.split("What is this person's output for ")
        if len(asked) == 1:
            return "\n".join(NEWS)
        said = next((said for word, said in anew.items() if word in asked[1]), "Bread")
        return json.dumps({"output": said})

    chat.say = say
    made = config(per_real=1.0, pool=1.5, tries=2, answer_shots=16)
    dataset = augment(small_profile, open_teacher(chat.spec, 1), tmp_path / "d", made)
    rows = read_rows(dataset.file("train.jsonl"))[3:]
    removed = read_rows(dataset.file("rejected.jsonl"))
    taken = {row["input"]: (row["output"], row["source"].get("drawn")) for row in rows}
    assert taken[PAIRS[0][0]] == ("A bell is found", PAIRS[0][1])
    assert taken[PAIRS[1][0]] == (PAIRS[1][1], None)
    reasons = {row["pair"][0]: row["reason"] for row in removed if row["pair"]}
    assert reasons[PAIRS[2][0]] == "duplicate"
    assert [row["text"] for row in removed if row["reason"] == "unparsed"] == ['{"output": " "}']
    asked = [
        (body["temperature"], body["messages"][-1]["content"])
        for body in chat.bodies
        if "What is this person's output" in body["messages"][-1]["content"]
    ]
    assert len(asked) == len(set(asked)), "each is asked once"
    for temperature, message in asked:
        assert temperature == 0
        assert all(item.input in message for item in ITEMS[:3])
    (output,) = (
        example for example in dry_run(small_profile, open_teacher(chat.spec, 1), made)
        if isinstance(example, dict)
    )  # fmt: skip
    assert output["example"] == "output"
    newest, written = (json.dumps({"input": text}) for text in (ITEMS[2].input, PAIRS[0][0]))
    text = output["sent"][-1]["content"].replace(f"for {newest}?", f"for {written}?")
    assert text in [message for _, message in asked]


def test_what_keeps_the_users_output_or_has_labels_is_not_asked_for_anew(
    tmp_path: Path, chat, small_profile: Artifact
) -> None:
    chat.say = lambda message, number: json.dumps({"input": PAIRS[number % len(PAIRS)][0]})
    made = config(strategies="paraphrase", answer_shots=16)
    augment(small_profile, open_teacher(chat.spec, 1), tmp_path / "d", made)
    assert not any("What is this person's output" in message for message in chat.asked)
    chat.say = lambda message, number: sorter(message)
    chat.bodies.clear()
    mails = profile_of(tmp_path / "p", MAILS, HAM)
    labelled = config(tries=2, votes=0, answer_shots=16)
    augment(mails, open_teacher(chat.spec, 1), tmp_path / "e", labelled)
    assert chat.bodies
    assert not any("What is this person's output" in message for message in chat.asked)


def test_a_judges_mark_must_be_reached_and_counts_for_the_choice(
    tmp_path: Path, chat, small_profile: Artifact
) -> None:
    marks = {"bell": "2", "guard": "5", "pupils": "not sure", "Bakers": "3", "lane": "4"}

    def say(message: str, number: int) -> str:
        if "how likely is it" not in message:
            return "\n".join(NEWS[:5])
        return next(mark for word, mark in marks.items() if word in message.split("person: ")[-1])

    chat.say = say
    dataset = augment(
        small_profile, open_teacher(chat.spec, 1), tmp_path / "d", config(per_real=0.7, pool=1.5),
        judge=open_teacher(chat.spec, 1),
    )  # fmt: skip
    rows = read_rows(dataset.file("train.jsonl"))[3:]
    assert [(row["output"], row["source"]["scores"]["judge"]) for row in rows] == [
        ("Thieves caught at night", 5), ("One lane closes soon", 4)
    ]  # fmt: skip
    measured = dataset.manifest.measured
    assert (measured["rejected"]["judge"], measured["rejected"]["surplus"]) == (2, 1)
    assert dataset.config["judge"] == chat.spec
    assert {"profile", "teacher", "judge"} == set(dataset.manifest.parents)


def test_a_judge_of_whom_no_mark_can_be_read_is_an_error_that_names_it(
    tmp_path: Path, chat, small_profile: Artifact
) -> None:
    chat.say = lambda message, number: (
        "Score: 4" if "how likely is it" in message else "\n".join(NEWS[:5])
    )
    judge = open_teacher(chat.spec.replace("#small", "#strict"), 1)
    with pytest.raises(UnreadableError, match=r"#strict was asked for \d+ marks, .*'Score: 4'"):
        augment(
            small_profile, open_teacher(chat.spec, 1), tmp_path / "d", config(tries=2), judge=judge
        )
    assert not (tmp_path / "d").exists()


def test_a_teacher_of_whom_no_vote_can_be_read_is_an_error(tmp_path: Path, chat) -> None:
    chat.say = lambda message, number: {"ham": "ham.", "spam": "spam."}.get(
        sorter(message), sorter(message)
    )
    profile = profile_of(tmp_path / "p", MAILS, HAM)
    with pytest.raises(UnreadableError, match=r"#small was asked for \d+ votes, .*'ham.'"):
        augment(profile, open_teacher(chat.spec, 1), tmp_path / "d", config(tries=2))


def test_votes_and_marks_that_cannot_be_read_are_counted_and_shown(tmp_path: Path, chat) -> None:
    """Of three votes one says more than the label, and of six marks one more than the number."""
    voted: Counter[str] = Counter()

    def say(message: str, number: int) -> str:
        if "how likely is it" in message:
            return "Score: 4" if "loan" in message.split("person: ")[-1] else "4"
        said = sorter(message)
        subject = message.split("What is this person's output for ")[-1]
        voted[subject] += 1
        return f"{said}." if said in HAM.labels and voted[subject] == 1 else said

    chat.say = say
    profile = profile_of(tmp_path / "p", MAILS, HAM)
    arguments = [
        "--profile", str(profile.path), "--out", str(tmp_path / "d"), "--teacher", chat.spec,
        "--judge", chat.spec, "--scrub", "off", "--tries", "2", "--pool", "1", "--explain",
    ]  # fmt: skip
    run = CliRunner().invoke(augment_command, arguments, catch_exceptions=False)
    measured = open_artifact(tmp_path / "d", "Dataset").manifest.measured
    assert measured["votes"] == {"asked": 18, "unread": 6}
    assert measured["marks"] == {"asked": 5, "unread": 1}
    assert measured["rejected"]["judge"] == 1
    assert (
        "votes that could not be read: 6 of 18\nmarks that could not be read: 1 of 5" in run.stdout
    )


def test_where_a_judge_rejects_everything_the_warning_names_it(
    tmp_path: Path, chat, small_profile: Artifact
) -> None:
    marks = iter(["Score: 5", *["1"] * 100])
    chat.say = lambda message, number: (
        next(marks) if "how likely is it" in message else "\n".join(NEWS[:5])
    )
    judge = open_teacher(chat.spec.replace("#small", "#strict"), 1)
    made = augment(
        small_profile, open_teacher(chat.spec, 1), tmp_path / "d", config(tries=2), judge=judge
    )
    warning, asked = made.manifest.measured["warning"], made.manifest.measured["marks"]["asked"]
    assert f"judge {made.manifest.measured['rejected']['judge']} by {judge.name}" in warning
    assert f"1 of {asked} marks of {judge.name} could not be read" in warning


def test_a_judge_that_cannot_judge_is_refused_before_anything_is_paid_for(
    tmp_path: Path, chat, small_profile: Artifact, plain_base: Path
) -> None:
    judge = open_teacher(f"hf:{plain_base}", 1)
    with pytest.raises(InputError, match="a judge has to be a chat model"):
        augment(small_profile, open_teacher(chat.spec, 1), tmp_path / "d", config(), judge=judge)
    assert chat.bodies == []


def test_paraphrases_keep_the_users_output_and_strategies_mix(tmp_path: Path, chat) -> None:
    profile = profile_of(tmp_path / "p", MAILS, HAM)
    adjectives = "blue green early late small tall round flat wide thin"
    fresh = iter(f"Something {word} about that, as I wrote" for word in adjectives.split())

    def say(message: str, number: int) -> str:
        if "Write another input" in message:
            return json.dumps({"input": next(fresh)})
        return f"{line('Pills that cost hardly anything', 'spam')}\n{line('Hello', 'ham')}"

    chat.say = say
    mixed = config(votes=0, strategies="paraphrase,label", tries=3)
    dataset = augment(profile, open_teacher(chat.spec, 1), tmp_path / "d", mixed)
    by_text = {item.input: item for item in MAILS}
    everything = read_rows(dataset.file("train.jsonl")) + read_rows(dataset.file("rejected.jsonl"))
    kinds = Counter(row["source"]["strategy"] for row in everything if "strategy" in row["source"])
    assert set(kinds) == {"paraphrase", "label"}
    asked = [m.split("output stays the same: ")[1].split("\n")[0] for m in chat.asked
             if "output stays the same: " in m]  # fmt: skip
    for subject in map(json.loads, asked):
        assert by_text[subject["input"]].output == subject["output"]
    wished = {m.split("output is exactly: ")[1].split("\n")[0] for m in chat.asked
              if "output is exactly: " in m}  # fmt: skip
    assert wished == {"ham", "spam"}
    # of the two lines of each answer to a wished label, one has the other label
    assert dataset.manifest.measured["rejected"]["unparsed"] == sum(
        "output is exactly: " in m for m in chat.asked
    )


CHINESE = [
    ("我今天去了博物馆看新的展览。", "博物馆的新展览"),
    ("市长昨天为新的大桥剪了彩。", "市长为大桥剪彩"),
    ("下雪以后所有的学校都关门了。", "大雪让学校关门"),
    ("昨天晚上渔民在港口找到了一口旧钟。", "海里的一口旧钟"),
]
ARABIC = [
    ("ذهبت اليوم إلى المتحف لأرى المعرض", "معرض جديد في المتحف"),
    ("افتتح رئيس البلدية الجسر الجديد", "افتتاح الجسر الجديد"),
    ("أغلقت المدارس أبوابها بسبب الثلج", "الثلج يغلق المدارس"),
    ("وجد الصيادون جرسا قديما قرب الميناء", "جرس قديم من البحر"),
]
CODE = [
    ("def f(x):\n    return x + 1", "Adds one"),
    ("<p>Hello <b>you</b></p>", "Greets in bold"),
    ("for i in range(9):\n    print(i)", "Prints nine numbers"),
    ("while n < 5:\n    n = n * 2 - 1", "Doubles some number"),
]


@pytest.mark.parametrize(
    ("pairs", "foreign"), [(CHINESE, 1), (ARABIC, 1), (CODE, 0)], ids=["zh", "ar", "code"]
)
def test_users_of_any_script_of_code_and_of_html_get_a_dataset(
    tmp_path: Path, chat, pairs: list[tuple[str, str]], foreign: int
) -> None:
    """An English item is in no language of the first two; code is in none that could be known."""
    *own, new = pairs
    profile = profile_of(tmp_path / "p", [Item(str(n), *pair) for n, pair in enumerate(own)])
    english = ("A fox ate my lunch again.", "Fox ate lunch")
    chat.say = lambda message, number: f"{line(*new)}\n{line(*english)}"
    dataset = augment(profile, open_teacher(chat.spec, 1), tmp_path / "d", config(tries=1))
    rows = read_rows(dataset.file("train.jsonl"))
    synthetic = [(r["input"], r["output"]) for r in rows if r["origin"] == "synthetic"]
    assert synthetic == [new, english][: 2 - foreign]
    assert [(r["input"], r["output"]) for r in rows if r["origin"] == "real"] == own[:2]
    assert dataset.manifest.measured["rejected"]["language"] == foreign


LABELS = {
    "classification": {
        "zh": ("好消息", "坏消息"),
        "ar": ("سعيد", "حزين"),
        "code": ("loop", "no loop"),
    },
    "rating": dict.fromkeys(("zh", "ar", "code"), ("1", "5")),
}


MISJUDGED = {
    "zh": "老师给学生讲了一个有趣的故事。",
    "ar": "كتب المعلم رسالة طويلة لأصدقائه",
    "code": "if a > b:\n    a, b = b, a",
}


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize(
    ("script", "pairs", "foreign"), [("zh", CHINESE, 1), ("ar", ARABIC, 1), ("code", CODE, 0)]
)
def test_users_of_any_script_and_of_code_get_labels_that_are_voted_on(
    tmp_path: Path, chat, kind: str, script: str, pairs: list[tuple[str, str]], foreign: int
) -> None:
    """A new item comes with its label, one with another than all votes, and one is English."""
    one, other = LABELS[kind][script]
    texts = [text for text, _ in pairs]
    task = custom_task("own", kind, "Sort: {input}", (one, other))
    own = [Item(str(n), text, label) for n, (text, label) in enumerate(
        zip(texts[:3], (one, other, one), strict=True))]  # fmt: skip
    profile = profile_of(tmp_path / "p", own, task)
    new, english = texts[3], "A fox ate my lunch again."

    def say(message: str, number: int) -> str:
        if "What is this person's output" in message:
            return one
        return "\n".join([line(new, one), line(MISJUDGED[script], other), line(english, one)])

    chat.say = say
    made = config(tries=2, label_shares="teacher")
    dataset = augment(profile, open_teacher(chat.spec, 1), tmp_path / "d", made)
    rows = read_rows(dataset.file("train.jsonl"))
    assert [(r["input"], r["output"]) for r in rows if r["origin"] == "real"] == [
        (item.input, item.output) for item in own[:2]
    ]
    synthetic = [(r["input"], r["output"]) for r in rows if r["origin"] == "synthetic"]
    assert synthetic == [(new, one), (english, one)][: 2 - foreign]
    measured = dataset.manifest.measured
    assert bool(measured["rejected"]["language"]) == bool(foreign)
    assert measured["rejected"]["inconsistent"] == 1
    assert measured["votes"]["unread"] == 0


def test_an_item_of_fifty_thousand_characters_trains_but_is_not_shown(tmp_path, chat) -> None:
    long = Item("long", "The museum is open. " * 2500, "museum opens again")
    profile = profile_of(tmp_path / "p", [long, *ITEMS])
    chat.say = lambda message, number: NEWS[number]
    dataset = augment(profile, open_teacher(chat.spec, 1), tmp_path / "d", config(per_real=0.5))
    assert dataset.manifest.measured["not_shown"] == 1
    assert not any("museum is open" in message for message in chat.asked)
    assert "long" in [r["source"].get("item") for r in read_rows(dataset.file("train.jsonl"))]
    only = profile_of(tmp_path / "q", [long, Item("l2", long.input + "!", "museum opens again")])
    with pytest.raises(InputError, match="shortest item has 50,018 characters"):
        augment(only, open_teacher(chat.spec, 1), tmp_path / "e", config())


def test_labels_that_are_all_equal_or_alone_need_no_votes_to_agree(tmp_path: Path, chat) -> None:
    chat.say = lambda message, number: sorter(message)
    same = [Item(item.id, item.input, "ham") for item in MAILS]
    dataset = augment(profile_of(tmp_path / "p", same, HAM), open_teacher(chat.spec, 1),
                      tmp_path / "d", config(per_real=0.5, tries=2))  # fmt: skip
    rows = read_rows(dataset.file("train.jsonl"))
    assert {row["output"] for row in rows} == {"ham"}, "what this user never says is not wanted"
    one = custom_task("mails", "classification", "Sort: {input}", ("ham",))
    chat.bodies.clear()
    dataset = augment(profile_of(tmp_path / "q", same, one), open_teacher(chat.spec, 1),
                      tmp_path / "e", config(per_real=0.5, tries=2, strategies="new"))  # fmt: skip
    assert dataset.manifest.measured["rejected"]["label"] > 0
    assert not any("What is this person's output" in message for message in chat.asked)


@pytest.mark.parametrize("strategies", ["auto", "label"])
def test_labels_of_few_items_may_come_as_the_teacher_gives_them(
    tmp_path: Path, chat, strategies: str
) -> None:
    """Who has said only one label so far would say the others, too; the votes still decide."""
    chat.say = lambda message, number: sorter(message)
    same = [Item(item.id, item.input, "ham") for item in MAILS]
    profile = profile_of(tmp_path / "p", same, HAM)
    free = config(per_real=1.0, label_shares="teacher", strategies=strategies)
    dataset = augment(profile, open_teacher(chat.spec, 1), tmp_path / "d", free)
    rows = read_rows(dataset.file("train.jsonl"))
    made = {row["input"]: row["output"] for row in rows if row["origin"] == "synthetic"}
    passed = {text: label for text, label in WRITTEN if "singles" not in text}
    labels = {"ham"} if strategies == "label" else {"ham", "spam"}
    assert made == {text: label for text, label in passed.items() if label in labels}
    assert dataset.manifest.measured["wanted"] == 5


def test_items_without_a_date_or_with_the_same_have_a_fixed_order(tmp_path: Path) -> None:
    dates = ["2024-05-01", "", "2024-05-01", "2023-01-01", ""]
    items = [Item(str(n), f"text {n}", "x", date) for n, date in enumerate(dates)]
    profile = profile_of(tmp_path / "p", items)
    assert [item.id for item in read_profile(profile).items] == ["1", "4", "3", "0", "2"]
    assert profile.manifest.measured["undated"] == 2


def test_synthetic_items_fill_up_to_what_is_enough(tmp_path: Path, chat) -> None:
    bounds = AugmentConfig(fill_to=10, per_real=3)
    assert [bounds.wanted(n) for n in (2, 3, 8, 10, 50)] == [6, 7, 2, 0, 0]
    assert AugmentConfig(per_real=3).wanted(50) == 150, "no bound"
    chat.say = lambda message, number: "\n".join(NEWS)
    profile = profile_of(tmp_path / "p", ITEMS)
    enough = config(per_real=3.0, fill_to=3)
    made = augment(profile, open_teacher(chat.spec, 1), tmp_path / "d", enough).manifest.measured
    assert (made["real"], made["wanted"], made["synthetic"], made["warning"]) == (3, 0, 0, "")
    assert chat.bodies == []
    assert list(dry_run(profile, open_teacher(chat.spec, 1), enough)) == []
    filled = augment(
        profile, open_teacher(chat.spec, 1), tmp_path / "e", config(per_real=3.0, fill_to=5)
    )
    assert filled.manifest.measured["synthetic"] == 2


def test_real_items_are_repeated_where_they_would_be_too_small_a_part(tmp_path: Path, chat) -> None:
    # of 3 and 9 a quarter is real, of 3 and 10 less: twice 3 are 6 of 16
    shares = AugmentConfig(per_real=4)
    assert [shares.repeats(3, synthetic) for synthetic in (0, 9, 10, 18, 19)] == [1, 1, 2, 2, 3]
    assert AugmentConfig(real_share=0).repeats(3, 100) == 1
    chat.say = lambda message, number: "\n".join(NEWS)
    profile = profile_of(tmp_path / "p", ITEMS)
    half = config(per_real=2.0, real_share=0.5)
    made = augment(profile, open_teacher(chat.spec, 1), tmp_path / "d", half)
    rows = read_rows(made.file("train.jsonl"))
    counts = Counter(row["source"].get("item", "new") for row in rows)
    assert counts == {"0": 2, "1": 2, "2": 2, "new": 6}
    assert {name: made.manifest.measured[name] for name in ("real", "repeats", "synthetic")} == {
        "real": 3, "repeats": 2, "synthetic": 6
    }  # fmt: skip


def test_settings_out_of_range_are_all_named_at_once() -> None:
    with pytest.raises(InputError, match=r"per_real is -1.*top_p is 2.*scrub is maybe"):
        AugmentConfig(per_real=-1, top_p=2, scrub="maybe")
    with pytest.raises(InputError, match="real_share is 1, expected 0 or more, below 1"):
        AugmentConfig(real_share=1)
    with pytest.raises(InputError, match="strategies: 'old'"):
        AugmentConfig(strategies="old")


def test_third_party_teachers_need_consent_and_while_it_lasts(
    tmp_path: Path, small_profile: Artifact
) -> None:
    teacher = open_teacher("openai:https://api.example.com/v1#m", threads=1)
    with pytest.raises(InputError, match="consent does not allow a third-party teacher"):
        augment(small_profile, teacher, tmp_path / "d", config())
    with pytest.raises(InputError, match="consent does not allow a third-party teacher"):
        augment(small_profile, open_teacher("pocket", 1), tmp_path / "d", config(), judge=teacher)
    assert open_artifact(small_profile.path).config["consent"]["third_party"] is False
    agreed = Consent(retention_days=30, third_party=True)
    profile = profile_of(tmp_path / "agreed", ITEMS, consent=agreed)
    manifest = json.loads((profile.path / "manifest.json").read_text())
    write_json(profile.path / "manifest.json", {**manifest, "created": "2024-01-01T00:00:00+00:00"})
    with pytest.raises(InputError, match="for 30 days from 2024-01-01, is over"):
        augment(open_artifact(profile.path), teacher, tmp_path / "d", config())


def test_the_command_shows_what_it_would_send_and_what_was_removed(
    tmp_path: Path, chat, small_profile: Artifact
) -> None:
    chat.say = lambda message, number: f"{NEWS[0]}\n{GERMAN}\nsorry"
    arguments = [
        "--profile", str(small_profile.path), "--out", str(tmp_path / "d"), "--teacher", chat.spec,
        "--scrub", "off", "--tries", "1",
    ]  # fmt: skip
    run = CliRunner()
    shown = run.invoke(augment_command, [*arguments, "--dry-run"], catch_exceptions=False)
    assert chat.bodies == []
    assert not (tmp_path / "d").exists()
    explained = run.invoke(augment_command, [*arguments, "--explain"], catch_exceptions=False)
    sent = [json.loads(text) for text in shown.stdout.splitlines()]
    assert [body["messages"] for body in chat.bodies] == sent
    assert "unparsed\n    {" in explained.stdout
    assert "language\n    Die Bäcker wollen" in explained.stdout
    as_json = run.invoke(augment_command, [*arguments, "--explain", "--json"])
    assert json.loads(as_json.stdout)["removed"]["language"][0]["pair"][1] == "Brot bis Mitternacht"


def test_a_dry_run_shows_how_opinions_would_be_asked_for(tmp_path: Path, chat) -> None:
    profile = profile_of(tmp_path / "p", MAILS, HAM)
    teacher = open_teacher(chat.spec, 1, Calls(concurrency=1, retries=0))
    first, vote, mark = dry_run(profile, teacher, config(tries=2), judge=teacher)
    assert chat.bodies == []
    chat.say = lambda message, number: "5" if "how likely is it" in message else sorter(message)
    augment(profile, teacher, tmp_path / "d", config(tries=2), judge=teacher)
    assert chat.bodies[0]["messages"] == first
    text, output = WRITTEN[0]
    newest = MAILS[4]  # of those that train
    for example, words, written, shown in (
        (vote, "What is this person's output", {"input": text}, {"input": newest.input}),
        (mark, "how likely is it", {"input": text, "output": output},
         {"input": newest.input, "output": newest.output}),
    ):  # fmt: skip
        assert (example["to"], example["as_if_written"]) == (chat.spec, newest.id)
        sent = next(b["messages"] for b in chat.bodies if words in b["messages"][-1]["content"])
        content = sent[-1]["content"].replace(json.dumps(written), json.dumps(shown))
        assert example["sent"] == [*sent[:-1], {**sent[-1], "content": content}]
    assert list(dry_run(profile, teacher, config(votes=0))) == [first]
    assert list(dry_run(profile, teacher, config(per_real=0), judge=teacher)) == []
