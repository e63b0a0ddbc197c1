"""Teachers over HTTP that misbehave, and local ones; both with real servers and real models."""

import json
import time
from collections.abc import Iterator
from itertools import islice, pairwise, product
from pathlib import Path
from typing import Any

import pytest

from cloud.answers import Answers
from cloud.profiles import Item
from cloud.prompts import Ask
from cloud.tasks import TASKS
from cloud.teachers import GREEDY, Calls, Reply, Sampling, open_teacher
from protos.artifacts import read_json
from protos.base_model import load_tokenizer
from protos.errors import InputError, TeacherError

HEADLINE, RATING = TASKS["LaMP_4"], TASKS["LaMP_3"]
SHOTS = (Item("1", "Nice.", "4"), Item("2", "Awful food, long wait.", "1"))
ASKS = [Ask("new", SHOTS, count=5, seed=seed) for seed in range(6)]
QUICK = Calls(timeout_s=5, retries=2)


def replies(chat, asks=ASKS, calls=QUICK) -> list[Reply]:
    found = dict(open_teacher(chat.spec, 1, calls).write(RATING, asks, Sampling()))
    return [found[index] for index in range(len(asks))]


def test_replies_belong_to_their_requests_and_no_more_are_under_way_than_allowed(chat) -> None:
    chat.seconds = 0.1
    chat.say = lambda message, number: str(chat.bodies[number]["seed"])
    found = replies(chat, calls=Calls(concurrency=3))
    assert [reply.text for reply in found] == [str(ask.seed) for ask in ASKS]
    assert chat.most_at_once == 3
    assert {reply.prompt_tokens for reply in found} == {100}
    assert chat.bodies[0]["model"] == "small"


def test_what_may_pass_is_tried_again(chat) -> None:
    answers = {0: 429, 1: 500, 2: 503}
    chat.say = lambda message, number: answers.get(number, "there")
    assert [r.text for r in replies(chat, ASKS[:1], Calls(retries=3))] == ["there"]
    assert len(chat.bodies) == 4


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (401, "AuthenticationError"),
        (500, "InternalServerError"),
        (404, "NotFoundError"),
        (b"<html>Welcome to the proxy</html>", "openai:http"),
        (b'{"choices": 7}', "no chat completion; is the address right"),
        (b'"text"', "no chat completion"),
    ],
)
def test_a_server_that_refuses_or_is_no_teacher_is_one_clear_error(chat, answer, says) -> None:
    chat.say = lambda message, number: answer
    with pytest.raises(TeacherError, match=says) as caught:
        replies(chat, ASKS[:1], Calls(retries=0))
    assert "\n" not in str(caught.value)


def test_a_server_that_hangs_is_given_up_and_one_that_is_not_there_too(chat) -> None:
    chat.say = lambda message, number: None
    with pytest.raises(TeacherError, match="APITimeoutError"):
        replies(chat, ASKS[:1], Calls(timeout_s=0.2, retries=1))
    assert len(chat.bodies) == 2
    with pytest.raises(TeacherError, match="APIConnectionError"):
        list(open_teacher("openai:http://127.0.0.1:9/v1#m", 1, Calls(retries=0)).write(
            RATING, ASKS[:1], Sampling()))  # fmt: skip


def completion(**choice: Any) -> dict[str, Any]:
    whole = {"index": 0, "finish_reason": "stop", **choice}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [whole]}


