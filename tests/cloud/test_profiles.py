"""Profiles from LaMP's file shapes (all tasks, both splits) and from JSONL, and every bad input."""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cloud.augment import consent_ended
from cloud.cli import import_profile, profile
from cloud.dates import is_before, read_date
from cloud.profiles import MAX_ITEM_CHARS, Profile, read_profile
from cloud.tasks import MOVIE_TAGS, NEWS_CATEGORIES, TASKS, custom_task, task_from_config
from protos.artifacts import open_artifact, write_json
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


def imported(folder: Path, samples: list[dict[str, Any]], gold: str = "x") -> Profile:
    questions = lamp_files(folder, "LaMP_4", samples, gold)
    given = {**GIVEN, "outputs": folder / "dev_outputs.json", "user": "u"}
    return read_profile(import_profile(questions, folder / "p", **given))


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda p: p[1].pop("title"), r"profile item 1 \(id 'b'\), field 'title': .*missing"),
        (lambda p: p[1].update(text="  "), r"profile item 1 \(id 'b'\), field 'text': .*spaces"),
        (lambda p: p[1].update(text="\ud800"), r"'text': not Unicode"),
        (lambda p: p[1].update(text=["x"]), r"'text': expected text, found list"),
        (
            lambda p: p[1].update(date="June"),
            r"'date': expected YYYY-MM-DD or a time, found 'June'",
        ),
        (lambda p: p[1].update(text="x" * (MAX_ITEM_CHARS + 1)), r"100,001 characters"),
        (lambda p: p.__setitem__(1, "x"), r"profile item 1, expected an object, found str"),
        (lambda p: p[1].pop("id"), r"profile item 1, field 'id': found nothing"),
        (lambda p: p[1].update(id=None), r"profile item 1, field 'id': found NoneType"),
    ],
)
def test_an_odd_item_is_left_out_alone_and_named(tmp_path: Path, break_it, says: str) -> None:
    odd = sample("LaMP_4", 1, ["a", "b", "c"], "u")
    break_it(odd["profile"])
    found = imported(tmp_path, [odd])
    assert [item.id for item in found.items] == ["a", "c"]
    assert [question.id for question in found.questions] == ["1"]
    (said,) = found.left_out
    assert said.startswith(f"{tmp_path / 'dev_questions.json'}, line 2, sample 0, user 'u', ")
    assert re.search(says, said)


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda s: s.update(input=3), r"sample 1, user 'u', field 'input': found int"),
        (lambda s: s.pop("input"), r"sample 1, user 'u', field 'input': found nothing"),
        (lambda s: s.update(input=" "), r"sample 1, user 'u', field 'input': .*spaces"),
        (lambda s: s.pop("id"), r"sample 1, user 'u', field 'id': found nothing"),
        (lambda s: s.pop("profile"), r"sample 1, user 'u', field 'profile': found nothing"),
        (lambda s: s.update(profile={}), r"sample 1, user 'u', field 'profile': found dict"),
        (lambda s: (s.pop("id"), s.pop("user_id")), r"sample 1, field 'id': found nothing"),
        (lambda s: (s.clear(), s.update(profile=[])), r"sample 1, field 'id': found nothing"),
    ],
)
def test_an_odd_question_is_left_out_alone_and_named(tmp_path: Path, break_it, says: str) -> None:
    samples = [sample("LaMP_4", number, ["a", "b"], "u") for number in range(3)]
    break_it(samples[1])
    found = imported(tmp_path, samples)
    assert [item.id for item in found.items] == ["a", "b"]
    assert [question.id for question in found.questions] == ["0", "2"]
    (said,) = found.left_out
    assert re.search(says, said)


def test_an_odd_question_still_says_which_items_are_older(tmp_path: Path) -> None:
    early = {**sample("LaMP_4", 0, ["a", "b"], "u"), "input": None}
    late = sample("LaMP_4", 1, ["a", "b", "the-odd-ones-answer"], "u")
    assert [item.id for item in imported(tmp_path, [late, early]).items] == ["a", "b"]


