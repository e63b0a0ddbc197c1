"""`pocketune eval`: each LaMP task's own files through import, evaluation and scores, by hand."""

import json
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rouge_score.rouge_scorer import RougeScorer

from cloud.tasks import MOVIE_TAGS, NEWS_CATEGORIES, TASKS
from pocketune import main
from protos.artifacts import open_artifact
from protos.errors import InputError
from tests.cloud.evaluation.conftest import headlines, lamp_files


def items(**fields: list[str]) -> list[dict[str, str]]:
    rows = [dict(zip(fields, values, strict=True)) for values in zip(*fields.values(), strict=True)]
    return [{"id": f"p{n}", "date": f"2020-01-0{n + 1}", **row} for n, row in enumerate(rows)]


def citation(title: str) -> str:
    return (
        f'For an author who has written the paper with the title "{title}", which reference is '
        'related? Just answer with [1] or [2] without explanation. [1]: "On cats" [2]: "On dogs"'
    )


TEXTS = ["One thing came.", "Two things came.", "Three things."]
WORDS = ["one came", "two came", "three"]
CASES: dict[str, tuple[list[dict[str, str]], list[tuple[str, str, str]], dict[str, float]]] = {
    "LaMP_1": (  # class [1] F1 1, class [2] said once of two: 2/3
        items(abstract=TEXTS, title=WORDS),
        [(citation("A"), "[1]", "[1]"), (citation("B"), "[2]", " [2]\n"),
         (citation("C"), "[2]", "number 2")],
        {"accuracy": 2 / 3, "f1": (1 + 2 / 3) / 2},
    ),
    "LaMP_2": (  # comedy F1 1, action 0 for its case, thirteen absent ones 0
        items(description=TEXTS, tag=list(MOVIE_TAGS[:3])),
        [(TASKS["LaMP_2"].query(f"Film {n}"), gold, said) for n, (gold, said) in enumerate(
            [("comedy", "comedy"), ("action", "Action"), ("comedy", "comedy")])],
        {"accuracy": 2 / 3, "f1": 1 / 15},
    ),
    "LaMP_2N": (  # sports said twice, once right: 2/3; politics 1; travel never: 0; twelve absent
        items(text=TEXTS, category=list(NEWS_CATEGORIES[:3])),
        [(TASKS["LaMP_2N"].query(f"News {n}"), gold, said) for n, (gold, said) in enumerate(
            [("sports", "sports"), ("travel", "travel."), ("women", "sports"),
             ("politics", "politics")])],
        {"accuracy": 2 / 4, "f1": (2 / 3 + 1) / 15},
    ),
    "LaMP_3": (  # errors 1; no number beside a 3: 2, beside a 2: 3; 1.5; nothing beside a 4: 3
        items(text=TEXTS, score=["5", "4", "3"]),
        [(TASKS["LaMP_3"].query(f"Review {n}"), gold, said) for n, (gold, said) in enumerate(
            [("5", "4"), ("3", "great"), ("2", "2 stars"), ("1", "2.5"), ("4", "")])],
        {"mae": 10.5 / 5, "rmse": ((1 + 4 + 9 + 2.25 + 9) / 5) ** 0.5},
    ),
    "LaMP_4": (  # 3 of 4 words said, of 5 wanted: F 2/3; nothing; no stemming: 1 of 2
        items(text=TEXTS, title=WORDS),
        [(TASKS["LaMP_4"].query("Fire."), "Fire takes the old mill", "Fire takes a mill"),
         (TASKS["LaMP_4"].query("Snow."), "Snow", ""),
         (TASKS["LaMP_4"].query("Rain."), "Rain falls", "Rain fall")],
        {"rouge-1": (2 / 3 + 1 / 2) / 3, "rouge-L": (2 / 3 + 1 / 2) / 3},
    ),
    "LaMP_5": (  # the same words in another order: two of four in line; 2 said, of 4 wanted: F 2/3
        items(abstract=TEXTS, title=WORDS),
        [(TASKS["LaMP_5"].query("Fish."), "A study of fish", "of fish a study"),
         (TASKS["LaMP_5"].query("Nets."), "Deep nets, very deep", "Deep Nets")],
        {"rouge-1": (1 + 2 / 3) / 2, "rouge-L": (1 / 2 + 2 / 3) / 2},
    ),
    "LaMP_6": (  # 2 of 3 and 2 of 3; nothing in common
        items(text=TEXTS, title=WORDS),
        [(TASKS["LaMP_6"].query("Hi."), "Meeting on Monday", "meeting, on Tuesday"),
         (TASKS["LaMP_6"].query("Ho."), "Lunch", "Dinner")],
        {"rouge-1": 1 / 3, "rouge-L": 1 / 3},
    ),
    "LaMP_7": (
        items(text=["so many things came", "two things came", "three things went"]),
        [(f"Paraphrase the following tweet without any explanation before or after it: day {n}",
          "so happy today", said) for n, said in enumerate(["happy so today", "SO happy today!"])],
        {"rouge-1": 1.0, "rouge-L": (2 / 3 + 1) / 2},
    ),
}  # fmt: skip


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(main, ["eval", *map(str, arguments), "--threads", "1"])


