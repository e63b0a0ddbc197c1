"""Bundles made by the real export from a tiny model, and what PEFT says about the same adapters."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from protos.artifacts import MANIFEST, create, open_artifact

THREADS = 1
CONTEXT = 192
RANK = 4
PROMPTS = [f"headline for article {n}: the {w} opens" for n, w in enumerate(["city", "road"] * 6)]


@dataclass(frozen=True)
class World:
    """A tiny base, its bundles, and two users' adapters."""

    base_model: Path
    peft: dict[str, Path]
    base: Path
    adapters: dict[str, Path]


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def model_dir(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base with larger weights: at initialization all logits would be nearly equal."""
    import torch
    from transformers import AutoModelForCausalLM

    directory = tmp_path_factory.mktemp("runtime") / "model"
    shutil.copytree(tiny_base, directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(5.0)
    model.save_pretrained(directory)
    return directory


def make_peft(model_dir: Path, out: Path, seed: int) -> Path:
    """A random LoRA adapter that changes the answers a good deal."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    targets = ["q_proj", "v_proj", "o_proj", "down_proj"]
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=targets, task_type="CAUSAL_LM")
    tuned = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.1)
    tuned.save_pretrained(out)
    return out


@pytest.fixture(scope="session")
def peft_dirs(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("peft")
    return {
        user: make_peft(model_dir, home / user, seed) for seed, user in enumerate(["ada", "bo"])
    }


def make_world(home: Path, model_dir: Path, peft: dict[str, Path], recipe: str) -> World:
    from export.adapter import export_adapter
    from export.base import export_base

    base = home / "base"
    export_base(
        str(model_dir), base, recipe, rank=RANK, context_length=CONTEXT, prompts=PROMPTS,
        threads=THREADS,
    )  # fmt: skip
    adapters = {user: home / user for user in peft}
    for user, out in adapters.items():
        export_adapter(
            peft[user], base, out, base=str(model_dir), prompts=PROMPTS, trust_base=True,
            threads=THREADS,
        )  # fmt: skip
    return World(model_dir, peft, base, adapters)


@pytest.fixture(scope="session")
def world(
    tmp_path_factory: pytest.TempPathFactory, model_dir: Path, peft_dirs: dict[str, Path]
) -> World:
    """Everything in float32."""
    home = tmp_path_factory.mktemp("fp32")
    return make_world(home, model_dir, peft_dirs, "executorch-xnnpack-fp32")


@pytest.fixture(scope="session")
def quantized(
    tmp_path_factory: pytest.TempPathFactory, model_dir: Path, peft_dirs: dict[str, Path]
) -> World:
    """The same with int4 weights and int8 activations."""
    home = tmp_path_factory.mktemp("8da4w")
    return make_world(home, model_dir, peft_dirs, "executorch-xnnpack-8da4w")


@pytest.fixture(scope="session")
def merged_bundle(
    tmp_path_factory: pytest.TempPathFactory, model_dir: Path, peft_dirs: dict[str, Path]
) -> Path:
    from export.merged import export_merged

    out = tmp_path_factory.mktemp("merged") / "ada"
    export_merged(
        peft_dirs["ada"], out, "executorch-xnnpack-fp32", base=str(model_dir),
        context_length=CONTEXT, prompts=PROMPTS, trust_base=True, threads=THREADS,
    )  # fmt: skip
    return out


@pytest.fixture(scope="session")
def probe(world, tmp_path_factory) -> Path:
    from export.executorch.probe import export_probe

    out = tmp_path_factory.mktemp("probe") / "fp32"
    return export_probe(world.base, out, base=str(world.base_model), threads=1).path


@pytest.fixture(scope="session")
def quantized_probe(quantized, tmp_path_factory) -> Path:
    from export.executorch.probe import export_probe

    out = tmp_path_factory.mktemp("probe") / "8da4w"
    return export_probe(quantized.base, out, base=str(quantized.base_model), threads=1).path


class Reference:
    """Transformers and PEFT in float32: the independent reference."""

    def __init__(self, model_dir: Path, adapter: Path | None) -> None:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        self._torch = torch
        model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
        self._model = (PeftModel.from_pretrained(model, adapter) if adapter else model).eval()

    def logits(self, ids: list[int]) -> np.ndarray:
        """[len(ids), vocab]"""
        with self._torch.no_grad():
            return self._model(self._torch.tensor([ids])).logits[0].numpy()

    def greedy(self, ids: list[int], steps: int) -> list[int]:
        answer: list[int] = []
        for _ in range(steps):
            answer.append(int(self.logits([*ids, *answer])[-1].argmax()))
        return answer


@pytest.fixture(scope="session")
def references(model_dir: Path, peft_dirs: dict[str, Path]) -> dict[str | None, Reference]:
    users: list[str | None] = [None, *peft_dirs]
    return {u: Reference(model_dir, peft_dirs[u] if u else None) for u in users}


Mutate = Callable[[Path], None]


@pytest.fixture
def reseal(tmp_path: Path) -> Callable[..., Path]:
    """Copies an artifact, changes it and seals it again, so that all its digests are right."""

    def make(source: Path, mutate: Mutate, parents: dict[str, str] | None = None) -> Path:
        artifact = open_artifact(source)
        out = tmp_path / f"resealed-{len(list(tmp_path.iterdir()))}"
        known = {**artifact.manifest.parents, **(parents or {})}
        with create(out, artifact.manifest.kind, known, artifact.config) as draft:
            shutil.copytree(source, draft.path, dirs_exist_ok=True)
            (draft.path / MANIFEST).unlink()
            mutate(draft.path)
        return out

    return make
