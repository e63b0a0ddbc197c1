"""Training: against a plain PyTorch computation, through a kill, and with every bad input."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cloud.profiles import write_rows
from cloud.train import TrainConfig, train
from protos.artifacts import Artifact, create, open_artifact
from protos.base_model import load_tokenizer, open_base
from protos.errors import InputError, MismatchError, UnsupportedError

FAST = TrainConfig(learning_rate=2e-2, epochs=4, batch_size=4, dtype="float32", rank=4, patience=9)


def rows(count: int, length: int = 6) -> list[dict[str, str]]:
    return [
        {"prompt": f"news {n} " + "of the fox " * length, "completion": f"Fox {n % 3} jumps"}
        for n in range(count)
    ]


def make_dataset(
    path: Path, trained: list[dict[str, str]], valid: list[dict[str, str]]
) -> Artifact:
    with create(path, "Dataset", {"profile": "p"}, {}) as draft:
        write_rows(draft.path / "train.jsonl", trained)
        write_rows(draft.path / "valid.jsonl", valid)
    return open_artifact(path)


@pytest.fixture
def dataset(tmp_path: Path) -> Artifact:
    return make_dataset(tmp_path / "dataset", rows(10), rows(3))


def reference_loss(
    base: Path, adapter: Path | None, wanted: list[dict[str, str]], longest: int = 10_000
) -> float:
    """Mean cross-entropy of completion tokens, one row at a time, with nothing of ours.

    longest: tokens of a row; more are cut off at its beginning.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    total, count = 0.0, 0
    for row in wanted:
        text = f"<|user|>{row['prompt']}<|assistant|>"
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
        answer = tokenizer(row["completion"] + "<|end|>", add_special_tokens=False)["input_ids"]
        prompt = (prompt + answer)[-longest:][: -len(answer)]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0].double()
        logp = torch.log_softmax(logits, -1)
        for index, token in enumerate(answer):
            total -= float(logp[len(prompt) - 1 + index, token])
            count += 1
    return total / count


def test_the_losses_are_those_of_plain_pytorch_and_peft_loads_the_result(
    tmp_path: Path, tiny_base: Path, dataset: Artifact
) -> None:
    made = train(dataset, open_base(str(tiny_base)), tmp_path / "a", FAST, threads=1)
    measured = made.manifest.measured
    assert measured["valid_loss_before"] == pytest.approx(
        reference_loss(tiny_base, None, rows(3)), rel=1e-5
    )
    assert measured["valid_loss_after"] == pytest.approx(
        reference_loss(tiny_base, tmp_path / "a", rows(3)), rel=1e-5
    )
    assert measured["valid_loss_after"] < measured["valid_loss_before"] - 0.3
    assert sorted(made.manifest.files) == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"
    assert str(tmp_path) not in json.dumps(config)


def test_a_seed_decides_and_a_finished_stage_is_skipped(
    tmp_path: Path, tiny_base: Path, dataset: Artifact
) -> None:
    base = open_base(str(tiny_base))
    first = train(dataset, base, tmp_path / "a", FAST, threads=1)
    again = train(dataset, base, tmp_path / "b", FAST, threads=1)
    assert first.id == again.id
    stamp = (tmp_path / "a" / "manifest.json").stat().st_mtime_ns
    train(dataset, base, tmp_path / "a", FAST, threads=1)
    assert (tmp_path / "a" / "manifest.json").stat().st_mtime_ns == stamp
    other = train(dataset, base, tmp_path / "c", TrainConfig(**{**vars(FAST), "seed": 1}), 2)
    assert other.id != first.id


def test_bfloat16_trains_a_float32_adapter(
    tmp_path: Path, tiny_base: Path, dataset: Artifact
) -> None:
    config = TrainConfig(**{**vars(FAST), "dtype": "bfloat16"})
    made = train(dataset, open_base(str(tiny_base)), tmp_path / "a", config, threads=1)
    tensors = load_file(made.file("adapter_model.safetensors"))
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    measured = made.manifest.measured
    assert measured["valid_loss_after"] < measured["valid_loss_before"] - 0.3