ROUGE = RougeScorer(["rouge1", "rougeL"], use_stemmer=False)


def lamps_evaluator(task: str, predictions: Path, golds: Path) -> dict[str, float]:
    """The rules of LaMP's own evaluator, which reads two files, with scikit-learn's F1 by hand."""
    said, wanted = (json.loads(path.read_text("utf-8")) for path in (predictions, golds))
    assert said["task"] == wanted["task"]
    said, wanted = ({g["id"]: g["output"].strip() for g in f["golds"]} for f in (said, wanted))
    assert set(said) == set(wanted)
    pairs = [(said[name], wanted[name]) for name in wanted]
    labels = LABELS.get(task, ())
    if labels:
        assert all(gold in labels for _, gold in pairs)
        f1 = []
        for label in labels:
            hits = pairs.count((label, label))
            of = sum(a == label for a, _ in pairs) + sum(b == label for _, b in pairs)
            f1.append(2 * hits / of if of else 0.0)
        return {"accuracy": mean(a == b for a, b in pairs), "f1": mean(f1)}
    if task == "LaMP_3":
        errors = [abs(number(a, float(b)) - float(b)) for a, b in pairs]
        return {"mae": mean(errors), "rmse": mean(e * e for e in errors) ** 0.5}
    scores = [ROUGE.score(gold, text) for text, gold in pairs]
    return {
        "rouge-1": mean(score["rouge1"].fmeasure for score in scores),
        "rouge-L": mean(score["rougeL"].fmeasure for score in scores),
    }


LABELS = {"LaMP_1": ("[1]", "[2]"), "LaMP_2": MOVIE_TAGS, "LaMP_2N": NEWS_CATEGORIES}


def number(text: str, gold: float) -> float:
    try:
        return float(text)
    except ValueError:
        return 1.0 if abs(1 - gold) > abs(5 - gold) else 5.0


