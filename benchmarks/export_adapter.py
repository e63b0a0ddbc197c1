"""What a user costs: `export adapter` against `export merged`, in seconds and in bytes on the wire.

`python benchmarks/export_adapter.py [--out results.json]` makes a random Llama like SmolLM-135M
(30 layers, hidden 576, vocabulary 49,152) with a LoRA adapter, r = 8 on all seven projections, and
exports both ways with 8da4w. Before it times the separate form it runs parity on it: with random
weights rounding flips near ties, so the top-1 gates may fail, any other failure ends it. Takes some
30 minutes on 2 cores; that the weights are random does not matter for sizes and times.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from protos.artifacts import tool_versions

RECIPE = "executorch-xnnpack-8da4w"
SHAPE = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 2048,
    "tie_word_embeddings": True, "eos_token_id": 2, "bos_token_id": 1,
}  # fmt: skip
CONTEXT = 512
REPEATS = 5


def make_model(directory: Path) -> None:
    """A random model of that shape, with the bundled tokenizer: its ids are in the vocabulary."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    import cloud.pocket

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE)).to(torch.bfloat16).save_pretrained(directory)
    bundled = Path(cloud.pocket.__file__).parent / "models" / "base"
    AutoTokenizer.from_pretrained(bundled).save_pretrained(directory)


def make_adapter(base: Path, directory: Path) -> None:
    """A random adapter, none of its B matrices zero."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    adapted.save_pretrained(directory, save_embedding_layers=False)


def measure(work: Path, threads: int) -> dict[str, Any]:
    """Export both ways; seconds are medians where a step can be repeated."""
    from export.adapter import export_adapter
    from export.base import export_base
    from export.merged import export_merged
    from mobile_runtime.parity import measure_parity

    base, adapter = work / "model", work / "adapter"
    make_model(base)
    make_adapter(base, adapter)
    given: dict[str, Any] = {"base": str(base), "threads": threads, "trust_base": True}
    lowered = export_base(str(base), work / "base", RECIPE, context_length=CONTEXT, threads=threads)
    bundle = export_adapter(adapter, lowered.path, work / "bundle", **given)
    parity = measure_parity(lowered.path, bundle.path, threads)
    failed = [gate.name for gate in parity.gates if not gate.passed]
    wrong = [name for name in failed if not name.startswith("lowering_top1")]
    if wrong:
        raise SystemExit(f"the separate form does not answer as PEFT does: {wrong}")
    merged = export_merged(adapter, work / "merged", RECIPE, context_length=CONTEXT, **given)
    whole: list[float] = []
    for number in range(REPEATS):
        started = time.perf_counter()
        export_adapter(adapter, lowered.path, work / f"again{number}", goldens=False, **given)
        whole.append(time.perf_counter() - started)
    own, other = bundle.manifest.measured, merged.manifest.measured
    return {
        "adapter_bytes": own["wire_bytes"],
        "merged_bytes": other["wire_bytes"],
        "merged_over_adapter_bytes": round(other["wire_bytes"] / own["wire_bytes"], 2),
        "adapter_write_seconds": own["adapter_seconds"],
        "adapter_export_seconds": round(statistics.median(whole), 3),
        "adapter_golden_seconds": own["golden_seconds"],
        "merged_lowering_seconds": other["lowering_seconds"],
        "merged_golden_seconds": other["golden_seconds"],
        "base_bytes": lowered.manifest.measured["wire_bytes"],
        "base_lowering_seconds": lowered.manifest.measured["lowering_seconds"],
        "parity_gates_failed": failed,
    }


def main() -> None:
    """Run, print, and write the figures where `--out` says."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--out", type=Path)
    arguments.add_argument("--threads", type=int, default=2)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as work:
        figures = measure(Path(work), given.threads)
    result = {
        "benchmark": "export_adapter",
        "figures": figures,
        "machine": {"processor": platform.machine(), "threads": given.threads},
        "versions": tool_versions(),
    }
    print(json.dumps(result, indent=1))
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
