"""Prompts with the user's items, against LaMP's forms by hand and for a real tokenizer's budget."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cloud.evaluation.retrieval import check, nearest, with_items
from cloud.profiles import Item, Question
from cloud.tasks import TASKS, custom_task
from protos.base_model import load_tokenizer, open_base
from protos.errors import InputError

FIRST, SECOND = Item("1", "old mill burned", "Fire"), Item("2", "snow fell", "Snow")
CITATION = (
    'For an author who has written the paper with the title "Cats", which reference is related? '
    'Just answer with [1] or [2] without explanation. [1]: "Dogs bark" [2]: "Snow title"'
)
FORMS = {
    "LaMP_1": (CITATION, CITATION.replace("the title ", 'the title, and "Fire", and "Snow" ')),
    "LaMP_2": ("Q", 'the tag for the movie: "old mill burned" is "Fire", and '
                    'the tag for the movie: "snow fell" is "Snow". Q'),
    "LaMP_2N": ("Q", 'the category for the article: "old mill burned" is "Fire", and '
                     'the category for the article: "snow fell" is "Snow". Q'),
    "LaMP_3": ("Q", 'Fire is the score for "old mill burned", and '
                    'Snow is the score for "snow fell". Q'),
    "LaMP_4": ("Q", '"Fire" is the title for "old mill burned", and '
                    '"Snow" is the title for "snow fell". Q'),
    "LaMP_5": ("Q", '"Fire" is a title for "old mill burned", and '
                    '"Snow" is a title for "snow fell". Following the given patterns Q'),
    "LaMP_6": ("Q", '"Fire" is the title for "old mill burned", and '
                    '"Snow" is the title for "snow fell". Q'),
    "LaMP_7": ("Q", '"Fire" are written by a person, and "Snow" are written by a person. '
                    "Following the given patterns Q"),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path):
    return load_tokenizer(open_base(str(tiny_base)))


@pytest.mark.parametrize("name", FORMS)
def test_items_stand_in_the_prompt_in_lamps_own_form(name: str, tokenizer) -> None:
    query, wanted = FORMS[name]
    assert with_items(TASKS[name], query, [FIRST, SECOND], tokenizer, 1000) == wanted


def test_every_lamp_task_has_a_form_and_others_one_with_their_own_word(tokenizer) -> None:
    assert set(FORMS) == {name for name in TASKS if name.startswith("LaMP_")}
    own = replace(custom_task("mails", "generation", "{input}", ()), output_name="Subject")
    made = with_items(own, "Q", [FIRST], tokenizer, 1000)
    assert made == '"Fire" is the subject for "old mill burned". Q'
    formed = replace(own, item_form="{input}: {output}", items_end="! ")
    made = with_items(formed, "Q", [FIRST, SECOND], tokenizer, 1000)
    assert made == "old mill burned: Fire, and snow fell: Snow! Q"


def test_without_the_extra_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rank_bm25", None)
    with pytest.raises(InputError, match=r"need pip install 'pocketune\[eval\]'"):
        check()


def test_items_share_the_tokens_evenly_and_what_one_leaves_goes_to_the_next(tokenizer) -> None:
    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    def shown(made: str, item: Item) -> int:
        inside = made.split(f'"{item.output}" is the title for "')[1].split('"')[0]
        return count(inside)

    long = [Item(str(n), f"{word} " * 300, f"T{n}") for n, word in enumerate(("ab", "cd"))]
    alike = with_items(TASKS["LaMP_4"], "Q", long, tokenizer, 120)
    first, second = shown(alike, long[0]), shown(alike, long[1])
    assert abs(first - second) <= 1
    assert 40 < first + second < 120
    assert 105 < count(alike) <= 122
    brief = [Item("0", "ab", "T0"), long[1]]
    mixed = with_items(TASKS["LaMP_4"], "Q", brief, tokenizer, 120)
    assert '"T0" is the title for "ab"' in mixed
    assert shown(mixed, long[1]) > second + 20
    assert 105 < count(mixed) <= 122


def test_a_long_question_keeps_three_fifths_and_a_short_one_all_of_itself(tokenizer) -> None:
    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    item = Item("0", "ab " * 300, "T0")
    made = with_items(TASKS["LaMP_4"], "word " * 200, [item], tokenizer, 100)
    kept = made.split(". ")[1]
    assert 55 <= count(kept) <= 60
    assert count(made) <= 102
    short = with_items(TASKS["LaMP_4"], "one word", [item], tokenizer, 100)
    assert short.endswith(". one word")
    assert 85 <= count(short) <= 102


def test_without_room_for_an_item_the_question_stands_alone(tokenizer) -> None:
    assert with_items(TASKS["LaMP_4"], "one", [FIRST, SECOND], tokenizer, 12) == "one"
    assert with_items(TASKS["LaMP_4"], "one", [], tokenizer, 50) == "one"


def test_the_nearest_items_share_rare_words_with_the_question() -> None:
    items = [
        Item("a", "the snow fell on the town", "x"),
        Item("b", "the mayor spoke in the town hall", "y"),
        Item("c", "the cat sat on the mat", "z"),
        Item("d", "the dog ran", "w"),
    ]
    question = Question("q", "?", "snow in the mountains fell", None)
    found = nearest(TASKS["LaMP_3"], question, items, 2)
    assert [item.id for item in found] == ["a", "b"]


def test_of_a_citation_the_two_references_are_looked_for_and_titles_are_looked_through() -> None:
    items = [Item("cats", "an abstract", "Cats"), Item("dogs", "bark loudly here", "On noise"),
             Item("x", "one", "two"), Item("y", "three", "four")]  # fmt: skip
    question = Question("q", CITATION, TASKS["LaMP_1"].question_input(CITATION), "[1]")
    assert nearest(TASKS["LaMP_1"], question, items, 1)[0].id == "dogs"


def test_of_items_that_are_equally_near_the_newest_come_first() -> None:
    items = [Item(str(n), f"word{n}", "x") for n in range(5)]
    found = nearest(TASKS["LaMP_3"], Question("q", "?", "nothing alike", None), items, 3)
    assert [item.id for item in found] == ["4", "3", "2"]
