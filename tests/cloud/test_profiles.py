"""Profiles from LaMP's file shapes (all tasks, both splits) and from JSONL, and every bad input."""

import json
from pathlib import Path
from typing import Any

import pytest

from cloud.cli import import_profile
from cloud.profiles import MAX_ITEM_CHARS, read_profile
from cloud.tasks import MOVIE_TAGS, NEWS_CATEGORIES, TASKS, custom_task, task_from_config
from protos.artifacts import open_artifact
from protos.errors import InputError

GIVEN: dict[str, Any] = {
    "task": None, "user": None, "outputs": None, "kind": None, "prompt": "{input}", "labels": "",
    "language": "und", "purpose": "personalization", "retention_days": 365, "third_party": False,
}  # fmt: skip

# One sample of each task, written by hand after LaMP's description of its files:
# (profile item, question, gold, the training pair that the item becomes, the question's own text)
SAMPLES = {
    "LaMP_1": (
        {"title": "On Sparse Nets", "abstract": "We prune."},
        "For an author who has written the paper with the title \"T\", which reference is related? "
        "Just answer with [1] or [2] without explanation. [1]: \"a\" [2]: \"b\"",
        "[1]",
        ("We prune.", "On Sparse Nets"),
        "\"T\", which reference is related? "
        "Just answer with [1] or [2] without explanation. [1]: \"a\" [2]: \"b\"",
    ),
    "LaMP_2": (
        {"description": "A robot falls in love.", "tag": "sci-fi"},
        "Which tag does this movie relate to among the following tags? Just answer with the tag "
        f"name without further explanation. tags: [{', '.join(MOVIE_TAGS)}] description: Ships.",
        "action",
        ("A robot falls in love.", "sci-fi"),
        "Ships.",
    ),
    "LaMP_2N": (
        {"text": "They won.", "title": "Win", "category": "sports"},
        "Which category does this article relate to among the following categories? Just answer "
        "with the category name without further explanation. categories: "
        f"[{', '.join(NEWS_CATEGORIES)}] article: They lost.",
        "sports",
        ("They won.", "sports"),
        "They lost.",
    ),
    "LaMP_3": (
        {"text": "Good soup.", "score": "4"},
        "What is the score of the following review on a scale of 1 to 5? just answer with 1, 2, 3, "
        "4, or 5 without further explanation. review: Cold soup.",
        "2",
        ("Good soup.", "4"),
        "Cold soup.",
    ),
    "LaMP_4": (
        {"text": "The mayor resigned.", "title": "Mayor Out"},
        "Generate a headline for the following article: A bridge fell.",
        "Bridge Down",
        ("The mayor resigned.", "Mayor Out"),
        "A bridge fell.",
    ),
    "LaMP_5": (
        {"title": "On Sparse Nets", "abstract": "We prune."},
        "Generate a title for the following abstract of a paper: We grow.",
        "On Dense Nets",
        ("We prune.", "On Sparse Nets"),
        "We grow.",
    ),
    "LaMP_6": (
        {"text": "See you at ten.", "title": "Meeting"},
        "Generate a subject for the following email: Bring cake.",
        "Cake",
        ("See you at ten.", "Meeting"),
        "Bring cake.",
    ),
    "LaMP_7": (
        {"text": "one two three four five six seven eight nine ten"},
        "Paraphrase the following tweet without any explanation before or after it: hi there",
        "hello there",
        ("one two", "one two three four five six seven eight nine ten"),
        "hi there",
    ),
}  # fmt: skip


def lamp_files(folder: Path, task: str, samples: list[dict[str, Any]], gold: str) -> Path:
    questions = folder / "dev_questions.json"
    questions.write_text(json.dumps(samples, indent=1), encoding="utf-8")
    golds = [{"id": sample["id"], "output": gold} for sample in samples if "id" in sample]
    (folder / "dev_outputs.json").write_text(json.dumps({"task": task, "golds": golds}))
    return questions


def sample(task: str, number: int, ids: list[str], user: str | None) -> dict[str, Any]:
    item, question, *_ = SAMPLES[task]
    dates = {"date": "2020-01-02"} if user else {}
    profile = [{"id": i, **item, **dates} for i in ids]
    return {"id": str(number), "input": question, "profile": profile} | (
        {"user_id": user} if user else {}
    )