@pytest.mark.parametrize("task", CASES)
def test_official_files_of_each_task_come_out_as_scores_worked_by_hand(
    task: str, tmp_path: Path, tiny_base: Path, chat
) -> None:
    profile, asked, wanted = CASES[task]
    says = {query: said for query, _, said in asked}
    chat.say = lambda message, number: next(
        (said for query, said in says.items() if f"is now asked: {query}\n" in message), "unknown"
    )
    pairs = [(query, gold) for query, gold, _ in asked]
    folder = lamp_files(tmp_path / "lamp", "LaMP_2" if task == "LaMP_2N" else task, {
        "u1": (profile, pairs)
    })  # fmt: skip
    done = run(
        "--data", folder, "--task", task, "--base", tiny_base, "--teacher", chat.spec, "--scrub",
        "off", "--out", tmp_path / "out", "--arms", "teacher,base,base+bm25", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["task"] == task
    assert result["arms"]["teacher"]["pooled"] == pytest.approx(wanted)
    golds = json.loads((folder / "dev_outputs.json").read_text())
    written = tmp_path / "out" / "evaluation" / "golds.json"
    assert json.loads(written.read_text()) == golds
    for arm in ("teacher", "base", "base+bm25"):
        path = tmp_path / "out" / "evaluation" / "predictions" / f"{arm}.json"
        said = json.loads(path.read_text())
        assert said["task"] == golds["task"], "as LaMP's own evaluator has it"
        assert [each["id"] for each in said["golds"]] == [each["id"] for each in golds["golds"]]
        theirs = lamps_evaluator(task, path, written)
        assert theirs == pytest.approx(result["arms"][arm]["pooled"])
        if arm == "teacher":
            spoken = {each["output"] for each in said["golds"]}
            assert spoken == {text.strip() for text in says.values()}


USERS = {  # worked by hand: what each question's own user gets, in the main measure of the task
    "LaMP_1": [1, 1, 0],
    "LaMP_3": [1, 2, 3, 1.5, 3],
    "LaMP_4": [2 / 3, 0, 1 / 2],
}


@pytest.mark.parametrize("task", USERS)
def test_in_files_of_the_user_based_split_each_question_is_a_user_of_its_own(
    task: str, tmp_path: Path, tiny_base: Path, chat
) -> None:
    """As LaMP publishes them: no `user_id`, no dates, a profile for each question."""
    profile, asked, wanted = CASES[task]
    text = TASKS[task].input_field
    names = [f"{n}10" for n in range(len(asked))]
    questions = [
        {"id": name, "input": query, "profile": [
            {**{key: row[key] for key in row if key != "date"}, text: f"{row[text]} By {name}."}
            for row in profile
        ]}
        for name, (query, _, _) in zip(names, asked, strict=True)
    ]  # fmt: skip
    golds = [{"id": n, "output": gold} for n, (_, gold, _) in zip(names, asked, strict=True)]
    (tmp_path / "dev_questions.json").write_text(json.dumps(questions))
    (tmp_path / "dev_outputs.json").write_text(json.dumps({"task": task, "golds": golds}))
    says = {f"is now asked: {query}\n": said for query, _, said in asked}
    chat.say = lambda message, number: next(said for ask, said in says.items() if ask in message)
    out = tmp_path / "out"
    done = run(
        "--data", tmp_path, "--base", tiny_base, "--teacher", chat.spec, "--scrub", "off",
        "--concurrency", "1", "--out", out, "--arms", "base,teacher", "--no-plots", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["task"], result["users"], result["questions"]) == (task, len(asked), len(asked))
    assert result["arms"]["teacher"]["pooled"] == pytest.approx(wanted)
    for name, message in zip(names, chat.asked, strict=True):
        assert {other for other in names if f"By {other}." in message} == {name}
    found = json.loads((out / "evaluation" / "evaluation.json").read_text())
    assert [(user["user"], user["items"]) for user in found["users"]] == [(n, 3) for n in names]
    values = [user["values"]["teacher"][found["main"]] for user in found["users"]]
    assert values == pytest.approx(USERS[task])
    said = json.loads((out / "evaluation" / "predictions" / "teacher.json").read_text())
    spoken = [text.strip() for _, _, text in asked]
    assert said == {"task": task, "golds": [
        {"id": name, "output": text} for name, text in zip(names, spoken, strict=True)
    ]}  # fmt: skip
    assert json.loads((out / "evaluation" / "golds.json").read_text())["golds"] == golds


def one_line(done: Result, code: int, *says: str) -> None:
    assert done.exit_code == code, done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error:")]
    assert len(errors) == 1, done.stderr
    for text in says:
        assert text in errors[0]


def test_bad_input_is_one_clear_line(tmp_path: Path, tiny_base: Path) -> None:
    folder = lamp_files(tmp_path / "lamp", "LaMP_4", {"ann": headlines("ann")})
    given = ("--base", tiny_base, "--out", tmp_path / "out", "--teacher", "pocket")
    one_line(run(*given, "--data", folder, "--arms", "base,best"), 2, "arms: best", "base+bm25")
    one_line(run(*given, "--data", folder, "--arms", "base,other"), 2, "one user only (ann)")
    one_line(run(*given, "--data", folder, "--arms", "task"), 2, "--others")
    one_line(run(*given, "--data", folder, "--ratios", "1,many"), 2, "ratios: 'many'")
    one_line(run(*given, "--data", folder, "--task", "LaMP_3"), 2, "outputs of LaMP_4")
    one_line(run(*given, "--data", tmp_path / "no"), 2, "no dev_questions.json, no Profile")
    one_line(run(*given), 2, "give one of --data, --profiles and --suite")
    one_line(run("--data", folder, "--out", tmp_path / "out"), 2, "give --base")
    nowhere = ("--base", tiny_base, "--out", tmp_path / "out", "--data", folder)
    one_line(run(*nowhere, "--teacher", "hf:./nowhere"), 2, "nowhere: no such directory")
    (folder / "dev_outputs.json").unlink()
    one_line(run(*given, "--data", folder), 2, "dev_outputs.json: no such file", "scored")


def test_a_teacher_that_is_away_is_one_line_and_the_rest_is_kept(
    tmp_path: Path, tiny_base: Path
) -> None:
    folder = lamp_files(tmp_path / "lamp", "LaMP_4", {"ann": headlines("ann")})
    given = ("--base", tiny_base, "--out", tmp_path / "out", "--data", folder, "--scrub", "off")
    away = ("--teacher", "openai:http://127.0.0.1:9/v1#nobody", "--retries", "0")
    one_line(run(*given, *away, "--arms", "base,teacher"), 6, "nobody")
    assert len(list((tmp_path / "out" / "answers").glob("*.json"))) == 1


def test_users_without_items_or_answers_are_left_out_by_name(
    tmp_path: Path, tiny_base: Path
) -> None:
    few, asked = headlines("eve", items=1)
    users = {"ann": headlines("ann"), "eve": (few, asked), "kim": headlines("kim")}
    folder = lamp_files(tmp_path / "lamp", "LaMP_4", users)
    golds = json.loads((folder / "dev_outputs.json").read_text())
    golds["golds"] = [each for each in golds["golds"] if "kim" not in each["id"]]
    (folder / "dev_outputs.json").write_text(json.dumps(golds))
    out = tmp_path / "out"
    done = run("--data", folder, "--base", tiny_base, "--out", out, "--arms", "base", "--no-plots")
    assert done.exit_code == 0, done.stderr
    page = (out / "evaluation.md").read_text()
    assert done.stdout.startswith(page)
    assert "# LaMP_4: 1 users, 2 questions" in page
    assert "eve: 1 items before the first question" in page
    assert "kim: no held-out question with a known answer" in page
    again = run(
        "--profiles", out / "users" / "ann" / "profile", "--base", tiny_base, "--out",
        tmp_path / "again", "--arms", "base", "--no-plots", "--json",
    )  # fmt: skip
    assert json.loads(again.stdout)["users"] == 1


def test_what_is_odd_is_left_out_and_the_golds_are_of_exactly_what_was_asked(
    tmp_path: Path, tiny_base: Path
) -> None:
    users = {"ann": headlines("ann", 5), "bob": headlines("bob"), "eve": headlines("eve", 1)}
    folder = lamp_files(tmp_path / "lamp", "LaMP_4", users)
    questions = json.loads((folder / "dev_questions.json").read_text())
    golds = json.loads((folder / "dev_outputs.json").read_text())
    questions[0]["profile"][2]["title"] = None
    questions[3]["input"] = ["bob's second"]
    questions.insert(0, {"profile": []})
    questions.insert(0, "nothing")
    golds["golds"] = [each for each in golds["golds"] if each["id"] != "ann-1"]
    (folder / "dev_questions.json").write_text(json.dumps(questions))
    (folder / "dev_outputs.json").write_text(json.dumps(golds))
    out = tmp_path / "out"
    done = run("--data", folder, "--base", tiny_base, "--out", out, "--arms", "base", "--no-plots")
    assert done.exit_code == 0, done.stderr
    found = json.loads((out / "evaluation" / "evaluation.json").read_text())
    assert [(user["user"], user["items"], user["questions"]) for user in found["users"]] == [
        ("ann", 4, 1), ("bob", 4, 1)
    ]  # fmt: skip
    (ann,), (bob,) = found["odd"]["ann"], found["odd"]["bob"]
    assert "sample 2, user 'ann', profile item 2 (id 'annp2'), field 'title': expected text" in ann
    assert "sample 5, user 'bob', field 'input': found list" in bob
    assert found["left_out"]["eve"] == "1 items before the first question"
    assert "left out 2, first: " in found["left_out"]["(unnamed)"]
    page = (out / "evaluation.md").read_text()
    assert "odd or too late were left out, of ann 1, bob 1; the first: " in page
    assert ann in page
    files = [out / "evaluation" / name for name in ("golds.json", "predictions/base.json")]
    ids = [[each["id"] for each in json.loads(path.read_text())["golds"]] for path in files]
    assert ids == [["ann-0", "bob-0"]] * 2


def test_answers_that_were_cut_off_are_counted_by_arm(
    tmp_path: Path, tiny_base: Path, chat
) -> None:
    """That each answer of the student is rightly called cut is tested in test_student.py."""

    def say(message: str, number: int) -> Any:
        content = {"role": "assistant", "content": "A headline that goes"}
        ended = "length" if "field number 0" in message.split("is now asked: ")[1] else "stop"
        choice = {"index": 0, "finish_reason": ended, "message": content}
        return {"id": "x", "object": "chat.completion", "created": 0, "model": "m",
                "choices": [choice]}  # fmt: skip

    chat.say = say
    folder = lamp_files(tmp_path / "lamp", "LaMP_4", {"ann": headlines("ann"),
                                                     "bob": headlines("bob")})  # fmt: skip
    out = tmp_path / "out"
    given = ("--data", folder, "--base", tiny_base, "--out", out, "--no-plots", "--teacher",
             chat.spec, "--scrub", "off")  # fmt: skip
    for _ in range(2):  # the second takes the answers from their files
        done = run(*given, "--arms", "base,teacher")
        assert done.exit_code == 0, done.stderr
        found = json.loads((out / "evaluation" / "evaluation.json").read_text())
        files = [json.loads(path.read_text()) for path in (out / "answers").glob("*.json")]
        base = [answer["cut"] for answers in files for answer in answers]
        assert len(base) == 4
        assert found["arms"]["base"]["cut"] == sum(base) > 0
        assert found["arms"]["teacher"]["cut"] == 2
        words = "Answers that were cut off, not at their end when the room for them was: "
        assert f"{words}base {sum(base)}, teacher 2." in (out / "evaluation.md").read_text()
        (out / "evaluation" / "evaluation.json").unlink()


def test_profiles_of_a_task_of_ones_own_are_evaluated_with_their_own_questions(
    tmp_path: Path, tiny_base: Path, chat
) -> None:
    """ham is right twice, spam once of two: F1 4/5 and 2/3; what is no label is wrong."""
    mails = [json.dumps({"input": f"mail {n} about this", "output": "ham"}) for n in range(3)]
    (tmp_path / "items.jsonl").write_text("\n".join(mails))
    truth = {"lunch": "ham", "pills": "spam", "loans": "spam", "notes": "ham"}
    said = {"lunch": "ham", "pills": "spam", "loans": "ham", "notes": "ham"}
    for user, words in (("ann", ("lunch", "pills")), ("bob", ("loans", "notes"))):
        asked = [json.dumps({"input": word, "output": truth[word]}) for word in words]
        (tmp_path / "questions.jsonl").write_text("\n".join([*asked, '{"input": "unknown"}']))
        done = CliRunner().invoke(main, [
            "profile", "import", str(tmp_path / "items.jsonl"), "--user", user, "--task", "mails",
            "--kind", "classification", "--labels", "ham,spam", "--prompt", "Sort: {input}",
            "--questions", str(tmp_path / "questions.jsonl"),
            "--out", str(tmp_path / "profiles" / user),
        ])  # fmt: skip
        assert done.exit_code == 0, done.stderr
    chat.say = lambda message, number: said[message.split("is now asked: Sort: ")[1].split()[0]]
    done = run(
        "--profiles", tmp_path / "profiles", "--base", tiny_base, "--out", tmp_path / "out",
        "--arms", "base,base+bm25,teacher", "--teacher", chat.spec, "--scrub", "off", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["task"], result["users"], result["questions"]) == ("mails", 2, 4)
    assert result["arms"]["teacher"]["pooled"] == pytest.approx(
        {"accuracy": 3 / 4, "f1": (4 / 5 + 2 / 3) / 2}
    )
    golds = json.loads((tmp_path / "out" / "evaluation" / "golds.json").read_text())
    assert golds == {"task": "mails", "golds": [
        {"id": f"{user}-{line}", "output": truth[word]} for user, line, word in
        (("ann", 1, "lunch"), ("ann", 2, "pills"), ("bob", 1, "loans"), ("bob", 2, "notes"))
    ]}  # fmt: skip


def test_several_tasks_have_a_page_each_and_one_together(tmp_path: Path, tiny_base: Path) -> None:
    users = {"ann": headlines("ann"), "bob": headlines("bob")}
    profile, asked, _ = CASES["LaMP_3"]
    four = lamp_files(tmp_path / "LaMP_4", "LaMP_4", users)
    three = lamp_files(
        tmp_path / "LaMP_3", "LaMP_3", {"kim": (profile, [pair[:2] for pair in asked])}
    )
    given = ("--base", tiny_base, "--arms", "base", "--no-plots", "--out", tmp_path / "out")
    done = run("--data", four, "--data", three, *given, "--json")
    assert done.exit_code == 0, done.stderr
    made = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["task"] for each in made] == ["LaMP_4", "LaMP_3"]
    page = (tmp_path / "out" / "evaluation.md").read_text()
    scores = [each["arms"]["base"]["pooled"][each["main"]] for each in made]
    assert f"| LaMP_4 | 2 | ROUGE-L | {scores[0]:.3f} |" in page
    assert f"| LaMP_3 | 1 | MAE | {scores[1]:.3f} |" in page
    for task in ("LaMP_4", "LaMP_3"):
        assert (tmp_path / "out" / task / "evaluation.md").is_file()
    one_line(run("--data", four, "--data", four, *given), 2, "two of the same name")