@pytest.mark.parametrize(
    ("task", "gold", "says"),
    [
        ("LaMP_3", "good", "'good' is no label of LaMP_3"),
        ("LaMP_1", "[3]", r"'[3]' is no label of LaMP_1 (known: [1], [2])"),
        ("LaMP_4", ["x"], "expected text, found list"),
        ("LaMP_4", "", "nothing but spaces"),
    ],
)
def test_a_question_whose_answer_cannot_be_scored_is_left_out(
    tmp_path: Path, task: str, gold: Any, says: str
) -> None:
    questions = lamp_files(tmp_path, task, [sample(task, 1, ["a", "b"], "u")], gold)
    given = {**GIVEN, "outputs": tmp_path / "dev_outputs.json"}
    found = read_profile(import_profile(questions, tmp_path / "p", **given))
    assert (len(found.items), found.questions) == (2, [])
    (said,) = found.left_out
    assert "user 'u', field 'output': " in said
    assert says in said


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda s: s["profile"].pop(), r"1 items for LaMP_4, expected at least 2"),
        (lambda s: s["profile"].clear(), r"0 items for LaMP_4"),
        (lambda s: s["profile"][0].pop("text"), r"1 items .*; left out 1, first: .*profile item 0"),
        (lambda s: s.pop("profile"), r"0 items .*; left out 1, first: .*field 'profile'"),
        (lambda s: (s.pop("id"), s.pop("user_id")), r"sample 0, field 'id': found nothing; no"),
    ],
)
def test_where_too_little_is_left_the_error_names_the_first_that_is_odd(
    tmp_path: Path, break_it, says: str
) -> None:
    broken = sample("LaMP_4", 1, ["a", "b"], "u")
    break_it(broken)
    questions = lamp_files(tmp_path, "LaMP_4", [broken], "x")
    with pytest.raises(InputError, match=says):
        import_profile(questions, tmp_path / "p", **{**GIVEN, "task": "LaMP_4"})
    assert not (tmp_path / "p").exists()


def test_what_is_left_out_is_said_counted_and_kept_in_the_manifest(tmp_path: Path) -> None:
    ids = ["a", "b", *(str(n) for n in range(7))]
    odd = sample("LaMP_4", 1, ids, "u")
    for row in odd["profile"][2:]:
        row["title"] = None
    questions = lamp_files(tmp_path, "LaMP_4", [odd], "x")
    arguments = ["import", str(questions), "--task", "LaMP_4", "--out", str(tmp_path / "p")]
    done = CliRunner().invoke(profile, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert done.stderr.count("Left out: ") == 6
    assert f"Left out: 2 more, all of them in {tmp_path / 'p' / 'manifest.json'}" in done.stderr
    made = open_artifact(tmp_path / "p")
    named = [re.findall(r"\(id '(\d)'\)", each)[0] for each in made.manifest.measured["left_out"]]
    assert named == [str(n) for n in range(7)]
    # the same items, but nothing odd any more: nothing that was made of them is out of date
    sound = lamp_files(tmp_path, "LaMP_4", [sample("LaMP_4", 1, ["a", "b"], "u")], "x")
    again = import_profile(sound, tmp_path / "p", **{**GIVEN, "task": "LaMP_4"})
    assert (again.id, again.manifest.measured["left_out"]) == (made.id, [])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", r"questions.json, line 1, column 1: not JSON"),
        (b"[\n{]", r"line 2, column 2: not JSON"),
        (b"{}", "expected a list of samples"),
        (b"[]", "no samples"),
        (b"[3]", "line 1, sample 0, expected an object, found int; no other names a user"),
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
        ("x", "b", "3", "2023-01-01T10:00:00"), ("1", "你好", "greeting", "2024-05-01"),
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


def test_importing_again_another_day_renews_the_consent_and_changes_nothing_else(tmp_path) -> None:
    path = jsonl(tmp_path, GOOD, GOOD.replace("2024", "2023"))
    given = {**GIVEN, "third_party": True, "retention_days": 30}
    first = import_profile(path, tmp_path / "p", **given)
    for day, is_over in (("2024-01-01", True), (days_ago(10), False), (days_ago(31), True)):
        manifest = json.loads((first.path / "manifest.json").read_text())
        write_json(first.path / "manifest.json", {**manifest, "created": f"{day}T00:00:00+00:00"})
        assert consent_ended(open_artifact(tmp_path / "p")) == is_over
        again = import_profile(path, tmp_path / "p", **given)
        assert not consent_ended(again)
        assert again.manifest.created.startswith(days_ago(0))
        assert again.id == first.id, "what was made of it is not made again"


def days_ago(days: int) -> str:
    return (datetime.now(UTC).date() - timedelta(days=days)).isoformat()


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (None, ""),
        ("", ""),
        (" ", ""),
        ("2020-01-31", "2020-01-31"),
        (" 2020-01-31 ", "2020-01-31"),
        ("2020-01-31 10:22:00", "2020-01-31T10:22:00"),
        ("2020-01-31T10:22:00.5Z", "2020-01-31T10:22:00"),
        ("2020-01-31 10:22:00 UTC", "2020-01-31T10:22:00"),
        ("2020-01-31 23:22:00-05:00", "2020-02-01T04:22:00"),
        ("2020-02-01T00:30+02:00", "2020-01-31T22:30:00"),
        ("Mon, 06 Apr 2009 22:19:45 -0700", "2009-04-07T05:19:45"),
        ("Mon Apr 06 22:19:45 PDT 2009", "2009-04-07T05:19:45"),
        ("2020", "2020-01-01"),
        (2020, "2020-01-01"),
        (2020.0, "2020-01-01"),
        ("2020-05", "2020-05-01"),
        (20200131, "2020-01-31"),
        ("20200131", "2020-01-31"),
        (1580466120, "2020-01-31T10:22:00"),  # 18,292 days and 10:22 hours
        (1580466120.25, "2020-01-31T10:22:00"),
        ("1580466120000", "2020-01-31T10:22:00"),
    ],
)
def test_dates_of_every_form_are_read_as_days_or_as_seconds_of_utc(value: Any, wanted: str) -> None:
    assert read_date(value) == wanted


