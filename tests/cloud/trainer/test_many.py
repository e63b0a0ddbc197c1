"""`train_many` and `train --users`: artifacts for many users, through kills and bad data."""

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from cloud import train as train_module
from cloud.profiles import write_rows
from cloud.service.stages.together import asked
from cloud.train import Member, TrainConfig, train, train_many
from cloud.trainer.alone import first_factors
from cloud.trainer.fit import fit
from cloud.trainer.learner import Learner
from cloud.trainer.memory import Budget, rounds, saved_bytes
from pocketune import main
from protos.artifacts import Artifact, create, open_artifact
from protos.base_model import BaseModel, open_base
from protos.errors import InputError, PocketuneError

FAST = TrainConfig(learning_rate=5e-3, epochs=4, batch_size=4, dtype="float32", rank=4, patience=9)
ROWS = [
    {"prompt": f"news {n} " + "of the fox " * (n % 5), "completion": f"Fox {n % 3} jumps"}
    for n in range(24)
]
BAD = [*ROWS[:3], {"prompt": "what?", "completion": " "}]


def make_dataset(path: Path, rows: list[dict[str, str]]) -> Artifact:
    with create(path, "Dataset", {"profile": path.name}, {}) as draft:
        write_rows(draft.path / "train.jsonl", rows)
        write_rows(draft.path / "valid.jsonl", ROWS[-2:])
    return open_artifact(path)


@pytest.fixture
def base(tiny_base: Path) -> BaseModel:
    return open_base(str(tiny_base))


def made(answers: list[Artifact | PocketuneError]) -> list[Artifact]:
    assert not [answer for answer in answers if isinstance(answer, Exception)]
    return [answer for answer in answers if isinstance(answer, Artifact)]


def tensors(artifact: Artifact) -> dict[str, torch.Tensor]:
    return load_file(artifact.file("adapter_model.safetensors"))


def assert_same(left: Artifact, right: Artifact) -> None:
    one, other = tensors(left), tensors(right)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert float((tensor - other[name]).norm() / tensor.norm()) < 1e-4, name


def test_many_are_as_each_alone_also_in_rounds_of_little_memory(
    tmp_path: Path, base: BaseModel
) -> None:
    configs = [
        TrainConfig(**{**vars(FAST), "rank": 2 + n, "targets": targets})
        for n, targets in enumerate(("all-linear", "q_proj,v_proj", "down_proj"))
    ]
    datasets = [make_dataset(tmp_path / f"d{n}", ROWS[n : n + 8]) for n in range(3)]
    groups: dict[str, list[Artifact]] = {}
    for name, budget in (("roomy", None), ("scarce", 250_000)):
        members = [
            Member(dataset, tmp_path / name / str(n), config)
            for n, (dataset, config) in enumerate(zip(datasets, configs, strict=True))
        ]
        groups[name] = made(train_many(members, base, 1, budget))
    users = {name: [a.manifest.measured["users"] for a in own] for name, own in groups.items()}
    assert users == {"roomy": [3, 3, 3], "scarce": [2, 2, 1]}
    assert "recomputed" in groups["scarce"][0].manifest.measured
    for number, (roomy, scarce) in enumerate(zip(groups["roomy"], groups["scarce"], strict=True)):
        alone = train(datasets[number], base, tmp_path / f"a{number}", configs[number], 1)
        assert roomy.manifest.measured["trainer"] == "packed"
        assert_same(roomy, alone)
        assert_same(scarce, alone)


def test_a_bad_user_ends_alone_and_the_others_are_kept(tmp_path: Path, base: BaseModel) -> None:
    wild = TrainConfig(**{**vars(FAST), "learning_rate": 1e30})
    nowhere = TrainConfig(**{**vars(FAST), "targets": "no_such_proj"})
    sound = make_dataset(tmp_path / "sound", ROWS[:8])
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("a user's own")
    members = [
        Member(sound, tmp_path / "wild", wild),
        Member(make_dataset(tmp_path / "bad", BAD), tmp_path / "empty", FAST),
        Member(sound, tmp_path / "fine", FAST),
        Member(sound, tmp_path / "nowhere", nowhere),
        Member(sound, tmp_path / "taken", FAST),
        Member(sound, tmp_path / "gone", FAST, wanted=lambda: False),
    ]
    answers = train_many(members, base, 1)
    alone = train(sound, base, tmp_path / "alone", FAST, 1)
    assert isinstance(answers[2], Artifact)
    assert_same(answers[2], alone)
    errors = [str(answer) for answer in (*answers[:2], *answers[3:])]
    expected = [
        "lower --learning-rate", "line 4: an empty completion", "no_such_proj",
        "not a Pocketune artifact", "cancelled",
    ]  # fmt: skip
    for error, says in zip(errors, expected, strict=True):
        assert says in error
        assert "\n" not in error
    assert not (tmp_path / "wild").exists()


