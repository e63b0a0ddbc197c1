"""Weights read back from bundles, and adapters trained over them: against the eager models."""

import json

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from transformers import AutoTokenizer

from cloud.profiles import write_rows
from cloud.train import Member, TrainConfig, train, train_many
from export.adapter import export_adapter
from export.backend import find_backend
from export.base import export_base
from export.recipes import find_recipe
from mobile_runtime.parity import measure_parity
from pocketune import main
from protos.artifacts import Artifact, create, open_artifact
from protos.base_model import load_model, open_base
from protos.errors import ArtifactError, MismatchError
from protos.shipped_weights import load_shipped, shipped_weights

CONFIG = TrainConfig(learning_rate=2e-2, epochs=3, batch_size=4, dtype="float32", rank=4)
VALID = {"prompt": "news 3 of the fox", "completion": "Fox 0 jumps"}
MLC = ("mlc-q0f16", "mlc-q4f32_1", "mlc-q4f16_1")


def eager_weights(base, recipe_name):
    """What the quantized eager model of the export multiplies with, by Hugging Face's names."""
    recipe = find_recipe(recipe_name)
    model = load_model(open_base(str(base)), torch.float32)
    find_backend(recipe).quantize(model, recipe)
    return {
        name: (p.dequantize() if hasattr(p, "qdata") else p).detach().float()
        for name, p in model.named_parameters()
    }


def assert_same(bundle, base):
    wanted = eager_weights(base, bundle.config["recipe"])
    found = {name: torch.from_numpy(array) for name, array in shipped_weights(bundle)}
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


@pytest.fixture(scope="module")
def untied_int4(llama, tmp_path_factory):
    return export_base(
        str(llama), tmp_path_factory.mktemp("b") / "int4", "executorch-xnnpack-8da4w", rank=4
    )


@pytest.mark.slow
def test_executorch_weights_are_those_of_the_eager_model(
    qwen3, qwen3_bundle, llama, llama_bundle, untied_int4
):
    """8da4w with a tied head (which becomes int4, its embedding int8) and without; and float32."""
    assert_same(qwen3_bundle, qwen3)
    assert_same(untied_int4, llama)
    assert_same(llama_bundle, llama)
    names = [name for name, _ in shipped_weights(qwen3_bundle)]
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= set(names)


@pytest.mark.parametrize("recipe", MLC)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_mlc_weights_are_those_of_the_eager_model(family, recipe, request, tmp_path):
    base = request.getfixturevalue(family)
    assert_same(export_base(str(base), tmp_path / "b", recipe), base)


@pytest.fixture(scope="module")
def int4(llama, tmp_path_factory):
    """The tiny Llama as MLC's 4-bit bundle, which needs no lowering."""
    return export_base(str(llama), tmp_path_factory.mktemp("b") / "mlc", "mlc-q4f16_1", rank=4)


def test_an_adapter_is_trained_over_the_weights_of_the_phone(llama, int4, tmp_path):
    """Its first loss is that of the quantized eager model; it names the bundle, is another adapter
    than the one over the float base, and exports to this bundle and to another one of the base."""
    base = open_base(str(llama))
    dataset = make_dataset(tmp_path / "dataset")
    over_float = train(dataset, base, tmp_path / "a", CONFIG, 1)
    over_int4 = train(dataset, base, tmp_path / "b", CONFIG, 1, shipped=int4)
    measured = over_int4.manifest.measured
    assert measured["valid_loss_before"] == pytest.approx(eager_loss(llama, VALID), rel=1e-5)
    assert measured["valid_loss_before"] != over_float.manifest.measured["valid_loss_before"]
    assert measured["valid_loss_after"] < measured["valid_loss_before"]
    assert over_int4.manifest.parents["base_bundle"] == int4.id
    assert (measured["weights"], over_float.manifest.measured["weights"]) == (
        "mlc-q4f16_1", "float",
    )  # fmt: skip
    half = export_base(str(llama), tmp_path / "half", "mlc-q0f16", rank=4)
    for number, bundle in enumerate((int4, half)):
        out = tmp_path / f"bundle{number}"
        made = export_adapter(over_int4.path, bundle.path, out, base=str(llama))
        assert made.manifest.parents["base_bundle"] == bundle.id
        parities = measure_parity(bundle.path, made.path, 1)
        assert parities.passed, [gate for gate in parities.gates if not gate.passed]