def test_the_news_variant_is_told_by_its_items_beside_other_tasks(
    tmp_path: Path, tiny_base: Path
) -> None:
    """Both variants' outputs say LaMP_2; one odd item does not change what the others say."""
    folders: list[Any] = []
    for task in ("LaMP_2N", "LaMP_2", "LaMP_4"):
        profile, asked, _ = CASES[task]
        odd = {"id": "odd", "date": "2019-01-01", "text": "News.", "category": "sports", "tag": "x"}
        pairs = [pair[:2] for pair in asked]
        folder = lamp_files(tmp_path / task, task[:6], {"kim": ([odd, *profile], pairs)})
        folders += ["--data", folder]
    out = tmp_path / "out"
    given = ("--base", tiny_base, "--arms", "base", "--no-plots", "--out", out, "--json")
    done = run(*folders, *given)
    assert done.exit_code == 0, done.stderr
    made = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["task"] for each in made] == ["LaMP_2N", "LaMP_2", "LaMP_4"]
    assert [each["questions"] for each in made] == [4, 3, 3]
    said = json.loads((out / "LaMP_2N" / "evaluation" / "golds.json").read_text())
    assert said["task"] == "LaMP_2", "as LaMP's own evaluator has it"


def test_somebody_with_two_tasks_teaches_each_task_their_own_items_and_may_withdraw(
    tmp_path: Path, tiny_base: Path
) -> None:
    """kim has headlines in LaMP_4 and papers in LaMP_5, both under the same name."""
    four = lamp_files(tmp_path / "four", "LaMP_4", {"kim": headlines("kim")})
    five = lamp_files(tmp_path / "five", "LaMP_5", {
        "kim": (items(abstract=TEXTS, title=WORDS), [(TASKS["LaMP_5"].query("Fish."), "Of fish")])
    })  # fmt: skip
    data = lamp_files(tmp_path / "lamp", "LaMP_4", {"ann": headlines("ann")})
    out = tmp_path / "out"
    given = ("--data", data, "--others", four, "--others", five, "--base", tiny_base, "--arms",
             "base,task", "--epochs", "1", "--no-plots", "--out", out)  # fmt: skip
    done = run(*given)
    assert done.exit_code == 0, done.stderr
    rows = (out / "task" / "dataset" / "train.jsonl").read_text().splitlines()
    learned = {json.loads(row)["output"] for row in rows}
    assert learned == {"zoo opens for kim", "mill opens for kim", "castle opens for kim"}

    left = CliRunner().invoke(main, ["task", "withdraw", "kim", str(out / "task")])
    assert left.exit_code == 0, left.output
    assert "marked: adapter, dataset" in left.output
    one_line(run(*given), 2, "kim withdrew on")
    with pytest.raises(InputError, match="a contributor withdrew on"):
        open_artifact(out / "task" / "adapter", "Adapter")


