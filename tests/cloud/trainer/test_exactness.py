"""Every user's adapter is the one that PEFT makes of this user alone, whatever the company."""

import copy
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from cloud.trainer.alone import first_factors
from cloud.trainer.fit import fit, unsupported
from cloud.trainer.learner import Learner, layer_of
from cloud.trainer.memory import Budget
from cloud.trainer.packing import Example, Piece, Segment
from protos.progress import silent
from tests.cloud.trainer.conftest import (
    FAMILIES,
    LONGROPE,
    User,
    cross_entropy,
    make_model,
    make_user,
    predicted,
    train_with_peft,
)

ROOMY = Budget(1 << 32, 4096)


def users() -> list[User]:
    """Unlike in all that a user may choose; some 20 steps each, ended at different ones."""
    return [
        make_user(0, 9, batch_size=4, epochs=7, rank=4, alpha=8),
        make_user(1, 5, batch_size=2, epochs=7, rank=8, alpha=4, learning_rate=1e-3),
        make_user(2, 10, batch_size=1, epochs=2, rank=2, alpha=2, weight_decay=0.1, warmup=0.3),
    ]


def trained(model, chosen: Sequence[User], work: Path, budget: Budget = ROOMY) -> list[Learner]:
    """All of them by the trainer, together."""
    learners = []
    for number, user in enumerate(chosen):
        tensors, _ = first_factors(model, user.config)
        assert unsupported(model, [layer_of(name) for name in tensors]) is None
        path = work / f"{number}.safetensors"
        learners.append(Learner(tensors, user.rows, user.valid, user.config, path))
    ended: list[Learner] = []
    fit(model, learners, budget, silent, ended.append)
    assert set(ended) == set(learners)
    return learners


def final(learner: Learner) -> dict[str, torch.Tensor]:
    """The adapter after the last step, by PEFT's names."""
    named: dict[str, torch.Tensor] = {}
    for layer, own in learner.factors.items():
        named[f"base_model.model.{layer}.lora_A.weight"] = own.a
        named[f"base_model.model.{layer}.lora_B.weight"] = own.b
    return named