@pytest.mark.parametrize("task", SAMPLES)
@pytest.mark.parametrize("split", ["user-based", "time-based"])
def test_every_lamp_task_is_read_in_both_splits(tmp_path: Path, task: str, split: str) -> None:
    user = "u7" if split == "time-based" else None
    samples = [sample(task, 10, ["1", "2"], user)]
    if user:
        samples += [sample(task, 11, ["1", "2", "3"], user), sample(task, 12, ["9"], "u8")]
    else:
        samples += [sample(task, 12, ["9"], None)]
    gold, pair, asked = SAMPLES[task][2:]
    questions = lamp_files(tmp_path, task, samples, gold)
    given = {**GIVEN, "user": user or "10", "outputs": tmp_path / "dev_outputs.json"}
    profile = read_profile(import_profile(questions, tmp_path / "profile", **given))
    assert profile.task == TASKS[task]
    assert [(item.id, item.input, item.output) for item in profile.items] == [
        ("1", *pair), ("2", *pair),
    ]  # fmt: skip
    assert {item.date for item in profile.items} == ({"2020-01-02"} if user else {""})
    assert [q.id for q in profile.questions] == (["10", "11"] if user else ["10"])
    assert {(q.input, q.output) for q in profile.questions} == {(asked, gold)}


def test_an_item_written_after_the_first_question_is_not_learned_from(tmp_path: Path) -> None:
    early = sample("LaMP_4", 1, ["a", "b"], "u")
    late = sample("LaMP_4", 2, ["a", "b", "the-first-questions-own-answer"], "u")
    questions = lamp_files(tmp_path, "LaMP_4", [late, early], "x")
    given = {**GIVEN, "task": "LaMP_4"}
    profile = read_profile(import_profile(questions, tmp_path / "p", **given))
    assert [item.id for item in profile.items] == ["a", "b"]


