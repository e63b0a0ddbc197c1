"""Each filter rejects what it is for, by name, and lets the rest through."""

import pytest
from rouge_score import rouge_scorer

from cloud.augment import split
from cloud.filters import Filters
from cloud.likeness import Manner, language, rouge_l, style, vector, words
from cloud.profiles import Item
from cloud.tasks import TASKS

HEADLINE, RATING = TASKS["LaMP_4"], TASKS["LaMP_3"]
REAL = [
    Item("1", "The old mill by the river burned down on Monday night.", "Fire takes the old mill"),
    Item("2", "Two schools in the valley close because of heavy snow.", "Snow shuts two schools"),
]
FRESH = ("A lorry full of oranges lost its load on the coast road.", "Oranges all over the road")


def filters() -> Filters:
    held_inputs = ["The swimming pool opens a week early thanks to the sun."]
    return Filters(HEADLINE, REAL, held_inputs, ["Pool opens early this year"])


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        (FRESH, None),
        ((REAL[0].input.upper() + " ", REAL[0].output), "duplicate"),
        (("The old mill by the lake burned down on Monday night.", "Mill gone"), "near-duplicate"),
        (("Short one.", "Oranges on the road"), "length"),
        ((FRESH[0], "A"), "length"),
        ((FRESH[0], "Pool opens early, this year!"), "leakage"),
        (
            ("The swimming pool opens a week late, no thanks to the sun.", "Pool opens very late"),
            "leakage",
        ),
    ],
)
def test_each_filter_has_its_name(pair: tuple[str, str], reason: str | None) -> None:
    assert filters().rejects(pair) == reason


def test_what_was_kept_counts_from_then_on_and_of_a_pair_one_stays() -> None:
    chosen = filters()
    near = (FRESH[0].replace("coast", "hill"), "Fruit all over the road")
    assert chosen.rejects(FRESH) is None
    assert chosen.rejects(FRESH) == "duplicate"
    assert chosen.rejects(near) is None, "what only passed the cheap filters blocks nothing yet"
    assert chosen.keep(FRESH) is None
    assert chosen.keep(near) == "near-duplicate"
    assert chosen.rejects((FRESH[0].replace("coast", "lake"), "Fruit")) == "near-duplicate"


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        # the held-out headline, word for word within the new article
        (("Today the pool opens early this year in the old town.", "Doors open now"), "leakage"),
        (("Ein Lastwagen verlor auf der Straße alle seine Orangen.", "Obst liegt auf der Straße"),
         "language"),
        (("这辆卡车在海边的路上丢失了所有的橙子和苹果，交通受阻。", "马路上满地都是橙子和苹果"),
         "language"),
        ((FRESH[0], "!!! 7 x 7 = 49 :-) !!! 99%"), "style"),
    ],
)  # fmt: skip
def test_leaks_in_either_part_and_other_languages_and_styles_are_found(pair, reason) -> None:
    assert filters().rejects(pair) == reason


REPORT = "Weekly report of the harbour"


@pytest.mark.parametrize(
    ("pair", "leaks"),
    [
        # the held-out input as an output, word for word, nearly, and as a part
        ((FRESH[0], "The swimming pool opens a week early thanks to the sun"), True),
        ((FRESH[0], "The swimming pool opens one week early thanks to sun"), True),
        ((FRESH[0], "Look: the swimming pool opens a week early thanks to the sun, at last"), True),
        # the held-out output as an input: nearly, and as a part
        (("Pool opens very early this year", "Oranges on the road"), True),
        (("It was said that pool opens early this year in the valley", "Oranges here"), True),
        # a short one with a word more, a word less, and one that differs: another story
        ((FRESH[0], "Pool opens early again this year"), True),
        ((FRESH[0], "Pool opens this year"), True),
        ((FRESH[0], "Zoo opens early this year"), False),
        # a part of the held-out input
        ((FRESH[0], "A week early thanks to the sun"), True),
        (("thanks to the sun", "Oranges all over the road"), True),
        (FRESH, False),
    ],
)
def test_a_held_out_text_leaks_into_either_part(pair: tuple[str, str], leaks: bool) -> None:
    assert filters().leaks(pair) == leaks