def test_early_stop_keeps_the_best_state(tmp_path: Path, tiny_base: Path) -> None:
    valid = [{"prompt": "something else", "completion": "9 8 7 6 5 4"}]
    dataset = make_dataset(tmp_path / "dataset", rows(8), valid)
    config = TrainConfig(learning_rate=3e-2, epochs=30, batch_size=4, dtype="float32", patience=2)
    made = train(dataset, open_base(str(tiny_base)), tmp_path / "a", config, threads=1)
    measured = made.manifest.measured
    losses = [entry["valid_loss"] for entry in measured["history"]][1:]
    assert measured["valid_loss_after"] == min(losses)
    assert measured["epochs"] == losses.index(min(losses)) + 1 + 2 < 30
    found = reference_loss(tiny_base, tmp_path / "a", valid)
    assert found == pytest.approx(min(losses), rel=1e-5)


KILLED = """
    import sys, time
    from pathlib import Path
    import cloud.train as stage
    from protos.artifacts import open_artifact
    from protos.base_model import open_base
    config = stage.TrainConfig(learning_rate=2e-2, epochs=4, batch_size=4, dtype="float32",
                               rank=4, patience=9)
    def progress(message, fraction):
        print(fraction, flush=True)
        if fraction > 0.6 and sys.argv[4] == "wait":
            time.sleep(300)  # the signal comes here, however busy the machine is
    stage.train(open_artifact(Path(sys.argv[1])), open_base(sys.argv[2]), Path(sys.argv[3]),
                config, 1, progress)
"""


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_resumes_and_ends_with_the_same_adapter(
    tmp_path: Path, tiny_base: Path, dataset: Artifact, signal_number: int
) -> None:
    uninterrupted = train(dataset, open_base(str(tiny_base)), tmp_path / "a", FAST, threads=1)
    command = [sys.executable, "-c", textwrap.dedent(KILLED)]
    arguments = [str(dataset.path), str(tiny_base), str(tmp_path / "b")]
    process = subprocess.Popen(
        [*command, *arguments, "wait"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if float(line) > 0.6:
            process.send_signal(signal_number)
            break
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "b").exists()
    assert list(tmp_path.glob(".b.*.work/checkpoint.safetensors"))
    resumed = subprocess.run(
        [*command, *arguments, "go on"], capture_output=True, text=True, check=True, timeout=300
    )
    assert float(resumed.stdout.splitlines()[0]) > 0.4, "it began again instead of going on"
    made = open_artifact(tmp_path / "b", "Adapter")
    assert made.id == uninterrupted.id
    assert not list(tmp_path.glob(".b.*"))


def test_a_prompt_longer_than_the_context_loses_its_beginning_and_is_counted(
    tmp_path: Path, tiny_base: Path
) -> None:
    valid = [*rows(1), *rows(2, length=400)]
    dataset = make_dataset(tmp_path / "dataset", [*rows(3), *rows(1, length=400)], valid)
    config = TrainConfig(**{**vars(FAST), "epochs": 1})
    made = train(dataset, open_base(str(tiny_base)), tmp_path / "a", config, threads=1)
    measured = made.manifest.measured
    assert (measured["truncated"], measured["truncated_valid"]) == (1, 2)
    assert measured["valid_loss_before"] == pytest.approx(
        reference_loss(tiny_base, None, valid, longest=256), rel=1e-5
    )
    huge = [{"prompt": "x", "completion": "fox " * 400}]
    dataset = make_dataset(tmp_path / "huge", huge, rows(1))
    with pytest.raises(InputError, match="does not fit 256 tokens"):
        train(dataset, open_base(str(tiny_base)), tmp_path / "b", FAST, threads=1)


def test_what_cannot_be_trained_is_refused(
    tmp_path: Path, tiny_base: Path, dataset: Artifact
) -> None:
    base = open_base(str(tiny_base))
    with pytest.raises(UnsupportedError, match="no_such_proj"):
        train(dataset, base, tmp_path / "a", TrainConfig(targets="no_such_proj"), 2)
    with pytest.raises(InputError, match=r"rank is 0.*learning_rate is -1"):
        TrainConfig(rank=0, learning_rate=-1)
    with pytest.raises(InputError, match=r"learning_rate is 1e\+38.*weight_decay is nan"):
        TrainConfig(learning_rate=1e38, weight_decay=float("nan"))
    with pytest.raises(InputError, match="lower --learning-rate"):
        train(
            dataset, base, tmp_path / "a", TrainConfig(**{**vars(FAST), "learning_rate": 1e30}), 1
        )
    assert not (tmp_path / "a").exists()


def test_an_empty_completion_to_check_by_is_refused_by_file_and_line(
    tmp_path: Path, tiny_base: Path
) -> None:
    valid = [*rows(2), {"prompt": "what?", "completion": " \n"}]
    dataset = make_dataset(tmp_path / "dataset", rows(3), valid)
    with pytest.raises(InputError, match=r"valid\.jsonl, line 3: an empty completion"):
        train(dataset, open_base(str(tiny_base)), tmp_path / "a", FAST, threads=1)
    assert not list(tmp_path.glob("*a*/checkpoint*"))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("damage", "error", "says"),
    [
        (lambda p: (p / "config.json").unlink(), InputError, "config.json: no such file"),
        (lambda p: (p / "config.json").write_text("{"), InputError, "not JSON"),
        (lambda p: (p / "tokenizer.json").unlink(), InputError, "no tokenizer.json"),
        (lambda p: (p / "tokenizer.json").write_text("{}"), InputError, "unreadable tokenizer"),
        (lambda p: (p / "model.safetensors").unlink(), InputError, r"no \*.safetensors"),
        (lambda p: os.truncate(p / "model.safetensors", 5000), InputError, "unreadable model"),
        (lambda p: set_config(p, architectures=["T5Model"]), InputError, "causal"),
        (lambda p: set_config(p, vocab_size=100), MismatchError, "the model has 100 embeddings"),
        (lambda p: set_config(p, num_hidden_layers=3), InputError, "weights missing"),
    ],
)
def test_a_base_that_is_no_sound_causal_lm_is_refused(
    tmp_path: Path, tiny_base: Path, dataset: Artifact, damage, error, says: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_base, broken)
    damage(broken)
    with pytest.raises(error, match=says):
        train(dataset, open_base(str(broken)), tmp_path / "a", FAST, threads=1)
    assert not (tmp_path / "a").exists()


def set_config(path: Path, **changes: object) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))


def test_a_base_that_is_nowhere_is_said_at_once(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(InputError, match="no such directory"):
        open_base(str(tmp_path / "none"))
    with pytest.raises(InputError, match="not a hub id either"):
        open_base("no such/model at/all")
    assert time.monotonic() - started < 5


def test_an_adapter_is_not_taken_for_a_base(
    tmp_path: Path, tiny_base: Path, dataset: Artifact
) -> None:
    config = TrainConfig(**{**vars(FAST), "epochs": 1})
    train(dataset, open_base(str(tiny_base)), tmp_path / "a", config, threads=1)
    with pytest.raises(InputError, match="this is a PEFT adapter"):
        open_base(str(tmp_path / "a"))


def test_plain_models_are_asked_without_a_chat_template(plain_base: Path) -> None:
    from protos.base_model import completion_ids, prompt_ids, render

    tokenizer = load_tokenizer(open_base(str(plain_base)))
    assert render(tokenizer, "hi") == "hi\n"
    assert tokenizer.decode(prompt_ids(tokenizer, "hi")) == "hi\n"
    assert completion_ids(tokenizer, "x")[-1] == tokenizer.eos_token_id