@pytest.mark.parametrize(
    "value",
    ["June", "2020-13-01", "2020-02-30", "2020-01-31x", "2020-13", 7, -1, 1e20, "99999999", True,
     ["2020"], "0001-01-01T00:00:00+05:00", 2020.5, "0000", "Mon Apr 99 22:19:45 PDT 2009",
     "Mon, 06 Apr 99999999999999999999 22:19:45 +0000",
     "Mon, 06 Apr 2009 99999999999999999999:19:45 +0000"],
)  # fmt: skip
def test_what_is_no_date_is_not_guessed(value: Any) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        read_date(value)


def test_only_a_date_that_is_surely_earlier_comes_before() -> None:
    assert is_before("2020-01-30", "2020-01-31T00:00:01")
    assert is_before("2020-01-31T09:00:00", "2020-01-31T10:00:00")
    assert not is_before("2020-01-31", "2020-01-31T10:00:00")
    assert not is_before("2020-01-31T09:00:00", "2020-01-31")
    assert not is_before("2020-01-31", "2020-01-31")


def test_items_go_by_their_dates_whatever_form_these_have(tmp_path: Path) -> None:
    dates = [1580466121, "2020-01-31 10:22:00", "2020", "", "2020-01-31",
             "2020-01-31T12:21:59+02:00", None, "2019-12-31 23:59"]  # fmt: skip
    one = sample("LaMP_4", 1, list("abcdefgh"), "u")
    for row, date in zip(one["profile"], dates, strict=True):
        row["date"] = date
    found = imported(tmp_path, [one])
    # without a date; the year and the day alone are the first moment of these
    assert "".join(item.id for item in found.items) == "dghcefba"
    assert (found.left_out, open_artifact(tmp_path / "p").manifest.measured["undated"]) == ([], 2)


def asked(folder: Path, *lines: str) -> Path:
    path = folder / "questions.jsonl"
    path.write_text("\n".join(lines))
    return path


ITEM = '{"input": "mail %s", "output": "ham", "date": "2024-05-%02d"}'
SORTED = {**GIVEN, "task": "mails", "kind": "classification", "labels": "ham,spam",
          "prompt": "Sort: {input}", "user": "ann"}  # fmt: skip


def test_questions_of_a_task_of_ones_own_are_held_out_and_no_later_item_is_learned_from(
    tmp_path: Path,
) -> None:
    path = jsonl(tmp_path, *(ITEM % (day, day) for day in (1, 2, 3, 4)),
                 '{"input": "undated", "output": "ham"}')  # fmt: skip
    questions = asked(
        tmp_path,
        '{"input": "new offer", "output": "spam", "date": "2024-05-04"}',
        '{"input": "hello", "id": "q7", "date": "2024-05-03 12:00"}',
        '{"input": "bye", "output": null}',
    )
    made = import_profile(path, tmp_path / "p", **SORTED, questions=questions)
    found = read_profile(made)
    assert [item.input for item in found.items] == ["undated", "mail 1", "mail 2"]
    assert [(q.id, q.query, q.input, q.output) for q in found.questions] == [
        ("ann-1", "Sort: new offer", "new offer", "spam"), ("q7", "Sort: hello", "hello", None),
        ("ann-3", "Sort: bye", "bye", None),
    ]  # fmt: skip
    assert found.left_out == [
        f"{path}, user 'ann', item '{n}' of 2024-05-0{n}: not before the first question, of "
        "2024-05-03T12:00:00" for n in (3, 4)
    ]  # fmt: skip
    undated = asked(tmp_path, '{"input": "new offer"}')
    every = read_profile(import_profile(path, tmp_path / "p", **SORTED, questions=undated))
    assert (len(every.items), every.left_out) == (5, [])