def test_what_two_of_the_users_own_outputs_have_in_common_is_no_leak() -> None:
    """ROUGE-L by hand: of 9 words 7 are the same between real ones and to the held-out one."""
    form = "Today the mayor of {} opens a new {}"
    own = [Item("1", REAL[0].input, form.format("Rome", "bridge"))]
    held_out = ["Today the mayor of Kyiv opens a new school"]
    near = (FRESH[0], form.format("Bern", "road"))
    assert Filters(HEADLINE, own, [], held_out).leaks(near)
    own.append(Item("2", REAL[1].input, form.format("Oslo", "pool")))
    chosen = Filters(HEADLINE, own, [], held_out)
    assert not chosen.leaks(near)
    assert chosen.leaks((FRESH[0], form.format("Kyiv", "road"))), "8 of 9 are more than the habit"


def test_labels_and_what_the_user_has_said_before_are_no_leaks() -> None:
    films = TASKS["LaMP_2"]
    label = "based on a book"
    chosen = Filters(films, [Item("1", REAL[0].input, label)], [f"A film {label}, and long."], [])
    assert not chosen.leaks((FRESH[0], label))
    own = [Item("1", REAL[0].input, REPORT), REAL[1]]
    assert not Filters(HEADLINE, own, [], [REPORT]).leaks((FRESH[0], REPORT))
    assert Filters(HEADLINE, REAL, [], [REPORT]).leaks((FRESH[0], REPORT))
    near = Filters(HEADLINE, own, [], [f"New {REPORT}"])
    assert not near.leaks((FRESH[0], REPORT)), "a paraphrase keeps it"
    assert near.leaks((FRESH[0], f"New {REPORT} now"))


CITED = (
    '"Sparse nets for road maps", which reference is related? Just answer with [1] or [2] without '
    'explanation. [1]: "Graphs for the "rapid" matching of many bird songs" '
    '[2]: "Cautious parsing of contracts"'
)


@pytest.mark.parametrize(
    ("title", "leaks"),
    [
        ("Graphs for the rapid matching of many bird songs", True),
        ("For the rapid matching of many bird songs: graphs", True),
        ("Graphs for the rapid matching of very many bird songs", True),
        ("Cautious parsing of contracts", True),
        ("Parsing of contracts, cautious", True),
        ("Nets for road maps, sparse", True),
        ("Cautious ranking of contracts", False),
        ("Trees for the slow matching of some fish songs", False),
        ("A map of the stars by night", False),
    ],
)
def test_titles_that_held_out_questions_quote_are_held_apart(title: str, leaks: bool) -> None:
    """A word moved or added makes no other title; one that differs does, in a short one."""
    cited = Filters(TASKS["LaMP_1"], REAL, [CITED], ["[1]"])
    assert cited.leaks((FRESH[0], title)) == leaks
    own = [Item("1", REAL[0].input, title), REAL[1]]
    assert not Filters(TASKS["LaMP_1"], own, [CITED], ["[1]"]).leaks((FRESH[0], title))


def test_an_output_that_comes_again_is_a_duplicate_unless_it_is_kept_or_a_habit() -> None:
    assert filters().rejects((FRESH[0], "fire takes the  OLD mill")) == "duplicate"
    assert filters().rejects((FRESH[0], REAL[0].output), output_stays=True) is None
    chosen = filters()
    other = ("Volunteers sorted wet books after a pipe had burst again.", FRESH[1])
    assert (chosen.rejects(FRESH), chosen.rejects(other)) == (None, None)
    assert (chosen.keep(FRESH), chosen.keep(other)) == (None, "duplicate")
    assert chosen.keep(other, output_stays=True) is None
    habit = [Item(str(n), item.input, REPORT) for n, item in enumerate(REAL)]
    chosen = Filters(HEADLINE, habit, [], [])
    assert (chosen.rejects((FRESH[0], REPORT)), chosen.keep((FRESH[0], REPORT))) == (None, None)
    rated = Filters(RATING, [Item("1", REAL[0].input, "4")], [], [])
    assert rated.rejects((FRESH[0], "4")) is None, "labels come again"


