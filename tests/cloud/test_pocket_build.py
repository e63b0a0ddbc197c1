"""How the pocket models are made: what they are trained on, and that a run may be cut in pieces."""

import random
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from cloud.pocket import batches, build
from cloud.pocket.build import Model, Plan
from cloud.pocket.training import Progress, Schedule, train
from cloud.pocket.world import draw, question_text, sample_user
from cloud.profiles import Item
from cloud.prompts import Ask, continuation
from cloud.tasks import TASKS
from cloud.teachers import POCKET_TEACHER
from protos.errors import InputError

TINY = Plan(
    vocabulary=420,
    corpus=10,
    hidden=128,
    base=Model(layers=1, context=256, steps=8, rows=4),
    teacher=Model(
        layers=2, context=256, steps=8, rows=2, length=160, long_rows=1, long_length=240
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(str(POCKET_TEACHER))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pocket")
    assert build.build(TINY, out, build.STAGES, False, lambda step: False)
    return out


@pytest.mark.parametrize("task", ["LaMP_1", "LaMP_2", "LaMP_4", "LaMP_7"])
def test_the_teacher_is_trained_on_the_very_tokens_that_it_is_asked_with(
    tokenizer: Any, task: str
) -> None:
    user = sample_user(task, 12)
    items = [
        Item(str(n), d.input, d.output) for n, d in enumerate(islice(draw(user, "teacher"), 3))
    ]
    asked = next(draw(user, "questions"))
    asks = [
        Ask("new", tuple(items[:2])),
        Ask("vote", tuple(items[:2]), text=items[2].input),
        *([Ask("label", tuple(items[:2]), output=items[2].output)] if task != "LaMP_7" else []),
        *([Ask("vote", tuple(items[:2]), text=question_text(TASKS[task], asked.input))]
          if TASKS[task].question else []),
    ]  # fmt: skip
    blocks = [batches.blocks_of(user, random.Random(seed)) for seed in range(40)]
    rows = [batches.encode(tokenizer, each, 500)[0] for each in blocks]
    for ask in asks:
        prompt = tokenizer(continuation(TASKS[task], ask))["input_ids"]
        assert len(prompt) < 450
        assert any(row[: len(prompt)] == prompt for row in rows), ask.kind


def test_each_part_of_a_row_counts_as_it_should(tokenizer: Any) -> None:
    """An item's input a little, its output most, a turned output not at all, its input by half."""
    item = batches.Block("Report: Rain, they say.\nNotice:", " Rain in Oslo\n\n", 0.15)
    turned = batches.Block("Notice: Fog in Riga\nReport:", " Grey on Monday.\n\n", 0.0, 0.5)
    ids, weights, ends = batches.encode(tokenizer, cycle([item, turned]), 100)
    assert (ids[0], weights[0]) == (tokenizer.bos_token_id, 0.0)
    parts = {weight: list[int]() for weight in sorted(set(weights))}
    for place in range(1, ends[1] + 1):
        parts[weights[place]].append(ids[place])
    least, little, half, most = (tokenizer.decode(part) for part in parts.values())
    assert (least, little) == (turned.head, item.head)
    assert (half, most) == (turned.tail, item.tail)
    assert max(weights) == max(1, 8 / len(parts[max(weights)]))
    assert [tokenizer.decode([ids[end]]) for end in ends[:2]] == ["\n", "\n"]


def test_a_run_in_pieces_makes_the_same_models(made: Path, tmp_path: Path) -> None:
    rounds = 0
    for rounds in range(1, 9):
        stopped = [0]

        def pause(step: int, stopped: list[int] = stopped) -> bool:
            stopped[0] += 1
            return stopped[0] > 3

        if build.build(TINY, tmp_path, build.STAGES, rounds > 1, pause):
            break
    assert rounds == 6
    for name in ("base", "teacher"):
        whole, pieces = (
            load_file(folder / "models" / name / "model.safetensors") for folder in (made, tmp_path)
        )
        assert whole.keys() == pieces.keys()
        assert all(torch.equal(whole[key], pieces[key]) for key in whole)
    assert not list(tmp_path.glob("*.checkpoint"))


def test_models_that_are_there_are_not_written_over(made: Path) -> None:
    before = (made / "models" / "base" / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match=r"tokenizer.json: already there; give --resume"):
        build.build(TINY, made, build.STAGES, False, lambda step: False)
    with pytest.raises(InputError, match=r"model.safetensors: already there"):
        build.build(TINY, made, ("base",), False, lambda step: False)
    with pytest.raises(SystemExit, match="1"):
        build.main(["--out", str(made)])
    assert build.build(TINY, made, build.STAGES, True, lambda step: False)
    assert (made / "models" / "base" / "model.safetensors").read_bytes() == before


def test_the_plan_stays_within_the_sizes_that_are_bundled() -> None:
    plan, sizes = build.PLAN, list[int]()
    for own in (plan.base, plan.teacher):
        with torch.device("meta"):
            sizes.append(build.new_model(plan, own, plan.vocabulary).num_parameters())
    assert 2 * sum(sizes) <= 25e6


def test_the_loss_falls(made: Path, tmp_path: Path) -> None:
    base = AutoTokenizer.from_pretrained(str(made / "models" / "base"))

    def run(pause_at: int) -> Progress:
        return train(
            build.new_model(TINY, TINY.base, len(base)),
            lambda step: batches.base_batch(base, 4, "falls", step),
            Schedule(30),
            tmp_path / "run.checkpoint",
            pause=lambda step: step == pause_at,
        )

    first, last = run(1), run(30)
    assert (first.step, last.step) == (1, 30)
    assert last.loss < first.loss - 0.5
