"""The models that several benchmarks measure: made once, lowered once, kept below build/bench/.

In: quick or not. Out: `Model`, a base with two users' adapters, and `Lowered`, what `export base`
or `export merged` made of it, with the seconds and the memory that it took. A lowering is kept
under the digest of all that it depends on, our code included; `make bench` begins without any.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.alone import ROOT, alone
from protos.artifacts import digest_json, tool_versions
from protos.base_model import open_base

KEPT = ROOT / "build" / "bench"
LOWERINGS = KEPT / "lowered"
FP32, INT4 = "executorch-xnnpack-fp32", "executorch-xnnpack-8da4w"
SHAPE = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 2048,
    "tie_word_embeddings": True, "eos_token_id": 2, "bos_token_id": 1,
}  # fmt: skip
"""SmolLM-135M's."""
BUNDLED = ROOT / "cloud" / "pocket" / "models" / "base"
CONTEXT, RANK, ALPHA = 512, 8, 16
ADAPTER_STD = 0.02


@dataclass(frozen=True)
class Model:
    """A base model as a Hugging Face directory, and adapters on all its linear layers, r = 8."""

    name: str
    base: str
    adapters: tuple[str, str]


@dataclass(frozen=True)
class Lowered:
    """A bundle. seconds: all of the export, goldens too, in a process of its own."""

    path: Path
    seconds: float
    peak_bytes: int
    measured: dict[str, Any]


def model(quick: bool) -> Model:
    """The bundled base, or a random Llama like SmolLM-135M with the bundled tokenizer."""
    name = "bundled base" if quick else "135M shape"
    bundled = open_base(str(BUNDLED)).digest  # its weights, or at least its tokenizer
    facts = [name, SHAPE, RANK, ALPHA, ADAPTER_STD, bundled, tool_versions()]
    home = KEPT / f"model-{digest_json(facts)[:12]}"
    base = BUNDLED if quick else home / "base"
    if not home.exists():
        making = home.with_suffix(".partial")
        shutil.rmtree(making, ignore_errors=True)
        if not quick:
            _make_base(making / "base")
        for user in (0, 1):
            make_adapter(BUNDLED if quick else making / "base", making / f"adapter{user}", user)
        making.rename(home)
    return Model(name, str(base), (str(home / "adapter0"), str(home / "adapter1")))


def lowered(what: Literal["base", "merged"], recipe: str, of: Model) -> Lowered:
    """`export base`, or `export merged` with the first user's adapter, unless it is there."""
    facts = [what, recipe, CONTEXT, asdict(of), tool_versions(), _code()]
    home = LOWERINGS / f"{what}-{recipe}-{digest_json(facts)[:12]}"
    if not (home / "took.json").is_file():
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        print(f"lowering: {what}, {recipe}, {of.name}", flush=True)
        done = alone(
            _lower, what=what, recipe=recipe, base=of.base, adapter=of.adapters[0],
            out=str(home / "bundle"),
        )  # fmt: skip
        (home / "took.json").write_text(json.dumps(asdict(done)), encoding="utf-8")
    took = json.loads((home / "took.json").read_text("utf-8"))
    return Lowered(home / "bundle", took["seconds"], took["peak_bytes"], took["result"])


def exported(user: int, of: Model, bundle: Path, out: Path, *, goldens: bool = False) -> Path:
    """A user's adapter for a lowered base."""
    from export.adapter import export_adapter

    return export_adapter(
        Path(of.adapters[user]), bundle, out, base=of.base, goldens=goldens, trust_base=True
    ).path


def _lower(what: str, recipe: str, base: str, adapter: str, out: str) -> dict[str, Any]:
    from export.base import export_base
    from export.merged import export_merged

    if what == "base":
        return dict(export_base(base, Path(out), recipe, context_length=CONTEXT).manifest.measured)
    return dict(
        export_merged(
            Path(adapter), Path(out), recipe, base=base, context_length=CONTEXT, trust_base=True
        ).manifest.measured
    )


def _code() -> str:
    """A digest of the code that lowers."""
    files = sorted(path for part in ("export", "protos") for path in (ROOT / part).rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def _make_base(directory: Path) -> None:
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(directory)
    AutoTokenizer.from_pretrained(BUNDLED).save_pretrained(directory)


def make_adapter(base: Path | str, directory: Path | str, seed: int) -> None:
    """A random adapter, none of its B matrices zero."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    loaded: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(loaded, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=ADAPTER_STD)
    adapted.save_pretrained(str(directory), save_embedding_layers=False)