def test_the_news_variant_of_lamp_2_is_read_under_the_name_its_files_have(tmp_path: Path) -> None:
    item, question, gold, pair, asked = SAMPLES["LaMP_2N"]
    first, last = NEWS_CATEGORIES[0], NEWS_CATEGORIES[-1]
    question = question.replace(first, "#").replace(last, first).replace("#", last)
    one = {"id": "1", "input": question, "profile": [{"id": i, **item} for i in "ab"]}
    questions = lamp_files(tmp_path, "LaMP_2", [one], gold)
    given = {**GIVEN, "outputs": tmp_path / "dev_outputs.json"}
    with pytest.raises(InputError, match="import it with --task LaMP_2N"):
        import_profile(questions, tmp_path / "p", **given)
    profile = read_profile(
        import_profile(questions, tmp_path / "p", **{**given, "task": "LaMP_2N"})
    )
    assert profile.task == TASKS["LaMP_2N"]
    assert (profile.items[0].input, profile.items[0].output) == pair
    (held_out,) = profile.questions
    # its labels stand in another order than ours, and still only the article is the input
    assert (held_out.query, held_out.input, held_out.output) == (question, asked, gold)


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda s: s.pop("profile"), r"sample 0, field 'profile': found nothing"),
        (lambda s: s.pop("id"), r"line 2, sample 0, field 'id'"),
        (lambda s: s.update(input=3), r"sample 0, field 'input': found int"),
        (lambda s: s["profile"][1].pop("title"), r"profile item 1, field 'title': .*missing"),
        (lambda s: s["profile"][0].update(text="  "), r"profile item 0, field 'text': .*spaces"),
        (lambda s: s["profile"][0].update(text="\ud800"), r"'text': not Unicode"),
        (lambda s: s["profile"][0].update(text=["x"]), r"'text': expected text, found list"),
        (lambda s: s["profile"][0].update(date="June"), r"'date': expected YYYY-MM-DD"),
        (lambda s: s["profile"][0].update(text="x" * (MAX_ITEM_CHARS + 1)), r"100,001 characters"),
        (lambda s: s["profile"].pop(), r"1 items for LaMP_4, expected at least 2"),
        (lambda s: s["profile"].clear(), r"0 items for LaMP_4"),
        (lambda s: s["profile"].insert(0, "x"), r"profile item 0: expected an object"),
        (lambda s: s["profile"][0].pop("id"), r"profile item 0, field 'id': missing"),
    ],
)
def test_bad_lamp_samples_are_named_by_file_line_and_field(tmp_path, break_it, says) -> None:
    broken = sample("LaMP_4", 1, ["a", "b"], "u")
    break_it(broken)
    questions = lamp_files(tmp_path, "LaMP_4", [broken], "x")
    with pytest.raises(InputError, match=says) as caught:
        import_profile(questions, tmp_path / "p", **{**GIVEN, "task": "LaMP_4"})
    assert str(questions) in str(caught.value) or "items for" in str(caught.value)
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", r"questions.json, line 1, column 1: not JSON"),
        (b"[\n{]", r"line 2, column 2: not JSON"),
        (b"{}", "expected a list of samples"),
        (b"[]", "no samples"),
        (b"[3]", "sample 0: expected an object, found int"),
        (b"\xff\xfe[]", "not UTF-8 at byte 0"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_bad_lamp_files_are_named(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "questions.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=says):
        import_profile(path, tmp_path / "p", **{**GIVEN, "task": "LaMP_4"})


def test_what_is_missing_or_unknown_is_said(tmp_path: Path) -> None:
    samples = [sample("LaMP_4", n, ["a", "b"], f"u{n}") for n in (1, 2)]
    questions = lamp_files(tmp_path, "LaMP_4", samples, "x")
    outputs = tmp_path / "dev_outputs.json"
    for given, says in [
        ({}, "Give --task or --outputs"),
        ({"task": "LaMP_9"}, "unknown task 'LaMP_9'"),
        ({"outputs": outputs}, "2 users, choose one with --user"),
        ({"outputs": outputs, "user": "u3"}, "no user 'u3' among 2"),
        ({"outputs": outputs, "user": "u1", "task": "LaMP_5"}, "outputs of LaMP_4, not LaMP_5"),
        ({"outputs": tmp_path / "none.json"}, "no such file"),
    ]:
        with pytest.raises(InputError, match=says):
            import_profile(questions, tmp_path / "p", **{**GIVEN, **given})


def jsonl(folder: Path, *lines: str | bytes) -> Path:
    path = folder / "items.jsonl"
    path.write_bytes(b"\n".join(x if isinstance(x, bytes) else x.encode() for x in lines))
    return path


GOOD = '{"input": "你好", "output": "greeting", "date": "2024-05-01"}'


def test_jsonl_items_come_in_time_order_with_blank_lines_and_a_bom_allowed(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path, b"\xef\xbb\xbf" + GOOD.encode(), "",
        '{"input": "b", "output": 3, "date": "2023-01-01T10:00:00Z", "id": "x"}',
    )  # fmt: skip
    made = import_profile(path, tmp_path / "p", **{**GIVEN, "prompt": "Name this: {input}"})
    profile = read_profile(made)
    assert [(i.id, i.input, i.output, i.date) for i in profile.items] == [
        ("x", "b", "3", "2023-01-01"), ("1", "你好", "greeting", "2024-05-01"),
    ]  # fmt: skip
    assert profile.task.query("x") == "Name this: x"
    assert profile.user == "items"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", r"line 2, column 2: not JSON"),
        ("[1]", r"line 2: expected an object, found list"),
        ('{"output": "x"}', r"line 2, field 'input': expected text, found missing"),
        ('{"input": "x"}', r"line 2, field 'output'"),
        ('{"input": "x", "output": ""}', r"field 'output': .*nothing but spaces"),
        ('{"input": "x", "output": "y", "date": "2024-13-01"}', r"field 'date'"),
        ('{"input": "x", "output": "y", "score": 1}', r"field 'score': unknown field"),
        (b'{"input": "\xff", "output": "y"}', r"line 2: not UTF-8 at byte 11"),
        ('{"input": "' + "x" * 10_000_000 + '", "output": "y"}', r"10,000,000 characters"),
    ],
)
def test_bad_jsonl_is_named_by_file_line_and_field(tmp_path: Path, line, says: str) -> None:
    path = jsonl(tmp_path, GOOD, line)
    with pytest.raises(InputError, match=says) as caught:
        import_profile(path, tmp_path / "p", **GIVEN)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    ("lines", "says"),
    [([], "empty"), ([GOOD], "1 items"), ([GOOD, GOOD.replace("date", "dote")], "field 'dote'")],
)
def test_too_few_items_are_refused(tmp_path: Path, lines: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        import_profile(jsonl(tmp_path, *lines), tmp_path / "p", **GIVEN)


def test_a_label_that_the_task_does_not_have_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path, '{"input": "a", "output": "ham"}', '{"input": "b", "output": "spam"}')
    given = {**GIVEN, "kind": "classification", "labels": "ham, eggs"}
    with pytest.raises(InputError, match=r"line 2, field 'output': 'spam' is no label"):
        import_profile(path, tmp_path / "p", **given)
    made = import_profile(path, tmp_path / "p", **{**given, "labels": "ham,spam"})
    assert read_profile(made).task.labels == ("ham", "spam")


def test_importing_the_same_again_changes_nothing(tmp_path: Path) -> None:
    path = jsonl(tmp_path, GOOD, GOOD.replace("2024", "2023"))
    first = import_profile(path, tmp_path / "p", **GIVEN)
    assert import_profile(path, tmp_path / "p", **GIVEN).manifest == first.manifest
    jsonl(tmp_path, GOOD, GOOD.replace("2024", "2022"))
    second = import_profile(path, tmp_path / "p", **GIVEN)
    assert second.id != first.id
    assert open_artifact(tmp_path / "p").id == second.id


def test_custom_tasks_are_checked_as_a_whole() -> None:
    with pytest.raises(InputError, match=r"kind is 'poem'.*does not contain \{input\}"):
        custom_task("x", "poem", "no place", ())
    with pytest.raises(InputError, match="needs labels"):
        custom_task("x", "classification", "{input}", ())
    with pytest.raises(InputError, match="must be numbers"):
        custom_task("x", "rating", "{input}", ("good",))
    for task in (*TASKS.values(), custom_task("x", "rating", "{input}", ())):
        assert task_from_config(task.to_config()) == task
