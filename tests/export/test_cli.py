"""The commands, and inputs that are refused before anything is lowered."""

import dataclasses
import json
import shutil
import subprocess
import sys

import pytest
from click.testing import CliRunner

from export.cli import export, recipes
from export.families import choose_context
from export.prompts import read_prompts
from export.recipes import find_recipe
from protos.base_model import open_base
from protos.errors import InputError, PocketuneError, UnsupportedError
from protos.golden import read_golden


def refused(*arguments: object) -> PocketuneError:
    result = CliRunner().invoke(export, [str(argument) for argument in arguments])
    assert isinstance(result.exception, PocketuneError), result.exception
    return result.exception


@pytest.fixture
def altered(llama, tmp_path):
    """A copy of the Llama base with other options in its config."""

    def make(**options):
        copy = tmp_path / "base"
        shutil.copytree(llama, copy)
        config = json.loads((copy / "config.json").read_text()) | options
        (copy / "config.json").write_text(json.dumps(config))
        return copy

    return make


def test_recipes_are_listed_with_what_runs_here_and_what_is_not_offered():
    listed = json.loads(CliRunner().invoke(recipes, ["--json"]).stdout)
    rows = {row["name"]: row for row in listed["recipes"]}
    assert list(rows) == [
        "executorch-xnnpack-fp32", "executorch-xnnpack-8da4w", "executorch-xnnpack-8da4w-g64",
        "executorch-xnnpack-8da4w-g128", "executorch-xnnpack-8da8w",
        "executorch-coreml", "executorch-vulkan",
        "mlc-q0f32", "mlc-q0f16", "mlc-q4f32_1", "mlc-q4f16_1",
    ]  # fmt: skip
    chosen = rows["executorch-xnnpack-8da4w"]
    assert chosen["thresholds"]["effect_cosine"] == 0.9
    assert (chosen["adapter"], chosen["runs_here"]) == ("separate or merged", True)
    assert {row["name"] for row in rows.values() if not row["runs_here"]} == {
        row["name"] for row in rows.values() if row["adapter"] == "merged"
    } == {"executorch-coreml", "executorch-vulkan"}  # fmt: skip
    assert {row["context_length"] for row in rows.values()} == {2048}
    text = CliRunner().invoke(recipes).stdout
    assert text.count("  context  2048 positions, or as many as the model has\n") == len(rows)
    assert all(f"\n{name}\n" in f"\n{text}" for name in rows)
    assert "  here     lowered, not run here\n" in text
    assert "  qnn                     Qualcomm's AI Engine Direct SDK\n" in text
    assert "qnn" in listed["not_offered"]


@pytest.mark.parametrize("command", ["base", "adapter", "merged"])
def test_help_has_an_example(command):
    result = CliRunner().invoke(export, [command, "--help"])
    assert result.exit_code == 0
    assert f"Example: pocketune export {command}" in result.stdout


def test_commands_import_nothing_large():
    large = "{'torch', 'numpy', 'transformers'}"
    code = f"import sys, export.cli; print(sorted({large} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_adapter_command_writes_a_bundle(llama, llama_bundle, users, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "Mayor opens new bridge"}\n')
    result = CliRunner().invoke(
        export,
        ["adapter", str(users[0][0]), "--base", str(llama), "--bundle", str(llama_bundle.path),
         "--out", str(tmp_path / "out"), "--prompts", str(prompts), "--json"],
        catch_exceptions=False,
    )  # fmt: skip
    told = json.loads(result.stdout)
    files = told["files"]
    (data,) = [name for name in files if name.startswith("adapter.ptd")]
    assert told["measured"]["wire_bytes"] == files["program.pte"] + files[data]
    assert told["measured"]["adapter_seconds"] < 1.0
    assert read_golden(tmp_path / "out").prompts[0].content == "Mayor opens new bridge"


def test_unknown_recipe_names_the_known_ones(llama, tmp_path):
    error = refused("base", "--base", llama, "--out", tmp_path / "o", "--recipe", "fp32")
    assert isinstance(error, InputError)
    assert "executorch-xnnpack-fp32, executorch-xnnpack-8da4w" in str(error)


@pytest.mark.parametrize(
    ("recipe", "needed"),
    [("executorch-qnn", "Qualcomm's AI Engine Direct SDK"), ("mlx", "Apple's MLX"),
     ("executorch-xnnpack-bf16", "240 times slower than float32")],
)  # fmt: skip
def test_backends_that_cannot_be_had_say_what_they_need(recipe, needed, llama, tmp_path):
    error = refused("base", "--base", llama, "--out", tmp_path / "o", "--recipe", recipe)
    assert isinstance(error, UnsupportedError)
    assert needed in str(error)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"architectures": ["GPT2LMHeadModel", "MistralForCausalLM"][1:]}, "MistralForCausalLM"),
        ({"sliding_window": 64}, "sliding window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding window"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "dynamic"),
        ({"rope_scaling": {"type": "longrope"}}, "longrope"),
        (
            {
                "rope_parameters": {
                    "sliding_attention": {"rope_type": "default"},
                    "full_attention": {"rope_type": "longrope"},
                }
            },
            "longrope",
        ),
        ({"attn_logit_softcapping": 50.0}, "soft caps on attention scores"),
        ({"use_bidirectional_attention": True}, "attention to what comes later"),
        ({"quantization_config": {"bits": 4}}, "quantized already"),
    ],
)
def test_models_that_cannot_be_exact_are_refused_by_name(options, named, altered, tmp_path):
    error = refused("base", "--base", altered(**options), "--out", tmp_path / "o")
    assert isinstance(error, UnsupportedError)
    assert named in str(error)
    assert not (tmp_path / "o").exists()


def test_context_longer_than_the_models_is_refused(llama, tmp_path):
    error = refused("base", "--base", llama, "--out", tmp_path / "o", "--context-length", 4096)
    assert isinstance(error, UnsupportedError)
    assert "4096 is more than the 128 positions" in str(error)


@pytest.mark.parametrize(
    ("positions", "wanted", "chosen"), [(128, None, 128), (8192, None, 1024), (8192, 4096, 4096)]
)
def test_the_context_is_what_is_asked_for_else_the_recipes_or_the_models(
    positions, wanted, chosen, altered
):
    recipe = dataclasses.replace(find_recipe("executorch-xnnpack-8da4w"), context_length=1024)
    base = open_base(str(altered(max_position_embeddings=positions)))
    assert choose_context(base, recipe, wanted) == chosen


def test_inputs_that_fit_no_group_are_refused_by_name(tiny_base, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    base = tmp_path / "odd"
    shutil.copytree(tiny_base, base)
    config = LlamaConfig.from_pretrained(base)
    config.intermediate_size = 72
    LlamaForCausalLM(config).save_pretrained(base)
    error = refused("base", "--base", base, "--out", tmp_path / "o")
    assert isinstance(error, UnsupportedError)
    assert "model.layers.0.mlp.down_proj has 72" in str(error)
    assert [path.name for path in tmp_path.iterdir()] == ["odd"]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b'{"prompt": "a"}\nnonsense\n', "line 2: not JSON"),
        (b'{"prompt": 3}\n', "line 1: no text under 'prompt'"),
        (b'{"prompt": "\xff"}\n', "not UTF-8 at byte 12"),
    ],
)
def test_malformed_prompts_name_file_and_line(content, named, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=named):
        read_prompts(path)