def test_several_users_over_the_weights_of_the_phone_are_as_each_alone(llama, int4, tmp_path):
    """Together, by the command too; each names the bundle and is what `train` makes of it alone."""
    base = open_base(str(llama))
    datasets = {name: make_dataset(tmp_path / "users" / name, n) for n, name in enumerate("ab")}
    members = [Member(each, tmp_path / "many" / name, CONFIG) for name, each in datasets.items()]
    together = train_many(members, base, 1, shipped=int4)
    arguments = [
        "train", "--users", str(tmp_path / "users"), "--base", str(llama), "--out",
        str(tmp_path / "told"), "--shipped", str(int4.path), "--threads", "1", "--dtype",
        CONFIG.dtype, "--rank", str(CONFIG.rank), "--epochs", str(CONFIG.epochs), "--batch-size",
        str(CONFIG.batch_size), "--learning-rate", str(CONFIG.learning_rate),
    ]  # fmt: skip
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.stderr
    for made, (name, dataset) in zip(together, datasets.items(), strict=True):
        assert isinstance(made, Artifact), made
        alone = train(dataset, base, tmp_path / "alone" / name, CONFIG, 1, shipped=int4)
        for found in (made, open_artifact(tmp_path / "told" / name, "Adapter")):
            assert found.manifest.measured["users"] == 2
            assert found.manifest.measured["weights"] == "mlc-q4f16_1"
            assert found.manifest.parents == alone.manifest.parents
            assert found.manifest.parents["base_bundle"] == int4.id
            assert distance(found, alone) < 1e-4
    assert distance(together[0], together[1]) > 0.1, "two users, two adapters"


def distance(found, expected):
    """The largest relative difference of a tensor, by its norm."""
    one, other = (load_file(each.file("adapter_model.safetensors")) for each in (found, expected))
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).norm() / other[name].norm()) for name in other)


def test_a_bundle_of_another_base_or_without_its_list_is_refused(llama, qwen3, int4, tmp_path):
    with pytest.raises(MismatchError, match="give the bundle of this base"):
        load_shipped(open_base(str(qwen3)), int4, torch.float32)
    for change, said in ((None, "export the base again"), (lambda w: w[1:], "cannot read back")):
        with create(tmp_path / "old", "BaseBundle", int4.manifest.parents, int4.config) as draft:
            for name in int4.manifest.files:
                (draft.path / name).write_bytes(int4.file(name).read_bytes())
            layout = json.loads((draft.path / "layout.json").read_text())
            layout["weights"] = change(layout["weights"]) if change else None
            (draft.path / "layout.json").write_text(json.dumps(layout))
        with pytest.raises(ArtifactError, match=said):
            load_shipped(open_base(str(llama)), open_artifact(tmp_path / "old"), torch.float32)


def test_what_a_list_of_weights_cannot_say_is_an_error(int4, tmp_path):
    def listed(**changes):
        layout = json.loads(int4.file("layout.json").read_text())
        layout["weights"][0].update(changes)
        with create(tmp_path / "b", "BaseBundle", int4.manifest.parents, int4.config) as draft:
            for name in int4.manifest.files:
                (draft.path / name).write_bytes(int4.file(name).read_bytes())
            (draft.path / "layout.json").write_text(json.dumps(layout))
        return list(shipped_weights(open_artifact(tmp_path / "b")))

    for changes in ({"form": "int3"}, {"key": "none"}, {"first_row": 10**6}, {"shape": [8]}):
        with pytest.raises(ArtifactError, match="malformed list of weights"):
            listed(**changes)


def make_dataset(path, first=0):
    with create(path, "Dataset", {"profile": "p"}, {}) as draft:
        write_rows(draft.path / "train.jsonl", [
            {"prompt": f"news {n} of the fox", "completion": f"Fox {n % 3} jumps"}
            for n in range(first, first + 8)
        ])  # fmt: skip
        write_rows(draft.path / "valid.jsonl", [VALID])
    return open_artifact(path)


def eager_loss(base, row):
    """Mean cross-entropy of a row's completion tokens over the quantized eager model."""
    recipe, tokenizer = find_recipe("mlc-q4f16_1"), AutoTokenizer.from_pretrained(base)
    model = load_model(open_base(str(base)), torch.float32)
    find_backend(recipe).quantize(model, recipe)
    asked = f"<|user|>{row['prompt']}<|assistant|>"
    prompt = tokenizer(asked, add_special_tokens=False)["input_ids"]
    told = tokenizer(row["completion"] + "<|end|>", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([prompt + told])).logits[0, len(prompt) - 1 : -1]
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(told)))
