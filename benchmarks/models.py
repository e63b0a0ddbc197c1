"""The models that several benchmarks measure: made once, lowered once, kept below build/bench/.

In: quick or not. Out: `Model`, a base with two users' adapters, and `Lowered`, what `export base`
or `export merged` made of it, with the seconds and the memory that it took. A lowering is kept
under the digest of all that it depends on, our code included; `make bench` begins without any.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Generator
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
    """A bundle. seconds: all of the export, goldens too, in a process of its own.

    cache: where its lowering was kept. phases: name -> seconds, and the most memory held until its
    end.
    """

    id: str
    path: Path
    cache: Path
    seconds: float
    peak_bytes: int
    measured: dict[str, Any]
    phases: dict[str, tuple[float, int]]


def model(quick: bool) -> Model:
    """One layer of the bundled base, or a random Llama like SmolLM-135M with its tokenizer."""
    name = "one layer of the bundled base" if quick else "135M shape"
    bundled = open_base(str(BUNDLED)).digest  # its weights, or at least its tokenizer
    facts = [name, SHAPE, RANK, ALPHA, ADAPTER_STD, bundled, tool_versions()]
    home = KEPT / f"model-{digest_json(facts)[:12]}"
    with _alone_at(home):
        if not home.exists():
            making = home.with_suffix(".partial")
            shutil.rmtree(making, ignore_errors=True)
            _make_base(making / "base", quick)
            for user in (0, 1):
                make_adapter(making / "base", making / f"adapter{user}", user)
            making.rename(home)
    return Model(name, str(home / "base"), (str(home / "adapter0"), str(home / "adapter1")))


def lowered(what: Literal["base", "merged"], recipe: str, of: Model) -> Lowered:
    """`export base`, or `export merged` with the first user's adapter, unless it is there."""
    facts = [what, recipe, CONTEXT, asdict(of), tool_versions(), _code()]
    home = LOWERINGS / f"{what}-{recipe}-{digest_json(facts)[:12]}"
    with _alone_at(home):
        if not (home / "took.json").is_file():
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir(parents=True)
            print(f"lowering: {what}, {recipe}, {of.name}", flush=True)
            done = alone(
                export_one, base=of.base, out=str(home / "bundle"), recipe=recipe, context=CONTEXT,
                cache=str(home / "cache"), adapter=of.adapters[0] if what == "merged" else None,
            )  # fmt: skip
            (home / "took.json").write_text(json.dumps(asdict(done)), encoding="utf-8")
    took = json.loads((home / "took.json").read_text("utf-8"))
    found = took["result"]
    return Lowered(
        found["id"], home / "bundle", home / "cache", took["seconds"], took["peak_bytes"],
        found["measured"], found["phases"],
    )  # fmt: skip


@contextlib.contextmanager
def _alone_at(home: Path) -> Generator[None]:
    """Let nobody else make the same meanwhile: a quick suite runs two benchmarks at once."""
    home.parent.mkdir(parents=True, exist_ok=True)
    with home.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def exported(user: int, of: Model, bundle: Path, out: Path, *, goldens: bool = False) -> Path:
    """A user's adapter for a lowered base."""
    from export.adapter import export_adapter

    return export_adapter(
        Path(of.adapters[user]), bundle, out, base=of.base, goldens=goldens, trust_base=True
    ).path


def export_one(
    base: str,
    out: str,
    recipe: str,
    context: int | None = None,
    cache: str | None = None,
    adapter: str | None = None,
) -> dict[str, Any]:
    """One export, merged if there is an adapter; phase -> seconds and the most memory held until
    its end.
    """
    from benchmarks.alone import peak_bytes
    from export.base import export_base
    from export.lowerings import LoweringCache
    from export.merged import export_merged
    from protos.base_model import skeleton

    phases: dict[str, tuple[float, int]] = {}
    began: list[tuple[str, float]] = [("reading the base", time.perf_counter())]

    def progress(message: str, _: float) -> None:
        name, started = began[-1]
        now = time.perf_counter()
        phases[name] = (phases.get(name, (0.0, 0))[0] + now - started, peak_bytes())
        began.append((message, now))

    given: dict[str, Any] = {
        "context_length": context, "progress": progress,
        "cache": LoweringCache(Path(cache)) if cache else None,
    }  # fmt: skip
    if adapter is None:
        bundle = export_base(base, Path(out), recipe, **given)
    else:
        bundle = export_merged(
            Path(adapter), Path(out), recipe, base=base, trust_base=True, **given
        )
    progress("", 1.0)
    return {
        "id": bundle.id,
        "context": bundle.config["context_length"],
        "measured": dict(bundle.manifest.measured),
        "phases": phases,
        "float32_bytes": sum(4 * each.numel() for each in skeleton(open_base(base)).parameters()),
    }


def _code() -> str:
    """A digest of the code that lowers."""
    files = sorted(path for part in ("export", "protos") for path in (ROOT / part).rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def _make_base(directory: Path, quick: bool) -> None:
    """quick: the bundled base's embedding, first layer, last norm and head, as trained."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    if quick:
        made: Any = LlamaForCausalLM.from_pretrained(BUNDLED, num_hidden_layers=1)
    else:
        made = LlamaForCausalLM(LlamaConfig(**SHAPE))
    made.save_pretrained(directory)
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
