"""Augmentation with real teachers: the bundled one, a chat model, and a server over HTTP."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import cloud.augment as stage
from cloud.augment import AugmentConfig, augment
from cloud.cli import import_profile
from cloud.profiles import Item, Profile, read_profile, read_rows, write_profile
from cloud.tasks import TASKS
from cloud.teachers import Sampling, open_teacher
from protos.artifacts import Artifact, open_artifact
from protos.errors import InputError, TeacherError

USERS = Path(stage.__file__).parent / "pocket" / "users"
GIVEN: dict[str, Any] = {
    "task": None, "kind": None, "prompt": "{input}", "labels": "", "language": "en",
    "purpose": "personalization", "retention_days": 30, "third_party": False,
}  # fmt: skip


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
    config = AugmentConfig(per_real=1.0, round=8)
    return profile, augment(profile, teacher, work / "dataset", config), config, teacher


def test_all_real_rows_stay_and_every_synthetic_one_says_where_it_came_from(made) -> None:
    profile, dataset, *_ = made
    items = read_profile(profile).items
    rows = read_rows(dataset.file("train.jsonl"))
    real = [row for row in rows if row["origin"] == "real"]
    synthetic = [row for row in rows if row["origin"] == "synthetic"]
    valid = read_rows(dataset.file("valid.jsonl"))
    assert [row["source"]["item"] for row in real + valid] == [item.id for item in items]
    assert len(synthetic) == dataset.manifest.measured["synthetic"] == 10
    trained_ids = {row["source"]["item"] for row in real}
    for row in synthetic:
        assert set(row["source"]) == {"teacher", "shots", "request", "seed", "index"}
        assert set(row["source"]["shots"]) <= trained_ids, "it was shown a held-out item"
    task = TASKS[profile.config["task"]["name"]]
    assert {row["prompt"] for row in rows} == {task.query(row["input"]) for row in rows}


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


def test_a_seed_decides_everything(made, tmp_path: Path) -> None:
    profile, dataset, config, teacher = made
    assert augment(profile, teacher, tmp_path / "again", config).id == dataset.id
    other = AugmentConfig(per_real=1.0, round=8, seed=5)
    assert augment(profile, teacher, tmp_path / "other", other).id != dataset.id


def test_without_synthetic_items_no_teacher_is_needed(tmp_path: Path) -> None:
    profile = bundled("LaMP_4", tmp_path / "profile")
    teacher = open_teacher("openai:http://127.0.0.1:9/v1#nobody", threads=1)
    dataset = augment(profile, teacher, tmp_path / "d", AugmentConfig(per_real=0))
    assert {row["origin"] for row in read_rows(dataset.file("train.jsonl"))} == {"real"}


class ChatServer(BaseHTTPRequestHandler):
    """OpenAI's chat completions over HTTP; what it answers is set per test."""

    answers: list[str | int]
    asked: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).asked.append(body)
        answer = self.answers[(len(self.asked) - 1) % len(self.answers)]
        status = answer if isinstance(answer, int) else 200
        message = {"role": "assistant", "content": answer}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        value = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
        data = json.dumps({**value, "choices": [choice]} if status == 200 else {}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture
def server() -> Iterator[tuple[str, type[ChatServer]]]:
    handler = type("Handler", (ChatServer,), {"answers": [""], "asked": []})
    running = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield f"openai:http://127.0.0.1:{running.server_port}/v1#small", handler
    running.shutdown()
    running.server_close()
    thread.join()


NEWS = [
    json.dumps({"input": text, "output": headline})
    for text, headline in (
        ("Fishermen found a bell from an old ship near the harbour wall.", "Bell out of the sea"),
        (
            "A night guard at the museum caught two thieves with paintings.",
            "Thieves caught at night",
        ),
        ("All pupils of the valley get free lunch from next autumn on.", "Free lunch for pupils"),
        ("Bakers want to sell bread until midnight during the festival.", "Bread until midnight"),
        ("Engineers will close one lane while they repair rusty cables.", "One lane closes soon"),
        ("More than ninety volunteers sorted books after the pipe burst.", "Books saved by many"),
        ("The orchestra plays outdoors because its hall needs new seats.", "Music under the stars"),
        (
            "Gardeners plant two hundred oaks where the car park used to be.",
            "Oaks replace the cars",
        ),
    )
]


@pytest.fixture
def small_profile(tmp_path: Path) -> Artifact:
    items = [
        Item(str(n), f"The {place} opened with {n} guests and some music.", f"{place} opens again")
        for n, place in enumerate(("zoo", "mill", "castle", "shop"))
    ]
    from cloud.profiles import Consent

    return write_profile(
        Profile(TASKS["LaMP_4"], "u", "en", Consent(), items, []), tmp_path / "profile"
    )


def test_an_http_teacher_is_asked_with_the_items_and_read_strictly(
    tmp_path: Path, server: tuple[str, type[ChatServer]], small_profile: Artifact
) -> None:
    spec, handler = server
    handler.answers = [f"{NEWS[0]}\nnot json\n{NEWS[1]}"]
    config = AugmentConfig(per_real=0.7, round=2)
    dataset = augment(small_profile, open_teacher(spec, 1), tmp_path / "d", config)
    measured = dataset.manifest.measured
    assert (measured["real"], measured["synthetic"]) == (3, 2)
    assert measured["rejected"]["unparsed"] == 1
    body = handler.asked[0]
    assert body["model"] == "small"
    assert (
        '"input": "The zoo opened with 0 guests and some music."' in body["messages"][1]["content"]
    )
    assert "The shop opened" not in json.dumps(handler.asked), "the held-out item was sent"


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("I cannot help with that.", r"nothing it wrote passed the filters \(unparsed 36"),
        ("", "unparsed"),
        ('{"input": "x", "output": "y"}', "length"),
        (json.dumps({"input": "The zoo opened with 0 guests and some music.", "output": "a b c"}),
         "near-duplicate"),
    ],
)  # fmt: skip
def test_a_teacher_that_gives_nothing_usable_is_an_error_with_the_counts(
    tmp_path: Path, server, small_profile: Artifact, answer: str, says: str
) -> None:
    spec, handler = server
    handler.answers = [answer]
    with pytest.raises(TeacherError, match=says):
        augment(small_profile, open_teacher(spec, 1), tmp_path / "d", AugmentConfig(round=4))
    assert not (tmp_path / "d").exists()


