"""The commands `run` and `parity`, as a person or a script uses them."""

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mobile_runtime.cli import parity, run
from protos.artifacts import open_artifact
from protos.errors import GateError, InputError


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


def bundles(world, user: str | None = "ada") -> list[str]:
    adapter = ["--adapter-bundle", str(world.adapters[user])] if user else []
    return ["--base-bundle", str(world.base), *adapter, "--threads", "1"]


def invoke(command, arguments: list[str], text: str | None = None) -> Result:
    return CliRunner().invoke(command, arguments, input=text, catch_exceptions=True)


def test_run_streams_text_and_prints_what_opening_cost(world) -> None:
    result = invoke(run, [*bundles(world), "a headline", "--max-new-tokens", "8", "--stats"])
    assert result.exit_code == 0, result.exception
    assert "decode_tokens_per_s" in result.stderr
    assert "bytes written" in result.stderr
    assert "a phone opens" in result.stderr
    again = invoke(run, [*bundles(world), "--max-new-tokens", "8"], "a headline\n")
    assert again.stdout == result.stdout


def test_run_as_json_tells_ids_and_figures(world) -> None:
    result = invoke(run, [*bundles(world), "hello", "--max-new-tokens", "5", "--json"])
    value = json.loads(result.stdout)
    assert value["new_tokens"] == len(value["ids"]) <= 5
    assert value["finish"] in ("length", "eos")
    assert value["opened"]["opened_bytes"] > 0


def test_run_says_one_of_the_choices_and_nothing_else(world) -> None:
    asked = [*bundles(world), "a headline", "--choice", "yes", "--choice", "not at all"]
    assert invoke(run, asked).stdout in {"yes\n", "not at all\n"}
    short = invoke(run, [*asked, "--max-new-tokens", "1"])
    assert "the choice 'yes' has" in str(short.exception)


def test_a_run_that_failed_leaves_no_program_alive(world) -> None:
    """Its frames hold one until they are collected, and a pool in use takes no other size."""
    asked = [*bundles(world), "a headline", "--choice", "yes", "--max-new-tokens", "1"]
    gc.disable()
    try:
        assert "the choice 'yes' has" in str(invoke(run, asked).exception)
        other = [*bundles(world)[:-1], "2", "hello", "--max-new-tokens", "1"]
        assert invoke(run, other).exit_code == 0
    finally:
        gc.enable()


def test_raw_text_skips_the_template(world) -> None:
    asked = [*bundles(world, None), "hello", "--max-new-tokens", "1", "--json"]
    counts = [
        json.loads(invoke(run, [*asked, *raw]).stdout)["prompt_tokens"] for raw in ([], ["--raw"])
    ]
    assert counts[0] == counts[1] + 2  # the template's two role tokens


def test_bad_input_is_one_error_of_ours(world, tmp_path) -> None:
    assert isinstance(invoke(run, ["hello"]).exception, InputError)
    wrong = invoke(run, ["--base-bundle", str(tmp_path / "none"), "hello"])
    assert "no such artifact directory" in str(wrong.exception)
    bytes_in = CliRunner().invoke(run, bundles(world), input=b"\xff\xfe")
    assert "standard input: not UTF-8 at byte 0" in str(bytes_in.exception)
    alone = invoke(run, ["--adapter-bundle", str(world.adapters["ada"]), "hello"])
    assert "needs its base" in str(alone.exception)


def test_parity_prints_a_table_and_keeps_a_report(world, tmp_path) -> None:
    result = invoke(parity, [*bundles(world), "--out", str(tmp_path / "report")])
    assert result.exit_code == 0, result.exception
    assert "Parity of the adapter: sound" in result.stdout
    assert "negative_control" in result.stdout
    assert open_artifact(tmp_path / "report", "ParityReport")


def test_parity_as_json_is_json_alone(world, tmp_path) -> None:
    result = invoke(parity, [*bundles(world, None), "--out", str(tmp_path / "report"), "--json"])
    value = json.loads(result.stdout)
    assert value["passed"] is True
    assert value["id"] == open_artifact(tmp_path / "report").id


def test_a_failing_gate_raises_after_the_report_is_written(world, tmp_path, reseal) -> None:
    def lose_the_end(directory: Path) -> None:
        value = json.loads((directory / "prompt.json").read_text())
        (directory / "prompt.json").write_text(json.dumps({**value, "eos_ids": []}))

    broken = reseal(world.base, lose_the_end)
    out = tmp_path / "report"
    result = invoke(parity, ["--base-bundle", str(broken), "--out", str(out), "--threads", "1"])
    assert isinstance(result.exception, GateError)
    assert result.exception.exit_code == 7
    assert "FAIL" in result.stdout
    assert json.loads((out / "report.json").read_text())["stage_at_fault"] == "tokenizer"


@pytest.mark.parametrize("command", [run, parity])
def test_help_has_an_example(command) -> None:
    shown = " ".join(invoke(command, ["--help"]).stdout.split())
    assert f"Example: pocketune {command.name} --base-bundle" in shown


def test_importing_the_commands_imports_nothing_heavy() -> None:
    code = "import sys, mobile_runtime.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "numpy", "tokenizers", "jinja2", "executorch", "rich", "safetensors"}
    assert not heavy & set(done.stdout.split())


def test_running_imports_neither_transformers_nor_peft_nor_the_exporter(world) -> None:
    code = (
        "import sys; from pathlib import Path; from mobile_runtime.parity import measure_parity\n"
        f"assert measure_parity(Path({str(world.base)!r}), None, 1).passed\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not {"transformers", "peft", "grpc", "torchao", "executorch.exir"} & loaded
    assert done.stderr == ""