class Seen:
    """The learners of all rounds so far. before: how many were alive as each round began."""

    def __init__(self) -> None:
        self.before: list[int] = []
        self._learners: list[weakref.ref[Learner]] = []

    def alive(self) -> int:
        return sum(each() is not None for each in self._learners)

    def fit(self, model: Any, learners: list[Learner], *rest: Any) -> None:
        self.before.append(self.alive())
        self._learners += [weakref.ref(learner) for learner in learners]
        fit(model, learners, *rest)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    """Without the garbage collector: memory is planned as if a round's learners went with it."""
    found = Seen()
    monkeypatch.setattr("cloud.trainer.fit.fit", found.fit)
    gc.disable()
    yield found
    gc.enable()


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_no_learner_outlives_its_round_however_it_ended(
    tmp_path: Path, base: BaseModel, seen: Seen, dropout: float
) -> None:
    """In each round one is sound, one diverges, one is cancelled, one's folder goes."""
    dataset = make_dataset(tmp_path / "d", ROWS[:4])
    fast = {**vars(FAST), "epochs": 1, "dropout": dropout}
    members: list[Member] = []
    for number in range(3):
        sound, wild = TrainConfig(**fast), TrainConfig(**{**fast, "learning_rate": 1e30})
        job = tmp_path / f"job{number}"
        members += [
            Member(dataset, tmp_path / f"sound{number}", sound),
            Member(dataset, tmp_path / f"wild{number}", wild),
            Member(dataset, tmp_path / f"gone{number}", sound, wanted=lambda: False),
            Member(dataset, job / "adapter", sound, Going(job, 2)),
        ]
    answers = train_many(members, base, 1, memory_budget=8 * 170_000)
    assert seen.before == [0, 0, 0]
    assert not seen.alive()
    assert [type(answer) for answer in answers] == [Artifact, *[InputError] * 3] * 3
    for error in answers[1:4]:
        assert isinstance(error, InputError)
        assert error.__traceback__ is None
        assert error.exit_code == 2
    expected = ("lower --learning-rate", "cancelled", "cannot be written")
    for error, says in zip(answers[1:4], expected, strict=True):
        assert says in str(error)


def test_a_state_beyond_the_budget_is_trained_alone_and_said(
    tmp_path: Path, base: BaseModel
) -> None:
    datasets = [make_dataset(tmp_path / f"d{n}", ROWS[n : n + 4]) for n in range(2)]
    large = TrainConfig(**{**vars(FAST), "epochs": 1, "rank": 32})
    small = TrainConfig(**{**vars(large), "rank": 1})
    own: list[str] = []
    told: list[str] = []
    members = [
        Member(datasets[0], tmp_path / "large", large, progress=lambda m, _: own.append(m)),
        Member(datasets[1], tmp_path / "small", small),
    ]
    answers = made(train_many(members, base, 1, 1_000_000, lambda m, _: told.append(m)))
    notes = [answer.manifest.measured.get("memory") for answer in answers]
    says = "the state of this adapter takes 0.00122 GiB, more than the 0.000931 GiB of --memory"
    assert notes == [says, None]
    assert [says in message for message in told] == [True, False]
    assert says in own[0]
    for number, config in enumerate((large, small)):
        alone = train(datasets[number], base, tmp_path / f"a{number}", config, 1)
        assert_same(answers[number], alone)


@pytest.mark.parametrize("budget", [None, 1 << 40])
def test_a_state_beyond_what_is_free_is_refused_and_the_others_are_trained(
    tmp_path: Path, base: BaseModel, monkeypatch: pytest.MonkeyPatch, budget: int | None
) -> None:
    monkeypatch.setattr("cloud.trainer.memory.free_bytes", lambda _: 1_000_000)
    dataset = make_dataset(tmp_path / "d", ROWS[:4])
    large = TrainConfig(**{**vars(FAST), "epochs": 1, "rank": 32})
    small = TrainConfig(**{**vars(large), "rank": 1})
    members = [Member(dataset, tmp_path / "l", large), Member(dataset, tmp_path / "s", small)]
    error, answer = train_many(members, base, 1, budget)
    assert isinstance(error, InputError)
    assert "takes 0.00122 GiB, but 0.000931 GiB are free" in str(error)
    assert "lower --rank" in str(error)
    assert isinstance(answer, Artifact)


