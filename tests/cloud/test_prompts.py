"""What teachers are asked, in both forms, and that answers are read strictly and never repaired."""

import json

import pytest

from cloud.profiles import Item
from cloud.prompts import Ask, chat, continuation, read_chat, read_continuation
from cloud.tasks import TASKS, custom_task
from protos.errors import InputError

HEADLINE, RATING = TASKS["LaMP_4"], TASKS["LaMP_3"]
MILL = Item("1", "The old mill\nburned down.", "Fire takes the old mill")
SNOW = Item("2", "Two schools close because of snow.", "Snow shuts two schools")
NEW = Ask("new", (MILL, SNOW), count=3)
LABEL = Ask("label", (Item("1", "Nice.", "4"),), output="4", count=2)
PARAPHRASE = Ask("paraphrase", (MILL,), text=SNOW.input, output=SNOW.output)
VOTE = Ask("vote", (Item("1", "Nice.", "4"),), text="Awful.")
OUTPUT = Ask("output", (MILL,), text=SNOW.input)
JUDGE = Ask("judge", (MILL,), text=SNOW.input, output=SNOW.output)


def test_a_continuation_shows_blocks_and_stops_where_the_model_goes_on() -> None:
    assert continuation(HEADLINE, NEW) == (
        "Article: The old mill burned down.\nHeadline: Fire takes the old mill\n\n"
        "Article: Two schools close because of snow.\nHeadline: Snow shuts two schools\n\nArticle:"
    )
    assert continuation(RATING, VOTE) == "Review: Nice.\nScore: 4\n\nReview: Awful.\nScore:"
    assert continuation(RATING, LABEL) == "Score: 4\nReview: Nice.\n\nScore: 4\nReview:"
    assert continuation(HEADLINE, OUTPUT).endswith(f"\n\nArticle: {SNOW.input}\nHeadline:")
    assert continuation(HEADLINE, PARAPHRASE).endswith("Headline: Snow shuts two schools\nArticle:")
    with pytest.raises(InputError, match="a judge has to be a chat model"):
        continuation(HEADLINE, JUDGE)


def test_a_continuation_is_read_back_strictly() -> None:
    assert read_continuation(HEADLINE, NEW, " a\nHeadline: b\n\n") == [("a", "b")]
    for garbage in ("", " a\n\n", " a\nHeadline: b", " a\nHeadline: \n\n", " a\nScore: 3\n\n",
                    " a\nHeadline:   \n\n", "  \nHeadline: b\n\n"):  # fmt: skip
        assert read_continuation(HEADLINE, NEW, garbage) == [None]
    assert read_continuation(RATING, VOTE, " 4\n\nReview: more") == [("Awful.", "4")]
    assert read_continuation(RATING, LABEL, " Good.\n\n") == [("Good.", "4")]
    assert read_continuation(HEADLINE, PARAPHRASE, " Shut.\n\n") == [("Shut.", SNOW.output)]
    assert read_continuation(HEADLINE, OUTPUT, " Shut.\n\n") == [(SNOW.input, "Shut.")]
    for garbage in ("", "4\n", " 4", "\n", "  \n"):
        assert read_continuation(RATING, VOTE, garbage) == [None]


def test_a_chat_holds_the_items_the_task_and_the_wish() -> None:
    system, user = chat(RATING, LABEL)
    assert system["role"] == "system"
    assert '{"input": "Nice.", "output": "4"}' in user["content"]
    assert RATING.query("<input>") in user["content"]
    assert "reviews, and the stars this person gives" in user["content"]
    assert "output is exactly: 4\nAnswer with 2 lines" in user["content"]
    assert "Write 3 new examples" in chat(HEADLINE, NEW)[1]["content"]
    labels = chat(RATING, Ask("new", LABEL.shots, count=1))[1]["content"]
    assert "The output is one of: 1, 2, 3, 4, 5." in labels
    rewritten = json.dumps({"input": SNOW.input, "output": SNOW.output})
    assert rewritten in chat(HEADLINE, PARAPHRASE)[1]["content"]
    assert rewritten in chat(HEADLINE, JUDGE)[1]["content"]


def test_a_vote_is_asked_without_the_label_that_is_claimed() -> None:
    asked = json.dumps(chat(RATING, Ask("vote", LABEL.shots, text="Awful.")))
    assert "Awful." in asked
    assert asked.count('\\"output\\": ') == 1, "only the example's own"