def test_questions_in_jsonl_of_a_lamp_task_are_asked_as_lamp_asks_them(tmp_path: Path) -> None:
    path = jsonl(tmp_path, '{"input": "a b", "output": "a b c"}', '{"input": "d", "output": "d e"}')
    questions = asked(tmp_path, '{"input": "hi there", "output": "hello there"}')
    given = {**GIVEN, "task": "LaMP_7", "questions": questions}
    (found,) = read_profile(import_profile(path, tmp_path / "p", **given)).questions
    assert (found.query, found.input) == (SAMPLES["LaMP_7"][1], "hi there")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", r"line 2, column 2: not JSON"),
        ('{"output": "ham"}', r"line 2, field 'input': expected text, found missing"),
        ('{"input": " "}', r"line 2, field 'input': .*nothing but spaces"),
        (
            '{"input": "x", "output": "eggs"}',
            r"line 2, field 'output': 'eggs' is no label of mails",
        ),
        ('{"input": "x", "label": "ham"}', r"line 2, field 'label': unknown field"),
        ('{"input": "x", "date": "soon"}', r"line 2, field 'date': .*found 'soon'"),
        ('{"input": "x", "id": "q1"}', r"line 2, field 'id': 'q1' is there twice"),
        ('{"input": ' + "9" * 5000 + "}", r"line 2: a number that cannot be read"),
    ],
)
def test_bad_questions_are_named_by_file_line_and_field(tmp_path: Path, line: str, says) -> None:
    path = jsonl(tmp_path, *(ITEM % (day, day) for day in (1, 2)))
    questions = asked(tmp_path, '{"input": "x", "id": "q1"}', line)
    with pytest.raises(InputError, match=says) as caught:
        import_profile(path, tmp_path / "p", **SORTED, questions=questions)
    assert str(questions) in str(caught.value)
    assert not (tmp_path / "p").exists()


def test_questions_are_refused_where_there_are_some_already_or_no_file(tmp_path: Path) -> None:
    lamp = lamp_files(tmp_path, "LaMP_4", [sample("LaMP_4", 1, ["a", "b"], "u")], "x")
    questions = asked(tmp_path, '{"input": "x"}')
    given = {**GIVEN, "task": "LaMP_4", "questions": questions}
    with pytest.raises(InputError, match="has its own questions; --questions is for items in JS"):
        import_profile(lamp, tmp_path / "p", **given)
    path = jsonl(tmp_path, *(ITEM % (day, day) for day in (1, 2)))
    for file, says in ((tmp_path / "none.jsonl", "no such file"), (asked(tmp_path), "empty")):
        with pytest.raises(InputError, match=says):
            import_profile(path, tmp_path / "p", **SORTED, questions=file)


@pytest.mark.parametrize("days", [-1, 36_501, 3_000_000])
def test_days_of_retention_that_no_calendar_has_are_refused(tmp_path: Path, days: int) -> None:
    path = jsonl(tmp_path, *(ITEM % (day, day) for day in (1, 2)))
    with pytest.raises(InputError, match=f"retention_days is {days}, expected 0 to 36500"):
        import_profile(path, tmp_path / "p", **{**SORTED, "retention_days": days})


def test_custom_tasks_are_checked_as_a_whole() -> None:
    with pytest.raises(InputError, match=r"kind is 'poem'.*does not contain \{input\}"):
        custom_task("x", "poem", "no place", ())
    with pytest.raises(InputError, match="needs labels"):
        custom_task("x", "classification", "{input}", ())
    with pytest.raises(InputError, match="must be numbers"):
        custom_task("x", "rating", "{input}", ("good",))
    for label in ("nan", "inf", "-Infinity"):
        with pytest.raises(InputError, match=f"must be numbers, found 1, {label}"):
            custom_task("x", "rating", "{input}", ("1", label))
    with pytest.raises(InputError, match="labels come more than once: ham"):
        custom_task("x", "classification", "{input}", ("ham", "spam", "ham"))
    for task in (*TASKS.values(), custom_task("x", "rating", "{input}", ())):
        assert task_from_config(task.to_config()) == task