class Tomorrow(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:
        return datetime.now(tz) + timedelta(days=1)


def spoken(messages: list[dict[str, str]]) -> str:
    return messages[-1]["content"]


def test_a_dry_run_prints_what_the_run_then_sends_and_sends_and_writes_nothing(
    tmp_path: Path, tiny_base: Path, chat
) -> None:
    """All three items of the first request pass, so that nothing else is asked for."""
    written = {
        "A farmer sold nine pigs at dawn today.": "pigs sell at dawn",
        "Rain kept all ships inside for a week.": "ships stay for rain",
        "Two bakers won the big prize of bread.": "bakers win for bread",
    }
    lines = [json.dumps({"input": text, "output": title}) for text, title in written.items()]
    chat.say = lambda message, number: "\n".join(lines)
    users = {"ann": headlines("ann"), "bob": headlines("bob"), "eve": headlines("eve")}
    folder = lamp_files(tmp_path / "lamp", "LaMP_4", users)
    out = tmp_path / "out"
    given = ("--data", folder, "--users", "2", "--base", tiny_base, "--teacher", chat.spec, "--out",
             out, "--arms", "base,real,mixed,teacher", "--scrub", "off", "--pool", "1",
             "--epochs", "1", "--no-plots")  # fmt: skip
    dry = run(*given, "--dry-run")
    assert dry.exit_code == 0, dry.stderr
    assert chat.asked == []
    assert not out.exists()
    assert "Secret" not in dry.stdout, "no held-out answer"
    rows = [json.loads(row) for row in dry.stdout.splitlines()]
    assert [(row["user"], row["for"].split(",")[0]) for row in rows] == [
        (user, what) for user in ("ann", "bob") for what in ("augment", "teacher", "teacher")
    ]  # fmt: skip
    done = run(*given)
    assert done.exit_code == 0, done.stderr
    assert sorted(chat.asked) == sorted(spoken(row["sent"]) for row in rows)
    chat.bodies.clear()
    none = run(*given, "--arms", "base,real", "--dry-run")
    assert (none.exit_code, none.stdout) == (0, "")


def test_a_dry_run_needs_the_consent_that_the_run_needs_and_shows_what_is_scrubbed(
    tmp_path: Path, tiny_base: Path
) -> None:
    profile, asked = headlines("ann")
    asked = [(f"{query} Write to ann@example.org.", gold) for query, gold in asked]
    folder = lamp_files(tmp_path / "lamp", "LaMP_4", {"ann": (profile, asked)})
    given = ("--data", folder, "--base", tiny_base, "--out", tmp_path / "out", "--arms", "teacher",
             "--teacher", "openai:https://example.com/v1#m", "--dry-run")  # fmt: skip
    one_line(run(*given), 2, "consent does not allow a third-party teacher")
    pytest.importorskip("presidio_analyzer")
    done = run(*given, "--third-party")
    assert done.exit_code == 0, done.stderr
    assert "<EMAIL_ADDRESS_1>" in done.stdout
    assert "ann@example.org" not in done.stdout


def test_who_withdrew_stays_out_the_next_day_until_they_agree_themselves(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = lamp_files(tmp_path / "other", "LaMP_4", {"kim": headlines("kim")})
    data = lamp_files(tmp_path / "lamp", "LaMP_4", {"ann": headlines("ann")})
    out, own = tmp_path / "out", tmp_path / "kim"
    given = ("--data", data, "--base", tiny_base, "--arms", "base,task", "--epochs", "1",
             "--no-plots", "--out", out)  # fmt: skip
    assert run(*given, "--others", other).exit_code == 0
    assert CliRunner().invoke(main, ["task", "withdraw", "kim", str(out / "task")]).exit_code == 0
    for module in ("cloud.profiles", "cloud.augment", "protos.artifacts"):
        monkeypatch.setattr(f"{module}.datetime", Tomorrow)
    one_line(run(*given, "--others", other), 2, "kim withdrew on", "is no new consent")
    imported = out / "others" / "1" / "users" / "kim" / "profile"
    one_line(run(*given, "--others", imported), 2, "kim withdrew on", "is no new consent")
    assert not (out / "task" / "dataset").exists()

    agreed = ["profile", "import", str(other / "dev_questions.json"), "--outputs",
              str(other / "dev_outputs.json"), "--contributes", "--out", str(own)]  # fmt: skip
    assert CliRunner().invoke(main, agreed).exit_code == 0
    assert run(*given, "--others", own).exit_code == 0
    assert (out / "task" / "dataset").is_dir()


def test_the_suite_is_the_users_of_every_task_of_the_world(tmp_path: Path, tiny_base: Path) -> None:
    from cloud.pocket.world import WORLDS, write_users

    out = tmp_path / "out"
    done = run(
        "--suite", "pocket", "--split", "dev", "--users", "1", "--base", tiny_base, "--arms",
        "base", "--no-plots", "--out", out, "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    made = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["task"] for each in made] == list(WORLDS)
    for task in WORLDS:
        _, outputs = write_users(task, "dev", tmp_path / "own" / task, 1)
        golds = json.loads(outputs.read_text())["golds"]
        path = out / task / "evaluation" / "predictions" / "base.json"
        said = json.loads(path.read_text())["golds"]
        assert [each["id"] for each in said] == [each["id"] for each in golds]


def test_the_suite_takes_the_tasks_that_are_named_and_finds_again_what_they_made(
    tmp_path: Path, tiny_base: Path
) -> None:
    out = tmp_path / "out"
    given = (
        "--suite", "pocket", "--users", "1", "--base", tiny_base, "--arms", "base", "--no-plots",
        "--out", out,
    )  # fmt: skip
    one = run(*given, "--task", "LaMP_4")
    assert one.exit_code == 0, one.stderr
    assert one.stdout.startswith("# 1 task\n")
    made = (out / "LaMP_4" / "evaluation" / "manifest.json").read_text()
    two = run(*given, "--task", "LaMP_5, LaMP_4", "--json")
    assert two.exit_code == 0, two.stderr
    assert [json.loads(line)["task"] for line in two.stdout.splitlines()] == ["LaMP_5", "LaMP_4"]
    assert (out / "LaMP_4" / "evaluation" / "manifest.json").read_text() == made
    one_line(run(*given, "--task", "LaMP_6"), 2, "--task LaMP_6: the suite has LaMP_1, LaMP_2")


def test_quick_takes_those_with_fewest_items_and_options_that_suit_the_bundled_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the arm `task`, which learns from users that neither split for measuring holds."""
    from cloud.evaluation import cli
    from cloud.pocket.world import WORLDS

    monkeypatch.setattr(cli, "CONTRIBUTORS", 1)
    out = tmp_path / "out"
    done = run(
        "--suite", "pocket", "--quick", "--users", "1", "--arms", "base,task", "--epochs", "1",
        "--no-plots", "--out", out, "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    made = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["task"] for each in made] == list(WORLDS)
    for task in WORLDS:
        found = json.loads((out / task / "evaluation" / "evaluation.json").read_text())
        assert [user["items"] for user in found["users"]] == [4]
        options = {**found["config"]["augment"], **found["config"]["train"]}
        assert (options["per_real"], options["learning_rate"]) == (1.0, 2e-3)
        assert options["epochs"] == 1, "a flag beats them"
        rows = (out / task / "task" / "dataset" / "train.jsonl").read_text().splitlines()
        assert {json.loads(row)["source"]["user"] for row in rows} == {f"{task}-0"}
    one_line(
        run("--data", out, "--base", "x", "--out", out, "--quick"), 2, "--quick is for --suite"
    )