def test_a_held_out_question_is_asked_as_the_phone_is_asked_and_read_as_it_is_said() -> None:
    query = RATING.query("Awful.")
    ask = Ask("answer", VOTE.shots, text=query)
    said = chat(RATING, ask)[1]["content"]
    assert f"This person is now asked: {query}\nAnswer exactly as" in said
    assert continuation(RATING, ask) == continuation(RATING, VOTE)
    assert read_chat(RATING, ask, " four\nstars ") == [(query, "four\nstars")]
    assert read_continuation(RATING, ask, " 4\n\n") == [(query, "4")]
    for garbage in ("", " \n", "a\ud800"):
        assert read_chat(RATING, ask, garbage) == [None]
    tweet = Ask("answer", (MILL,), text="Paraphrase the following tweet")
    assert continuation(TASKS["LaMP_7"], tweet).endswith(
        "Beginning: Paraphrase the following tweet\nTweet:"
    ), "a question in a form of its own stays whole"


def test_a_chat_answer_is_read_line_by_line_and_never_repaired() -> None:
    answer = '```json\n{"input": "a", "output": 5}\n{"input": "b"}\nsorry\n```'
    assert read_chat(RATING, NEW, answer) == [("a", "5"), None, None]
    assert read_chat(RATING, NEW, "") == [None]
    for garbage in (
        '[{"input": "a", "output": "b"}]', '{"input": "a", "output": true}',
        '{"input": "a", "output": "b", "why": "c"}', '{"input": " ", "output": "b"}',
        '{"input": "a\\ud800", "output": "b"}', "[" * 100_000, '{"input": ["a"], "output": "b"}',
        f'{{"input": "a", "output": {"9" * 5000}}}',
    ):  # fmt: skip
        assert read_chat(HEADLINE, NEW, garbage) == [None]
    two = '{"input": "a", "output": 4}\n{"input": "b", "output": "5"}'
    assert read_chat(RATING, LABEL, two) == [("a", "4"), None]
    assert read_chat(HEADLINE, PARAPHRASE, '{"input": "Shut."}') == [("Shut.", SNOW.output)]
    assert read_chat(HEADLINE, PARAPHRASE, '{"input": "Shut.", "output": "Else"}') == [None]


def test_votes_and_marks_are_one_word_or_nothing() -> None:
    assert read_chat(RATING, VOTE, " 4\n") == [("Awful.", "4")]
    assert read_chat(HEADLINE, JUDGE, "5") == [(SNOW.input, "5")]
    for garbage in ("I think 4", "6", "", "4.0"):
        assert read_chat(RATING, VOTE, garbage) == [None]
        assert read_chat(HEADLINE, JUDGE, garbage) == [None]


def test_an_output_asked_for_alone_is_read_as_strictly() -> None:
    asked = chat(HEADLINE, OUTPUT)[1]["content"]
    assert f"person's output for {json.dumps({'input': SNOW.input})}?" in asked
    said = '{"output": "Snow shuts schools"}'
    assert read_chat(HEADLINE, OUTPUT, f"```json\n{said}\n```") == [
        (SNOW.input, "Snow shuts schools")
    ]
    whole = json.dumps({"input": SNOW.input, "output": "Snow"})
    for garbage in (" \n", "Snow shuts schools", said[:-2], whole, '{"output": "Sn\ufffd"}'):
        assert read_chat(HEADLINE, OUTPUT, garbage) == [None]


@pytest.mark.parametrize("name", TASKS)
def test_every_task_can_be_asked_in_both_forms(name: str) -> None:
    task = TASKS[name]
    output = task.labels[0] if task.labels else "one two three"
    ask = Ask("new", (Item("1", "one two", output),), count=2)
    assert task.about in chat(task, ask)[1]["content"]
    assert task.about
    block = f"{task.input_name}: new\n{task.output_name}: {output}\n\n"
    asked = continuation(task, ask)
    assert (asked + block.removeprefix(f"{task.input_name}:")).endswith(block)
    read = read_continuation(task, ask, block.removeprefix(f"{task.input_name}:"))
    assert read == [("new", output)]


def test_a_task_of_ones_own_is_asked_with_its_own_prompt() -> None:
    own = custom_task("x", "rating", "How warm is {input}?", ())
    assert "How warm is <input>?" in chat(own, VOTE)[1]["content"]
    assert "one of: 1, 2, 3, 4, 5" in chat(own, VOTE)[1]["content"]