def test_a_refusing_or_absent_server_is_one_clear_error(
    tmp_path: Path, server, small_profile: Artifact
) -> None:
    spec, handler = server
    handler.answers = [401]
    with pytest.raises(TeacherError, match="AuthenticationError"):
        augment(small_profile, open_teacher(spec, 1), tmp_path / "d", AugmentConfig())
    assert not (tmp_path / "d").exists()


def test_an_interrupted_run_asks_only_for_the_rounds_that_are_missing(
    tmp_path: Path, server, small_profile: Artifact
) -> None:
    spec, handler = server
    handler.answers = NEWS
    config = AugmentConfig(per_real=2.0, round=2, tries=4)
    whole = augment(small_profile, open_teacher(spec, 1), tmp_path / "whole", config)
    handler.asked.clear()
    # A teacher that goes away after the first round: its replies are kept, nothing is half-written.
    handler.answers = [*NEWS[:2], 403, 403]
    with pytest.raises(TeacherError):
        augment(small_profile, open_teacher(spec, 1), tmp_path / "d", config)
    assert not (tmp_path / "d").exists()
    paid = len(list(tmp_path.glob(".d.*.work/*.json")))
    assert paid == 1
    handler.asked.clear()
    handler.answers = NEWS[2:]
    dataset = augment(small_profile, open_teacher(spec, 1), tmp_path / "d", config)
    assert dataset.manifest.measured["synthetic"] == whole.manifest.measured["synthetic"]
    assert len(handler.asked) == 6 - 2
    assert not list(tmp_path.glob(".d.*.work"))


def test_a_local_chat_model_is_asked_through_its_own_template(
    tmp_path: Path, chatty_base: Path, small_profile: Artifact
) -> None:
    teacher = open_teacher(f"hf:{chatty_base}", threads=1)
    items = read_profile(small_profile).items[:1]
    replies = teacher.write(TASKS["LaMP_3"], [[Item("1", "a", "3")]] * 2, Sampling(seed=1))
    assert [reply.pairs for reply in replies] == [[None] * len(r.pairs) for r in replies]
    again = teacher.write(TASKS["LaMP_3"], [[Item("1", "a", "3")]] * 2, Sampling(seed=1))
    assert again == replies
    long = Item("2", "word " * 5000, "3")
    with pytest.raises(InputError, match="does not fit the teacher's context of 2048 tokens"):
        teacher.write(TASKS["LaMP_3"], [[*items, long]], Sampling())


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("gpt", "expected pocket"),
        ("hf:", "expected pocket"),
        ("openai:localhost#m", "openai:<base-url>#<model>"),
        ("openai:http://localhost/v1", "openai:<base-url>#<model>"),
        ("hf:./nowhere", "no such directory"),
    ],
)
def test_teacher_options_that_name_nothing_are_refused(spec: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        open_teacher(spec, threads=1)


def test_settings_out_of_range_are_all_named_at_once() -> None:
    with pytest.raises(InputError, match=r"per_real is -1.*top_p is 2"):
        AugmentConfig(per_real=-1, top_p=2)


def test_third_party_teachers_need_consent(tmp_path: Path, small_profile: Artifact) -> None:
    teacher = open_teacher("openai:https://api.example.com/v1#m", threads=1)
    with pytest.raises(InputError, match="consent does not allow a third-party teacher"):
        augment(small_profile, teacher, tmp_path / "d", AugmentConfig())
    assert open_artifact(small_profile.path).config["consent"]["third_party"] is False
