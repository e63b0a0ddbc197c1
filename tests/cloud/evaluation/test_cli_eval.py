"""`pocketune eval`: each LaMP task's own files through import, evaluation and scores, by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cloud.tasks import MOVIE_TAGS, NEWS_CATEGORIES, TASKS
from pocketune import main
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
    "LaMP_2N": (
        items(text=TEXTS, category=list(NEWS_CATEGORIES[:3])),
        [(TASKS["LaMP_2N"].query(f"News {n}"), gold, said) for n, (gold, said) in enumerate(
            [("sports", "sports"), ("travel", "travel.")])],
        {"accuracy": 1 / 2, "f1": 1 / 15},
    ),
    "LaMP_3": (  # errors 1; no number beside a 3: 2; 1.5
        items(text=TEXTS, score=["5", "4", "3"]),
        [(TASKS["LaMP_3"].query(f"Review {n}"), gold, said) for n, (gold, said) in enumerate(
            [("5", "4"), ("3", "great"), ("1", "2.5")])],
        {"mae": 4.5 / 3, "rmse": ((1 + 4 + 2.25) / 3) ** 0.5},
    ),
    "LaMP_4": (  # 3 of 4 words said, of 5 wanted: F 2/3; then nothing
        items(text=TEXTS, title=WORDS),
        [(TASKS["LaMP_4"].query("Fire."), "Fire takes the old mill", "Fire takes a mill"),
         (TASKS["LaMP_4"].query("Snow."), "Snow", "")],
        {"rouge-1": 1 / 3, "rouge-L": 1 / 3},
    ),
    "LaMP_5": (  # the same words in another order: two of four in line
        items(abstract=TEXTS, title=WORDS),
        [(TASKS["LaMP_5"].query("Fish."), "A study of fish", "of fish a study")],
        {"rouge-1": 1.0, "rouge-L": 1 / 2},
    ),
    "LaMP_6": (
        items(text=TEXTS, title=WORDS),
        [(TASKS["LaMP_6"].query("Hi."), "Meeting on Monday", "meeting, on Tuesday")],
        {"rouge-1": 2 / 3, "rouge-L": 2 / 3},
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
    for arm in ("teacher", "base", "base+bm25"):
        path = tmp_path / "out" / "evaluation" / "predictions" / f"{arm}.json"
        said = json.loads(path.read_text())
        assert said["task"] == golds["task"], "as LaMP's own evaluator has it"
        assert [each["id"] for each in said["golds"]] == [each["id"] for each in golds["golds"]]
        if arm == "teacher":
            spoken = {each["output"] for each in said["golds"]}
            assert spoken == {text.strip() for text in says.values()}


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