def test_tweets_are_compared_as_wholes() -> None:
    def tweet(text: str, words: int = 2) -> tuple[str, str]:
        return " ".join(text.split()[:words]), text

    own = "Good morning to all of you who feed the birds in the park"
    held = "Last train home again with rain on all of the dirty windows"
    tweets = [
        Item("1", *tweet(own)),
        Item("2", *tweet("I like trains more than anything else here")),
    ]
    said = "The author went home by the last train and saw rain on every window"
    chosen = Filters(TASKS["LaMP_7"], tweets, [tweet(held)[0], said], [held])
    # the question's text, and the answer with another beginning
    assert chosen.leaks(tweet(said))
    assert chosen.leaks(tweet(held.replace("Last train", "First bus")))
    assert not chosen.leaks(tweet("Last train was full of people who sang about the sea"))
    # the same beginning goes on otherwise; another one, and the rest is the same
    again = tweet("Good morning from a village where nobody is awake yet but me")
    assert chosen.rejects(again) is None
    assert chosen.rejects(tweet(own.replace("Good morning", "Good evening"))) == "near-duplicate"
    assert chosen.rejects(tweet(own, 3)) == "duplicate"


def test_personal_data_that_is_not_the_users_own_is_rejected() -> None:
    chosen = Filters(HEADLINE, REAL, [], [], is_personal=lambda text: "@" in text)
    assert chosen.rejects((FRESH[0].replace("coast", "a@b"), FRESH[1])) == "personal-data"


def test_a_tweet_has_to_begin_as_its_input_does() -> None:
    tweets = [
        Item("1", "Good morning", "Good morning to all of you"),
        Item("2", "I like", "I like trains"),
    ]
    chosen = Filters(TASKS["LaMP_7"], tweets, [], [])
    assert chosen.rejects(("What a", "What a day it was today")) is None
    assert chosen.rejects(("Such a", "What a fine day it was")) == "schema"
    assert chosen.rejects(("Never again", "Never again")) == "schema"


def test_a_language_is_only_named_where_it_is_sure() -> None:
    assert language(FRESH[0]) == "en"
    assert language("Fischer fanden an der Hafenmauer die Glocke eines alten Schiffes.") == "de"
    assert language("def f(x):\n    return x + 1") == ""
    assert language("") == ""


def test_a_users_manner_has_a_floor_below_all_but_their_oddest_texts() -> None:
    own = ["Oslo: 3 new boats", "Rome: 12 old cars", "Kyiv: 4 big trees", "Bern: 9 tall towers"]
    manner = Manner(own, style)
    assert all(manner.of(text) > manner.floor for text in own)
    assert manner.of("Graz: 5 loud bells") > manner.floor > manner.of("loud?? so LOUD!! (no...)")
    assert Manner(own[:1], style).floor == 0.0
    assert float(vector("abc") @ vector("abc")) == pytest.approx(1)
    assert float(vector("") @ vector("abc")) == 0


def test_a_label_outside_the_tasks_own_is_rejected_and_labels_never_count_as_leaks() -> None:
    chosen = Filters(RATING, [Item("1", "Fine soup and kind waiters.", "4")], ["x y z"], ["4"])
    assert chosen.rejects(("Cold fish, loud music, rude man.", "six")) == "label"
    assert chosen.rejects(("Cold fish, loud music, rude man.", "4")) is None


def test_rouge_l_is_that_of_the_rouge_score_package() -> None:
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    for a, b in [(REAL[0].input, REAL[1].input), (FRESH[0], REAL[0].input), ("a b c", "a c d b")]:
        assert rouge_l(words(a), words(b)) == pytest.approx(scorer.score(a, b)["rougeL"].fmeasure)


def test_scripts_without_spaces_are_compared_too() -> None:
    assert words("今天天气很好 ok") == ("今", "天", "天", "气", "很", "好", "ok")
    assert words("صباح الخير") == ("صباح", "الخير")
    assert rouge_l(words("今天天气很好"), words("今天天气不好")) > 0.7
    assert rouge_l((), ()) == 1.0


def test_the_newest_items_validate() -> None:
    items = [Item(str(n), "x", "y") for n in range(12)]
    train, valid = split(items)
    assert [i.id for i in valid] == ["10", "11"]
    assert len(train) == 10
    assert [len(part) for part in split(items[:2])] == [1, 1]