def message(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def error(code: str, text: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": text, "type": None, "param": "prompt"}}


AZURE = "The response was filtered due to the prompt triggering the content management policy."
MODERATED = "Your chosen model requires moderation and your input was flagged"
REFUSALS = [
    {**completion(), "choices": []},
    {**completion(), "choices": [7]},
    completion(message=None),
    completion(message=message([{"type": "text"}]), usage="many"),
    completion(message=message(None, refusal="I will not."), finish_reason="content_filter"),
    completion(message=message('{"input": "a", "output": "5"}'), finish_reason="content_filter"),
    (400, error("content_filter", AZURE)),
    (400, error("content_policy_violation", "Your request was rejected by our safety system.")),
    (403, error("403", MODERATED)),
    (422, {"detail": "Output blocked by content filtering policy"}),
]


@pytest.mark.parametrize("answer", REFUSALS)
def test_a_refusal_is_a_reply_without_words_and_others_are_answered(chat, answer) -> None:
    chat.say = lambda message, number: answer if chat.bodies[number]["seed"] == 2 else "4"
    found = replies(chat, calls=Calls(retries=0))
    assert [reply.text for reply in found] == ["4", "4", "", "4", "4", "4"]
    assert open_teacher(chat.spec, 1).read(RATING, ASKS[0], "") == [None]
    assert len(chat.bodies) == 6, "it is not asked again"


@pytest.mark.parametrize(
    "answer",
    [
        (401, error("invalid_api_key", "Incorrect API key; see our content policy")),
        (403, error("403", "Your account was flagged")),
        (400, error("context_length_exceeded", "The context has 8192 tokens")),
        (400, error("model_not_found", "no such model")),
    ],
)
def test_what_concerns_every_request_ends_the_run(chat, answer) -> None:
    chat.say = lambda message, number: answer
    with pytest.raises(TeacherError, match=answer[1]["error"]["message"]):
        replies(chat, calls=Calls(retries=0))


def unsupported(name: str, text: str, code: str = "unsupported_parameter") -> tuple[int, Any]:
    return 400, {"error": {"code": code, "message": text, "param": name, "type": "invalid"}}


USE_NEW = "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
ONLY_DEFAULT = (
    "'temperature' does not support 0.5 with this model. Only the default (1) is supported."
)


def reasoning(body: dict[str, Any]) -> Any:
    """As servers of reasoning models answer: one complaint at a time."""
    if "max_tokens" in body:
        return unsupported("max_tokens", USE_NEW)
    for name in ("temperature", "top_p"):
        if name in body:
            return unsupported(name, ONLY_DEFAULT.replace("temperature", name), "unsupported_value")
    return "4"


def test_a_parameter_that_a_server_does_not_take_is_left_out_and_counted(chat, tmp_path) -> None:
    chat.say = lambda message, number: reasoning(chat.bodies[number])
    teacher, answers = (
        open_teacher(chat.spec, 1, Calls(retries=0, concurrency=1)),
        Answers(tmp_path),
    )
    found = answers.of(teacher, RATING, ASKS, Sampling(temperature=0.5))
    assert {(reply.text, reply.without) for reply in found} == {("4", "top_p,temperature")}
    assert len(chat.bodies) == 3 + 6, "each is refused once"
    assert set(chat.bodies[-1]) == {"model", "messages", "seed", "max_completion_tokens"}
    assert answers.without == {teacher.name: {"top_p": 6, "temperature": 6}}
    again = Answers(tmp_path)
    again.of(teacher, RATING, ASKS, Sampling(temperature=0.5))
    assert again.without == answers.without


@pytest.mark.parametrize(
    ("answer", "left_out"),
    [
        ((400, error("400", "Extra inputs are not permitted: seed")), "seed"),
        ((422, {"detail": "unknown field `top_p`"}), "top_p"),
        ((400, error("x", "`temperature` and `top_p` cannot both be specified")), "top_p"),
        (
            (400, error("x", "you requested 9000 tokens (100 in the completion)")),
            "max_tokens",
        ),
        ((400, error("x", "'max_tokens' is too large: 4096")), "max_tokens"),
    ],
)
def test_parameters_are_known_by_what_servers_say_of_them(chat, answer, left_out: str) -> None:
    chat.say = lambda message, number: answer if left_out in chat.bodies[number] else "4"
    found = replies(chat, ASKS[:2], Calls(retries=0, concurrency=1))
    assert [reply.without for reply in found] == [left_out] * 2


def test_an_answer_has_a_bound_by_what_is_asked_for_or_by_the_option(chat) -> None:
    chat.say = lambda message, number: "4"
    replies(chat, [ASKS[0], Ask("vote", SHOTS, text="Fine.")])
    longest = len("Awful food, long wait.") + len("1")
    assert {body["max_tokens"] for body in chat.bodies} == {4096 + 5 * longest, 4096 + longest}
    chat.bodies.clear()
    bounded = Calls(retries=0, max_answer_tokens=50)
    replies(chat, ASKS[:1], bounded)
    assert chat.bodies[0]["max_tokens"] == 50
    plain, cheap = open_teacher(chat.spec, 1), open_teacher(chat.spec, 1, bounded)
    assert plain.digest != cheap.digest, "an answer that was cut is not that of another bound"
    chat.say = lambda message, number: unsupported("max_tokens", "max_tokens is not supported")
    with pytest.raises(TeacherError, match="max_tokens is not supported"):
        replies(chat, ASKS[:1], bounded)


def test_a_parameter_of_a_wrong_value_ends_the_run(chat) -> None:
    chat.say = lambda message, number: unsupported("temperature", "must be 2 at most", "invalid")
    with pytest.raises(TeacherError, match="must be 2 at most"):
        replies(chat, ASKS[:1], Calls(retries=0))


def test_of_an_answer_that_was_cut_off_what_is_whole_is_read_and_the_rest_counted(chat) -> None:
    text = '{"input": "Nice.", "output": "4"}\n{"input": "Aw'
    chat.say = lambda said, number: completion(message=message(text), finish_reason="length")
    (reply,) = replies(chat, ASKS[:1])
    assert (reply.text, reply.cut) == (text, True)
    assert open_teacher(chat.spec, 1).read(RATING, ASKS[0], reply.text) == [("Nice.", "4"), None]


def test_half_a_character_is_stored_and_what_holds_it_is_not_read(chat, tmp_path) -> None:
    """An emoji that a token limit has cut comes as a lone surrogate, which no file can hold."""
    lines = '{"input": "Nice.", "output": "4"}', '{"input": "A \ud83d", "output": "4"}'
    chat.say = lambda said, number: "\n".join([*lines, '{"input": "ok \ud83d'])
    teacher = open_teacher(chat.spec, 1)
    found = Answers(tmp_path).of(teacher, RATING, ASKS[:1], Sampling())
    assert teacher.read(RATING, ASKS[0], found[0].text) == [("Nice.", "4"), None, None]
    assert found[0].text.endswith("ok \ufffd")
    assert Answers(tmp_path).of(teacher, RATING, ASKS[:1], Sampling()) == found
    assert len(chat.bodies) == 1


def without_end() -> Iterator[bytes]:
    while True:
        yield b" "
        time.sleep(0.02)


def too_large() -> Iterator[bytes]:
    while True:
        yield b" " * (1 << 20)


@pytest.mark.parametrize("endless", [lambda: None, without_end, too_large])
def test_an_answer_without_end_is_given_up_where_others_come(chat, endless) -> None:
    chat.say = lambda message, number: endless() if chat.bodies[number]["seed"] == 2 else "4"
    found = replies(chat, calls=Calls(timeout_s=3.0, retries=1, concurrency=2))
    assert [reply.text for reply in found] == ["4", "4", "", "4", "4", "4"]
    assert [reply.cut for reply in found] == [False, False, True, False, False, False]
    assert len(chat.bodies) == 7, "it is asked once more"
    chat.say = lambda message, number: endless()
    with pytest.raises(TeacherError, match="APITimeoutError"):
        replies(chat, calls=Calls(timeout_s=0.3, retries=0))


def test_after_a_failure_nothing_new_is_sent_and_what_was_under_way_is_not_lost(chat) -> None:
    chat.seconds = 0.05
    chat.say = lambda message, number: 401 if number == 1 else "paid"
    got: list[int] = []
    asks = [Ask("new", SHOTS, seed=seed) for seed in range(30)]
    written = open_teacher(chat.spec, 1, Calls(concurrency=2)).write(RATING, asks, Sampling())
    with pytest.raises(TeacherError):
        got.extend(index for index, _ in written)
    assert len(got) == len(chat.bodies) - 1
    assert len(chat.bodies) < 6


def test_requests_and_tokens_keep_to_the_pace(chat) -> None:
    chat.say = lambda message, number: "ok"
    teacher = open_teacher(chat.spec, 1, Calls(requests_per_minute=600))
    for some in (ASKS[:3], ASKS[3:4]):  # also from one round to the next
        list(teacher.write(RATING, some, Sampling()))
    assert min(b - a for a, b in pairwise(sorted(chat.times))) > 0.08  # a tenth of a second each
    chat.times.clear()
    chat.usage = {"prompt_tokens": 3000, "completion_tokens": 0, "total_tokens": 3000}
    replies(chat, ASKS[:3], Calls(tokens_per_minute=600_000, concurrency=1))
    # 3000 tokens are 0.3 s at this pace, however few were guessed from the request's size
    assert min(b - a for a, b in pairwise(chat.times)) > 0.25


def test_what_waits_for_its_turn_is_not_sent_after_a_failure(chat) -> None:
    chat.say = lambda message, number: 401
    slow = Calls(requests_per_minute=4, concurrency=4)  # the second would leave after 15 s
    with pytest.raises(TeacherError, match="AuthenticationError"):
        replies(chat, ASKS, slow)
    assert len(chat.bodies) == 1


def test_each_answer_is_stored_as_it_arrives_and_never_asked_for_again(chat, tmp_path) -> None:
    chat.say = lambda message, number: 401 if number == 3 else f"answer {number}"
    teacher = open_teacher(chat.spec, 1, Calls(concurrency=1))
    with pytest.raises(TeacherError):
        Answers(tmp_path).of(teacher, RATING, ASKS, Sampling())
    assert len(list(tmp_path.glob("one-*.json"))) == 3
    (tmp_path / "one-half.partial").write_text('{"kil')  # as a killed process leaves it
    chat.say = lambda message, number: f"answer {number}"
    answers = Answers(tmp_path)
    found = answers.of(teacher, RATING, ASKS, Sampling())
    assert [reply.text for reply in found] == [f"answer {n}" for n in (0, 1, 2, 4, 5, 6)]
    assert len(chat.bodies) == 7
    (stored,) = tmp_path.glob("*.json")
    assert stored.name.startswith("round-")
    assert len(read_json(stored)) == 6
    assert Answers(tmp_path).of(teacher, RATING, ASKS, Sampling()) == found
    assert len(chat.bodies) == 7
    Answers(tmp_path).of(teacher, RATING, ASKS[:1], Sampling(temperature=0.5))
    assert len(chat.bodies) == 8, "another temperature is another question"
    spent = answers.spent[teacher.name]
    assert (spent.calls, spent.prompt_tokens, spent.completion_tokens) == (6, 600, 120)


def test_what_is_asked_twice_at_once_is_sent_and_counted_once(chat, tmp_path) -> None:
    chat.say = lambda message, number: str(chat.bodies[number]["seed"])
    answers, teacher = Answers(tmp_path), open_teacher(chat.spec, 1)
    asks = [ASKS[4], ASKS[5], ASKS[4], ASKS[4]]
    found = answers.of(teacher, RATING, asks, Sampling())
    assert [reply.text for reply in found] == ["4", "5", "4", "4"]
    assert len(chat.bodies) == answers.spent[teacher.name].calls == 2


def test_accounts_know_what_was_not_counted() -> None:
    assert Calls(price_in=2.0, price_out=10.0).cost(1_000_000, 100_000) == 3.0
    with pytest.raises(InputError, match=r"concurrency is 0.*price_in is -1"):
        Calls(concurrency=0, price_in=-1)


def test_a_server_that_counts_no_tokens_is_noted(chat, tmp_path) -> None:
    chat.usage, chat.say = None, lambda message, number: "x"
    answers = Answers(tmp_path)
    answers.of(open_teacher(chat.spec, 1), RATING, ASKS[:2], Sampling())
    assert answers.spent[chat.spec].uncounted == 2


@pytest.mark.parametrize("kind", ["new", "paraphrase", "label", "vote", "output", "answer"])
def test_local_models_answer_every_kind_of_request(plain_base, chatty_base, kind) -> None:
    ask = Ask(kind, SHOTS, text="Fine.", output="4", seed=3)
    for base in (plain_base, chatty_base):
        teacher = open_teacher(f"hf:{base}", threads=1)
        ((index, reply),) = teacher.write(RATING, [ask], Sampling())
        assert index == 0
        assert reply.prompt_tokens is not None
        assert reply.completion_tokens is not None
        assert teacher.read(RATING, ask, reply.text), "random weights say nothing that parses"


def test_a_local_model_says_the_same_again_also_for_the_rest_of_a_run(chatty_base, tmp_path):
    asks = [Ask("new", SHOTS[: 1 + n % 2], count=1, seed=n) for n in range(34)]
    teacher = open_teacher(f"hf:{chatty_base}", threads=1)
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole = Answers(tmp_path / "whole").of(teacher, RATING, asks, Sampling())
    cut, write = open_teacher(f"hf:{chatty_base}", threads=1), teacher.write

    def interrupted(*given):
        yield from islice(write(*given), 17)  # one batch of two
        raise KeyboardInterrupt

    cut.write = interrupted
    with pytest.raises(KeyboardInterrupt):
        Answers(tmp_path / "cut").of(cut, RATING, asks, Sampling())
    assert Answers(tmp_path / "cut").of(teacher, RATING, asks, Sampling()) == whole
    assert len({reply.text for reply in whole}) > 30


@pytest.mark.parametrize("base", ["plain_base", "chatty_base"])
@pytest.mark.parametrize("kind", ["vote", "answer", "new"])
def test_items_that_many_requests_show_are_read_once_and_answers_stay(request, base, kind) -> None:
    import torch

    from protos.base_model import load_model

    teacher = open_teacher(f"hf:{request.getfixturevalue(base)}", threads=1)
    teacher._model = model = load_model(teacher.base, torch.float32)
    read: list[int] = []
    model.register_forward_pre_hook(
        lambda _, __, given: read.append(given["input_ids"].numel()), with_kwargs=True
    )
    texts = ["Fine.", "Long wait, good soup.", "No."]
    shown = [SHOTS * 2, SHOTS * 3, SHOTS[::-1] * 2]  # of different lengths, the last one once
    asks = [
        Ask(kind, shown[n % 2] if n else shown[2], text=texts[n % 3] + "!" * n, seed=n)
        for n in range(17)
    ]
    alone = [next(teacher.write(RATING, [ask], GREEDY))[1] for ask in asks]
    read.clear()
    together = dict(teacher.write(RATING, asks, GREEDY))
    assert [together[index].text for index in range(17)] == [reply.text for reply in alone]
    assert sum(read[:2]) < sum(reply.prompt_tokens for reply in alone) / 2


def test_at_temperature_nought_a_local_model_says_what_is_likeliest(plain_base: Path) -> None:
    import torch

    from protos.base_model import load_model

    teacher = open_teacher(f"hf:{plain_base}", threads=1)
    greedy = Sampling(temperature=0.0, top_p=1.0)
    asks = [Ask("answer", SHOTS, text=RATING.query("Fine."), seed=seed) for seed in (1, 2)]
    one, other = (reply for _, reply in teacher.write(RATING, asks, greedy))
    assert one.text == other.text
    tokenizer = load_tokenizer(teacher.base)
    ids = list(tokenizer(teacher.prompt(RATING, asks[0]))["input_ids"])
    model = load_model(teacher.base, teacher._weights().dtype)
    with torch.inference_mode():
        first = int(model(torch.tensor([ids])).logits[0, -1].argmax())
    assert one.text.startswith(str(tokenizer.decode([first], skip_special_tokens=True)))


def test_of_a_local_model_it_is_known_whether_an_answer_was_at_its_end(chatty_base, plain_base):
    for base, goes_on_after_a_blank_line in ((chatty_base, True), (plain_base, False)):
        teacher = open_teacher(f"hf:{base}", threads=1)
        tokenizer = load_tokenizer(teacher.base)
        pad, end = tokenizer.pad_token_id or 0, tokenizer.eos_token_id
        word = tokenizer("news", add_special_tokens=False)["input_ids"][0]
        blank = list(tokenizer("news\n\n", add_special_tokens=False)["input_ids"])

        def cut(row: list[int], room: int, teacher=teacher, pad=pad) -> bool:
            return teacher._reply(9, row, pad, room).cut

        assert cut([word] * 4, 4)
        assert not cut([word] * 4, 5), "nobody in the batch needed all of the room"
        assert not cut([word, word, word, end], 4)
        assert not cut([word, end, pad, pad], 4)
        assert cut(blank, len(blank)) == goes_on_after_a_blank_line


def test_a_long_item_is_left_out_where_others_fit_and_an_error_where_none_does(chatty_base):
    teacher = open_teacher(f"hf:{chatty_base}", threads=1)
    long = Item("3", "word " * 5000, "3")
    assert len(list(teacher.write(RATING, [Ask("new", (*SHOTS, long))], Sampling()))) == 1
    with pytest.raises(InputError, match="does not fit the teacher's context of 2048 tokens"):
        list(teacher.write(RATING, [Ask("new", (long,))], Sampling()))
    longer = Item("4", "word " * 6000, "3")
    for kind, shots in product(("output", "answer", "vote", "judge"), (SHOTS, (longer,))):
        asked = [Ask(kind, shots, text=RATING.query(long.input), output="3"),
                 Ask(kind, SHOTS, text=RATING.query("Fine."), output="3")]  # fmt: skip
        found = dict(teacher.write(RATING, asked, Sampling()))
        assert found[0] == Reply(""), "what does not fit is not answered, and others are"
        assert found[1].completion_tokens


def test_room_for_an_output_does_not_take_that_of_long_inputs(chatty_base: Path) -> None:
    """Three inputs of a quarter of the context are shown, since only outputs are written."""
    teacher = open_teacher(f"hf:{chatty_base}", threads=1)
    word = len(teacher._words(["word " * 100])["input_ids"][0]) / 100
    text = "word " * int(teacher.base.max_positions / 4 / word)
    shots = tuple(Item(str(number), text, "A short title") for number in range(3))
    for kind in ("output", "answer"):
        ask = Ask(kind, shots, text="Fine.")
        ((_, reply),) = teacher.write(HEADLINE, [ask], GREEDY)
        assert reply.prompt_tokens == len(teacher._ids(HEADLINE, ask))


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


def test_a_judge_without_a_chat_template_is_refused(plain_base: Path) -> None:
    teacher = open_teacher(f"hf:{plain_base}", threads=1)
    with pytest.raises(InputError, match="judge has to be a chat model"):
        list(teacher.write(HEADLINE, [Ask("judge", SHOTS, "a", "b")], Sampling()))


def test_what_would_be_sent_is_what_is_sent(chat) -> None:
    teacher = open_teacher(chat.spec, 1)
    replies(chat, ASKS[:1])
    assert chat.bodies[0]["messages"] == teacher.prompt(RATING, ASKS[0])
    assert json.dumps({"input": "Nice.", "output": "4"}) in chat.asked[0]