def distance(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest relative difference of a tensor, by its norm."""
    assert found.keys() == expected.keys()
    return max(
        float((found[name] - expected[name]).norm() / expected[name].norm()) for name in expected
    )


def losses_of(learner: Learner) -> list[float]:
    assert learner.state is not None
    assert learner.error is None
    return [entry["valid_loss"] for entry in learner.state.history]


@pytest.mark.parametrize(
    ("family", "changes"),
    [*((family, {}) for family in FAMILIES), ("phi3", LONGROPE)],
    ids=[*FAMILIES, "phi3 with longrope"],
)
def test_each_adapter_is_that_of_peft_training_the_user_alone(
    family: str, changes: dict, tmp_path: Path
) -> None:
    model = make_model(family, **changes)
    model.set_attn_implementation("eager")
    together = users()
    for learner, user in zip(trained(model, together, tmp_path), together, strict=True):
        exact = train_with_peft(copy.deepcopy(model).double(), user)
        user.history.clear()
        expected = train_with_peft(model, user)
        assert len(user.history) >= 20
        assert distance(expected, exact) < 5e-5, "float32 itself must not leave more open than this"
        assert distance(final(learner), expected) < 1e-4
        assert max(float(t.norm()) for n, t in expected.items() if "lora_B" in n) > 0.01
        assert learner.state is not None
        per_epoch = learner.per_epoch
        epochs = [user.history[s : s + per_epoch] for s in range(0, len(user.history), per_epoch)]
        found = [entry["train_loss"] for entry in learner.state.history[1:]]
        assert found == pytest.approx([sum(e) / len(e) for e in epochs], rel=1e-4)


def test_early_stops_at_different_steps_keep_what_each_had_at_its_best(tmp_path: Path) -> None:
    model = make_model("llama")
    early = make_user(4, 8, batch_size=4, epochs=30, patience=1, learning_rate=3e-2)
    later = make_user(5, 8, batch_size=4, epochs=6, patience=2, learning_rate=1e-3)
    later.valid = later.rows  # which gets better and better
    for learner, user in zip(trained(model, [early, later], tmp_path), (early, later), strict=True):
        state, losses = learner.state, losses_of(learner)[1:]
        assert state is not None
        assert losses[state.best_epoch - 1] == min(losses)
        stopped = len(losses) < user.config.epochs
        assert stopped == (user is early)
        if stopped:
            assert len(losses) == state.best_epoch + user.config.patience
        expected = train_with_peft(model, user, state.best_epoch * learner.per_epoch)
        assert distance(learner.best(), expected) < 1e-4


def test_another_users_data_changes_nothing_for_a_user(tmp_path: Path) -> None:
    model = make_model("gemma3_text")
    mine = make_user(6, 9, batch_size=4, epochs=7)
    results = []
    for number, count in enumerate((3, 12)):
        other = make_user(20 + number, count, longest=60, learning_rate=1e-2, epochs=5, rank=16)
        (tmp_path / str(number)).mkdir()
        results.append(trained(model, [other, mine], tmp_path / str(number))[1])
    assert distance(final(results[0]), final(results[1])) < 1e-5
    assert losses_of(results[0]) == pytest.approx(losses_of(results[1]), rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_in_bfloat16_company_changes_less_than_a_tenth_of_what_bfloat16_does(
    tmp_path: Path, family: str
) -> None:
    """Another row may add up a product in another order, and so round a number to a neighbour of 8
    bits; how far that leads is what float32 and bfloat16 make of the same user apart.
    """
    model = make_model(family)
    mine = make_user(0, 9, batch_size=4, epochs=7, rank=4, alpha=8)
    others = [
        make_user(1, 5, batch_size=2, epochs=7, rank=8, alpha=4, learning_rate=1e-3),
        make_user(20, 12, longest=60, learning_rate=1e-2, epochs=5, rank=16),
    ]
    runs: list[Learner] = []
    for number, company in enumerate(([mine], [mine], [mine, others[0]], [others[1], mine])):
        (tmp_path / str(number)).mkdir()
        learners = trained(model, company, tmp_path / str(number))
        runs.append(learners[company.index(mine)])
        model = model.to(torch.bfloat16)
    exact, alone, *together = runs
    rounding = distance(final(alone), final(exact))
    assert 0.001 < rounding < 0.1
    for learner in together:
        assert distance(final(learner), final(alone)) < rounding / 10
        assert losses_of(learner) == pytest.approx(losses_of(alone), rel=1e-4)
    assert {tensor.dtype for tensor in final(alone).values()} == {torch.float32}


def test_one_who_diverges_or_is_cancelled_disturbs_nobody(tmp_path: Path) -> None:
    model = make_model("llama")
    sound = make_user(7, 9, batch_size=4, epochs=7)
    wild = make_user(8, 6, batch_size=2, epochs=7, learning_rate=1e30)
    gone = make_user(9, 6, batch_size=2, epochs=7)
    asked: list[int] = []

    def wanted() -> bool:
        asked.append(1)
        return len(asked) < 5

    learners = []
    for number, user in enumerate((wild, sound, gone)):
        tensors, _ = first_factors(model, user.config)
        path = tmp_path / f"{number}.safetensors"
        more = (wanted,) if user is gone else ()
        learners.append(Learner(tensors, user.rows, user.valid, user.config, path, *more))
    ended: list[Learner] = []
    fit(model, learners, ROOMY, silent, ended.append)
    assert "loss is nan" in str(learners[0].error) or "loss is inf" in str(learners[0].error)
    assert "lower --learning-rate" in str(learners[0].error)
    assert learners[0].error
    assert learners[0].error.__traceback__ is None, "its frames hold the learner"
    assert "cancelled" in str(learners[2].error)
    assert ended.index(learners[1]) == 2
    assert distance(final(learners[1]), train_with_peft(model, sound)) < 1e-4


@pytest.mark.parametrize("recompute", [False, True])
def test_neither_short_rows_nor_recomputing_change_an_adapter(
    tmp_path: Path, recompute: bool
) -> None:
    model = make_model("phi3")
    chosen = [
        make_user(n, 7, batch_size=4, epochs=5, dropout=0.3 * n, gradient_checkpointing=recompute)
        for n in range(2)
    ]
    plain = [make_user(n, 7, batch_size=4, epochs=5, dropout=0.3 * n) for n in range(2)]
    folders = [tmp_path / name for name in ("whole", "split")]
    for folder in folders:
        folder.mkdir()
    whole = trained(model, plain, folders[0])
    split = trained(model, chosen, folders[1], Budget(1 << 32, 40))
    for left, right in zip(whole, split, strict=True):
        assert distance(final(left), final(right)) < 1e-4
    assert distance(final(whole[0]), train_with_peft(model, plain[0])) < 1e-4


def test_a_sequence_that_exceeds_the_budget_goes_alone_and_is_counted(tmp_path: Path) -> None:
    model = make_model("qwen3")
    user = make_user(1, 5, batch_size=2, epochs=8)
    learner = trained(model, [user], tmp_path, Budget(1, 4096))[0]
    assert learner.recomputed == 8 * 5
    assert distance(final(learner), train_with_peft(model, user)) < 1e-4


def test_dropout_drops_its_share_and_scales_what_stays(tmp_path: Path) -> None:
    model = make_model("llama")
    user = make_user(1, 4, batch_size=4, epochs=1, dropout=0.25)
    learner = trained(model, [user], tmp_path)[0]
    (piece,) = [Piece(0, 0, Example([5] * 200, 3))]
    drop = next(iter(learner.factors.values())).drop
    assert drop is not None
    mask = drop(Segment(0, 0, 200, (piece,)), 48)
    assert mask.unique().tolist() == pytest.approx([0, 4 / 3])
    assert float(mask.mean()) == pytest.approx(1.0, abs=0.05)


def test_the_losses_are_those_of_the_model_with_its_adapter(tmp_path: Path) -> None:
    model = make_model("gemma3_text")
    user = make_user(3, 6, batch_size=3, epochs=1)
    before = sum(float(cross_entropy(model, row)) for row in user.valid) / predicted(user.valid)
    found = losses_of(trained(model, [user], tmp_path)[0])
    assert found[0] == pytest.approx(before, rel=1e-5)
    assert found[1] < found[0]


@pytest.mark.parametrize(
    ("family", "changes", "says"),
    [
        ("mistral", {}, "mistral is none of"),
        ("phi3", {"resid_pdrop": 0.1}, "dropout (resid_pdrop)"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
         "longest sequence"),
        ("phi3", LONGROPE | {"original_max_position_embeddings": 48}, "longest sequence"),
    ],
)  # fmt: skip
def test_what_cannot_be_packed_is_named(family: str, changes: dict, says: str) -> None:
    model = make_model(family, **changes)
    assert says in str(unsupported(model, []))


def test_the_head_and_the_embedding_cannot_be_packed() -> None:
    model = make_model("llama")
    assert "lm_head is no linear layer" in str(unsupported(model, ["lm_head"]))
    assert "embed_tokens is no linear" in str(unsupported(model, ["model.embed_tokens"]))