@pytest.fixture
def wrapped(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds that PEFT made factors of, one after another."""
    found: list[int] = []

    def noted(model: Any, config: TrainConfig) -> Any:
        found.append(config.seed)
        return first_factors(model, config)

    monkeypatch.setattr("cloud.trainer.alone.first_factors", noted)
    return found


def test_users_who_begin_alike_have_their_first_factors_made_once(
    tmp_path: Path, base: BaseModel, wrapped: list[int]
) -> None:
    datasets = [make_dataset(tmp_path / f"d{n}", ROWS[n : n + 4]) for n in range(5)]
    configs = [TrainConfig(**{**vars(FAST), "epochs": 1, "seed": seed}) for seed in (3, 3, 3, 4, 3)]
    members = [
        Member(dataset, tmp_path / str(n), config)
        for n, (dataset, config) in enumerate(zip(datasets, configs, strict=True))
    ]
    answers = made(train_many(members, base, 1))
    assert wrapped == [3, 4, 3]
    for number in (2, 3, 4):
        alone = train(datasets[number], base, tmp_path / f"a{number}", configs[number], 1)
        assert_same(answers[number], alone)


@pytest.mark.parametrize("says", ["exists and is a file", "is not a Pocketune artifact"])
def test_a_place_that_is_taken_is_found_before_anything_is_trained(
    tmp_path: Path, base: BaseModel, says: str
) -> None:
    taken = tmp_path / "taken"
    if "file" in says:
        taken.write_text("a user's own")
    else:
        taken.mkdir()
        (taken / "file").write_text("a user's own")
    said: list[str] = []
    dataset = make_dataset(tmp_path / "d", ROWS[:4])
    with pytest.raises(InputError, match=says):
        train(dataset, base, taken, FAST, 1, lambda message, _: said.append(message))
    assert not said
    assert not list(tmp_path.glob(".taken.*"))


class Going:
    """A member's `wanted`, as the service asks, whose folder goes after so many questions."""

    def __init__(self, folder: Path, after: int) -> None:
        self.folder, self.left = folder, after
        folder.mkdir()

    def __call__(self) -> bool:
        is_wanted = asked(self.folder)()
        self.left -= 1
        if self.left == 0:
            shutil.rmtree(self.folder)
        return is_wanted


@pytest.mark.parametrize(
    ("after", "says"),
    [
        pytest.param(1, "cancelled", id="in the step that ends an epoch"),
        pytest.param(2, "cannot be written (No such file or directory)", id="before it is saved"),
    ],
)
def test_one_whose_folder_goes_leaves_the_others_as_if_alone(
    tmp_path: Path, base: BaseModel, after: int, says: str
) -> None:
    gone, kept = make_dataset(tmp_path / "d0", ROWS[:4]), make_dataset(tmp_path / "d1", ROWS[4:12])
    going = Going(tmp_path / "job", after)
    members = [
        Member(gone, tmp_path / "job" / "adapter", FAST, going),
        Member(kept, tmp_path / "kept", FAST),
    ]
    error, answer = train_many(members, base, 1)
    assert isinstance(error, InputError)
    assert says in str(error)
    assert not (tmp_path / "job").exists()
    assert_same(made([answer])[0], train(kept, base, tmp_path / "alone", FAST, 1))


def test_one_whose_folder_goes_while_its_adapter_is_written_takes_nobody_along(
    tmp_path: Path, base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "job").mkdir()
    write = train_module._save_peft

    def removed(tensors, lora, own, directory: Path) -> None:
        write(tensors, lora, own, directory)
        if directory.parent.name == "job":
            shutil.rmtree(directory.parent)

    monkeypatch.setattr(train_module, "_save_peft", removed)
    gone, kept = make_dataset(tmp_path / "d0", ROWS[:4]), make_dataset(tmp_path / "d1", ROWS[4:12])
    members = [
        Member(gone, tmp_path / "job" / "adapter", FAST, asked(tmp_path / "job")),
        Member(kept, tmp_path / "kept", FAST),
    ]
    error, answer = train_many(members, base, 1)
    assert "cancelled" in str(error)
    assert isinstance(answer, Artifact)


def test_finished_adapters_are_skipped_and_other_inputs_train_anew(
    tmp_path: Path, base: BaseModel
) -> None:
    datasets = [make_dataset(tmp_path / f"d{n}", ROWS[n : n + 6]) for n in range(2)]
    members = [Member(d, tmp_path / "out" / str(n), FAST) for n, d in enumerate(datasets)]
    first = made(train_many(members, base, 1))
    stamps = [(a.path / "manifest.json").stat().st_mtime_ns for a in first]
    other = TrainConfig(**{**vars(FAST), "seed": 5})
    changed = [members[0], Member(datasets[1], members[1].out, other)]
    again = made(train_many(changed, base, 1))
    assert (again[0].path / "manifest.json").stat().st_mtime_ns == stamps[0]
    assert again[0].id == first[0].id
    assert again[1].id != first[1].id
    assert not list((tmp_path / "out").glob(".*"))


def test_the_same_place_twice_is_refused(tmp_path: Path, base: BaseModel) -> None:
    dataset = make_dataset(tmp_path / "d", ROWS[:4])
    with pytest.raises(InputError, match=r"out: asked for twice; give each user"):
        train_many([Member(dataset, tmp_path / "out", FAST)] * 2, base, 1)


@pytest.mark.parametrize("other", ["link/out", "alias", "real/../real/out"])
def test_the_same_place_by_another_path_is_refused(
    tmp_path: Path, base: BaseModel, other: str
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "alias").symlink_to("real/out")  # to what is not there yet
    dataset = make_dataset(tmp_path / "d", ROWS[:4])
    members = [Member(dataset, tmp_path / path, FAST) for path in ("real/out", other)]
    with pytest.raises(InputError, match=r"real/out: asked for twice; give each user"):
        train_many(members, base, 1)


@pytest.fixture
def mistral(tmp_path: Path, tiny_base: Path) -> BaseModel:
    """A base that cannot be packed."""
    from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=352, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(tmp_path / "base")
    return open_base(str(tmp_path / "base"))


def test_what_cannot_be_packed_is_trained_with_peft_and_says_so(
    tmp_path: Path, mistral: BaseModel
) -> None:
    said: list[str] = []
    datasets = [make_dataset(tmp_path / f"d{n}", ROWS[n : n + 6]) for n in range(2)]
    members = [Member(d, tmp_path / f"a{n}", FAST) for n, d in enumerate(datasets)]
    answers = made(train_many(members, mistral, 1, progress=lambda m, _: said.append(m)))
    for answer in answers:
        measured = answer.manifest.measured
        assert "alone with PEFT: mistral is none of" in measured["trainer"]
        assert measured["valid_loss_after"] < measured["valid_loss_before"]
    assert "(alone with PEFT: mistral" in said[0]


def test_with_peft_too_one_whose_folder_goes_takes_nobody_along(
    tmp_path: Path, mistral: BaseModel
) -> None:
    dataset = make_dataset(tmp_path / "d", ROWS[:4])
    members = [
        Member(dataset, tmp_path / "job" / "adapter", FAST, Going(tmp_path / "job", 1)),
        Member(dataset, tmp_path / "kept", FAST),
    ]
    error, answer = train_many(members, mistral, 1)
    assert isinstance(error, InputError)
    assert "cannot be written (No such file or directory)" in str(error)
    assert isinstance(answer, Artifact)


KILLED = """
    import sys
    from pathlib import Path
    from cloud.train import Member, TrainConfig, train_many
    from protos.artifacts import open_artifact
    from protos.base_model import open_base
    folder = Path(sys.argv[2])
    def config(n):
        return TrainConfig(learning_rate=5e-3, epochs=(1, 4, 4)[n], batch_size=4, dtype="float32",
                           rank=4, patience=9)
    members = [Member(open_artifact(folder / f"d{n}"), folder / sys.argv[3] / str(n), config(n))
               for n in range(3)]
    def progress(message, fraction):
        print(fraction, flush=True)
    answers = train_many(members, open_base(sys.argv[1]), 1, None, progress)
    print([answer.id for answer in answers])
"""


@pytest.mark.slow
def test_killed_with_one_finished_and_two_under_way_it_ends_the_same(
    tmp_path: Path, tiny_base: Path
) -> None:
    for number in range(3):
        make_dataset(tmp_path / f"d{number}", ROWS[number : number + 10])
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tiny_base), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole = subprocess.run(
        [*command, "whole"], capture_output=True, text=True, check=True, env=environment
    )
    process = subprocess.Popen(
        [*command, "out"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=environment,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if float(line) > 0.6:
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.name[0] != ".") == ["0"]
    assert len(list((tmp_path / "out").glob(".*.work/checkpoint.safetensors"))) == 2
    resumed = subprocess.run(
        [*command, "out"], capture_output=True, text=True, check=True, env=environment
    )
    fractions = [float(line) for line in resumed.stdout.splitlines()[:-1]]
    assert fractions[0] > 0.4, "it began again instead of going on"
    for number in range(3):
        assert_same(
            open_artifact(tmp_path / "whole" / str(number)),
            open_artifact(tmp_path / "out" / str(number)),
        )
    assert len(whole.stdout.splitlines()) > len(resumed.stdout.splitlines())


def test_the_command_trains_a_folder_of_users_and_reports_the_bad_one(
    tmp_path: Path, tiny_base: Path
) -> None:
    for name, own in (("ann", ROWS[:6]), ("bob", BAD), ("eve", ROWS[6:12])):
        make_dataset(tmp_path / "users" / name, own)
    (tmp_path / "users" / "eve" / "train.jsonl").write_text("altered")
    arguments = [
        "train", "--users", str(tmp_path / "users"), "--base", str(tiny_base), "--out",
        str(tmp_path / "out"), "--epochs", "1", "--memory", "0.5", "--threads", "1",
        "--dtype", "float32", "--json",
    ]  # fmt: skip
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    result = json.loads(done.stdout)
    assert list(result["adapters"]) == ["ann"]
    assert set(result["errors"]) == {"bob", "eve"}
    assert "2 of 3 users have no adapter: bob: " in done.stderr
    assert "train.jsonl was altered" in done.stderr or "has 7 bytes" in done.stderr
    assert open_artifact(tmp_path / "out" / "ann", "Adapter").id == result["adapters"]["ann"]["id"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give either --dataset or --users"),
        (["--dataset", "x", "--users", "y"], "give either --dataset or --users"),
        (["--users", "nothing"], "no Dataset, and no folder of Datasets either"),
        (["--users", "users", "--users", "users/ann"], "two Datasets are called ann"),
        (["--users", "users", "--memory", "0"], "--memory"),
        (
            ["--users", "users", "--seed", "20000000000000"],
            "Error: seed is 20000000000000, expected",
        ),
        (["--users", "users", "--seed", "-1"], "Error: seed is -1, expected 0 to 2147483647\n"),
        (
            ["--users", "users", "--rank", "300000000"],
            "Error: rank is 300000000, expected 1 to 256",
        ),
    ],
)
def test_bad_arguments_get_one_line(
    tmp_path: Path,
    tiny_base: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    make_dataset(tmp_path / "users" / "ann", ROWS[:6])
    common = ["train", "--base", str(tiny_base), "--out", "out"]
    done = CliRunner().invoke(main, [*common, *arguments])
    assert done.exit_code == 2
    assert says in done.stderr
    assert done.stderr.count("Error") == 1
    assert not (tmp_path / "out").exists()


def test_rounds_hold_what_fits_and_at_least_one() -> None:
    assert rounds([3, 3, 3, 9, 1], lambda size: size, 6) == [[3, 3], [3], [9], [1]]
    assert rounds([], lambda size: size, 6) == []


def test_a_row_has_the_tokens_that_fit_beside_the_users() -> None:
    fixed = 3 * 4 * (1 << 23)
    assert Budget(fixed + 10_000, 4096).tokens(4_000, 30) == 200
    assert Budget(fixed + 10_000_000, 4096).tokens(4_000, 30) == 4096
    assert Budget(fixed, 4096).tokens(4_000, 30) == 0


def test_what_a_forward_pass_keeps_is_counted_once_and_without_weights() -> None:
    weight = torch.nn.Parameter(torch.zeros(30, 20))
    x = torch.zeros(7, 20, requires_grad=True)
    held: list[torch.Tensor] = []
    forward = lambda: held.append(torch.relu(torch.nn.functional.linear(x, weight)))  # noqa: E731
    found = saved_bytes(forward, [weight])
    assert found == 4 * (7 * 20 + 7 * 30)  # x for the weight's gradient, relu's result
