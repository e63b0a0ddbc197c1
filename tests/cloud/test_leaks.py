"""No user's data reaches another user's adapter, dataset or requests; contributors aside."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from cloud.augment import AugmentConfig, augment
from cloud.profiles import Consent, Item, Profile, write_profile
from cloud.tasks import TASKS
from cloud.teachers import Calls, open_teacher
from cloud.train import Member, TrainConfig, train, train_many
from protos.artifacts import Artifact
from protos.base_model import open_base

CANARY = "the heron of Quillfort hums at dusk"
FAST = TrainConfig(learning_rate=5e-3, epochs=3, batch_size=2, dtype="float32", rank=4)
SOUND = [
    ("A farmer sold nine pigs at dawn today.", "pigs sell at dawn"),
    ("Rain kept all ships inside for a week.", "ships stay for rain"),
    ("Two bakers won the big prize of bread.", "bakers win for bread"),
]


def person(out: Path, name: str, canary: str = "") -> Artifact:
    """Four items; the first one holds the canary, in both of its parts."""
    items = [
        Item(str(n), f"The zoo of {name} opened with {n} guests.", f"{n} come to {name}'s zoo")
        for n in range(4)
    ]
    items[0] = Item("0", f"{items[0].input} {canary}", f"{items[0].output} {canary}")
    return write_profile(Profile(TASKS["LaMP_4"], name, "en", Consent(), items, []), out)


def everything(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("beside", [(), ("",), (CANARY,), (CANARY, CANARY * 3)])
def test_an_adapter_is_the_same_whatever_the_others_hold(
    beside: tuple[str, ...], tmp_path: Path, tiny_base: Path, chat
) -> None:
    """Within the tolerance of docs/training.md, 1e-4; and far from what the canary would do."""
    chat.say = lambda message, number: "\n".join(
        f'{{"input": "{text}", "output": "{output}"}}' for text, output in SOUND
    )
    teacher = open_teacher(chat.spec, 1, Calls(retries=0))
    config = AugmentConfig(scrub="off", pool=1.0, tries=3)
    users = {"bob": person(tmp_path / "p" / "bob", "bob")} | {
        f"ann{n}": person(tmp_path / "p" / f"ann{n}", f"ann{n}", text)
        for n, text in enumerate(beside)
    }
    datasets = {
        name: augment(profile, teacher, tmp_path / "d" / name, config)
        for name, profile in users.items()
    }
    base = open_base(str(tiny_base))
    members = [
        Member(data, tmp_path / "a" / name, FAST) for name, data in reversed(datasets.items())
    ]
    made = train_many(members, base, 1)
    assert isinstance(made[-1], Artifact), made
    assert made[-1].manifest.measured["users"] == len(users)
    train(datasets["bob"], base, tmp_path / "alone", FAST, 1)
    tainted = person(tmp_path / "p" / "tainted", "bob", CANARY)
    other = augment(tainted, teacher, tmp_path / "d" / "tainted", config)
    train(other, base, tmp_path / "changed", FAST, 1)

    wanted, found, far = (
        load_file(place / "adapter_model.safetensors")
        for place in (tmp_path / "alone", tmp_path / "a" / "bob", tmp_path / "changed")
    )
    for name, tensor in wanted.items():
        assert float((tensor - found[name]).norm() / tensor.norm()) < 1e-4, name
    assert max(float((t - far[n]).norm() / t.norm()) for n, t in wanted.items()) > 1e-2

    assert CANARY.encode() not in everything(tmp_path / "d" / "bob")
    assert CANARY.encode() not in everything(tmp_path / "a" / "bob")
    assert b"ann" not in everything(tmp_path / "d" / "bob")
    of_bob = [message for message in chat.asked if "zoo of bob" in message]
    assert of_bob
    assert not any("zoo of ann" in message for message in of_bob)
    for n, text in enumerate(filter(None, beside)):
        assert text.encode() in everything(tmp_path / "d" / f"ann{n}"), "it would be seen"
