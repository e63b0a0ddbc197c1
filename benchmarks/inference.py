"""Answering on the device's runtime, against what reads the same model on a computer otherwise.

Prefill and decode with one and two threads: the bundles of ExecuTorch, base, base with an adapter
and merged, against Hugging Face eager and compiled, PEFT, and llama.cpp with the same weights in
Q4_0 and the same adapter as GGUF. All read the same ids. Before anything is timed each one's logits
are held against a model in PyTorch with the very weights that it computes with, and each adapter's
effect against PEFT's. Of Hugging Face's ways (float32 or bfloat16, cache dynamic or static) the
fastest of a trial round is the peer, for prefill and for decode apart.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import models
from benchmarks.alone import ROOT
from benchmarks.peers import PeerError, llama_cpp
from benchmarks.rows import Row
from benchmarks.runners import Runner, Times, running
from benchmarks.turns import compared

AIM = 3.0
"""How many times faster than Hugging Face eager 8da4w is to decode."""
ADAPTER_AIM = round(1 / 1.1, 3)
"""How fast decoding with an adapter is to be, against the same model with the adapter merged in."""
_LIKE_FLOAT32, _LIKE_BFLOAT16, _LIKE_INT4, _EFFECT = 0.9999, 0.99, 0.98, 0.8
"""Least cosine of logits: to the same model in float32, in bfloat16, with int4 weights and
activations rounded at run time; and of the adapter's effect to PEFT's on the same weights."""
EAGER, COMPILED, PEFT = "Hugging Face eager", "torch.compile", "PEFT eager"
LLAMA_CPP = "llama.cpp Q4_0"


@dataclass(frozen=True)
class Sizes:
    """Tokens read at once, then one by one; how often; whether slow peers take part.

    threads: of each run of them all.
    """

    prompt: int = 128
    tokens: int = 64
    repeats: int = 5
    threads: tuple[int, ...] = (1, 2)
    all_peers: bool = True


QUICK = Sizes(tokens=16, repeats=3, threads=(2,), all_peers=False)


@dataclass(frozen=True)
class Variant:
    """Something that reads. like: the reference of its logits, and the least cosine to it.

    effect_of: the variant without the adapter, if its effect is looked at. family: for which peer
    it is one of several ways.
    """

    library: str
    options: Mapping[str, Any]
    like: tuple[str, float]
    effect_of: str | None = None
    family: str = ""


def rows(quick: bool, work: Path) -> list[Row]:
    """Check every variant, then time them in turn."""
    sizes, model = QUICK if quick else Sizes(), models.model(quick)
    variants = _ours(model, sizes, work) | _hugging_face(model, sizes)
    references, found = _references(model), list[Row]()
    if sizes.all_peers:
        try:
            variants |= _llama_cpp(model, references, work)
        except PeerError as error:
            found.append(_missing(model, error))
    ids = _ids(model, sizes)
    wanted = _answers(references, ids, sizes.prompt, work)
    for threads in sizes.threads:
        with contextlib.ExitStack() as stack:
            runners = _start(variants, threads, stack)
            readers = {name: runners[variant.library] for name, variant in variants.items()}
            _check(variants, readers, wanted, ids, sizes.prompt, work)
            kept = _fastest(variants, readers, ids, sizes)
            times = _turns(kept, readers, ids, sizes)
        found += _rows(times, variants, threads, sizes, model.name)
    return found


def _missing(model: models.Model, why: PeerError) -> Row:
    return Row(
        f"prefill and decode, {model.name}", None, "tokens/s", LLAMA_CPP,
        note=f"not measured: {why}", missing=True,
    )  # fmt: skip


def hold_exports(model: models.Model, threads: int, work: Path) -> None:
    """See to it that 8da4w's base, adapter and merged form answer as PyTorch with their weights.

    Raises:
        SystemExit: one does not.
    """
    variants, ids = _ours(model, QUICK, work), _ids(model, QUICK)
    wanted = _answers(_references(model), ids, QUICK.prompt, work)
    with contextlib.ExitStack() as stack:
        runners = _start(variants, threads, stack)
        readers = {name: runners[variant.library] for name, variant in variants.items()}
        _check(variants, readers, wanted, ids, QUICK.prompt, work)


def _ours(model: models.Model, sizes: Sizes, work: Path) -> dict[str, Variant]:
    found: dict[str, Variant] = {}
    recipes = {"8da4w": models.INT4} | ({"fp32": models.FP32} if sizes.all_peers else {})
    for name, recipe in recipes.items():
        base = models.lowered("base", recipe, model).path
        merged = models.lowered("merged", recipe, model).path
        adapter = models.exported(0, model, base, work / f"{name}-adapter")
        weights, least = ("", _LIKE_FLOAT32) if name == "fp32" else ("8da4w", _LIKE_INT4)
        for layout, paths, like in (
            ("base", (base, None), weights or "float32"),
            ("base + adapter", (base, adapter), f"PEFT {weights or 'float32'}"),
            ("merged", (None, merged), f"merged {weights}" if weights else "PEFT float32"),
        ):
            options = dict(zip(("base", "adapter"), (p and str(p) for p in paths), strict=True))
            effect = None if layout == "base" else f"{name} base"
            found[f"{name} {layout}"] = Variant("pocketune", options, (like, least), effect)
    return found


def _hugging_face(model: models.Model, sizes: Sizes) -> dict[str, Variant]:
    found: dict[str, Variant] = {}
    for dtype in ("float32", "bfloat16"):
        least = _LIKE_FLOAT32 if dtype == "float32" else _LIKE_BFLOAT16
        plain = {"base": model.base, "dtype": dtype}
        like, tuned = ("float32", least), ("PEFT float32", least)
        ways: dict[str, dict[str, Any]] = {"": {}, ", static cache": {"static": True}}
        for way, options in ways.items():
            found[f"{EAGER} {dtype}{way}"] = Variant(
                "huggingface", plain | options, like, family=EAGER
            )
            found[f"{PEFT} {dtype}{way}"] = Variant(
                "huggingface", plain | options | {"adapter": model.adapters[0]}, tuned, family=PEFT
            )
        if sizes.all_peers:
            found[f"{COMPILED} {dtype}"] = Variant(
                "huggingface", plain | {"static": True, "compiled": True}, like, family=COMPILED
            )
    return found


def _references(model: models.Model) -> dict[str, dict[str, Any]]:
    """Models in PyTorch, by name, with the weights that variants compute with."""
    plain = {"base": model.base, "dtype": "float32"}
    tuned, quantized = {"adapter": model.adapters[0]}, {"quantized": models.INT4}
    return {
        "float32": plain,
        "PEFT float32": plain | tuned,
        "8da4w": plain | quantized,
        "PEFT 8da4w": plain | quantized | tuned,
        "merged 8da4w": plain | quantized | tuned | {"merged": True},
    }


def _llama_cpp(
    model: models.Model, references: dict[str, dict[str, Any]], work: Path
) -> dict[str, Variant]:
    """llama.cpp's files, made from the same weights; what they stand for joins the references."""
    python, out = llama_cpp(), work / "gguf"
    told = json.dumps({"base": model.base, "adapter": model.adapters[0], "out": str(out)})
    subprocess.run([str(python), "-m", "benchmarks.llama", "convert", told], cwd=ROOT, check=True)
    plain = {
        "base": model.base,
        "dtype": "float32",
        "weights": str(out / "dequantized.safetensors"),
    }
    references |= {"Q4_0": plain, "PEFT Q4_0": plain | {"adapter": model.adapters[0]}}
    base = {"base": str(out / "base.gguf")}
    return {
        LLAMA_CPP: Variant("llama", base, ("Q4_0", _LIKE_INT4)),
        f"{LLAMA_CPP} + LoRA": Variant(
            "llama", base | {"adapter": str(out / "adapter.gguf")}, ("PEFT Q4_0", _LIKE_INT4),
            LLAMA_CPP,
        ),
    }  # fmt: skip


def _ids(model: models.Model, sizes: Sizes) -> list[int]:
    from protos.base_model import open_base

    vocab = open_base(model.base).config["vocab_size"]
    return np.random.default_rng(0).integers(3, vocab, sizes.prompt + sizes.tokens).tolist()


def _answers(
    references: Mapping[str, Any], ids: Sequence[int], prompt: int, work: Path
) -> dict[str, np.ndarray]:
    """Logits [tokens + 1, vocab] of every reference."""
    with running("huggingface", 2, references) as runner:
        return {name: _logits(runner, name, ids, prompt, work) for name in references}


def _logits(runner: Runner, name: str, ids: Sequence[int], prompt: int, work: Path) -> np.ndarray:
    file = work / "logits.npy"
    runner.read(name, ids, prompt, file)
    return np.load(file)


def _start(
    variants: Mapping[str, Variant], threads: int, stack: contextlib.ExitStack
) -> dict[str, Runner]:
    """A process for each library, with its variants."""
    found: dict[str, Runner] = {}
    for library in dict.fromkeys(variant.library for variant in variants.values()):
        own = {n: v.options for n, v in variants.items() if v.library == library}
        python = llama_cpp() if library == "llama" else None
        found[library] = stack.enter_context(running(library, threads, own, python))
    return found


Readers = Mapping[str, Runner]


def _check(
    variants: Mapping[str, Variant], readers: Readers, wanted: Mapping[str, np.ndarray],
    ids: Sequence[int], prompt: int, work: Path,
) -> None:  # fmt: skip
    """Every variant says what its reference says, and every adapter does what PEFT's does.

    Raises:
        SystemExit: one does not.
    """
    said = {n: _logits(runner, n, ids, prompt, work) for n, runner in readers.items()}
    for name, variant in variants.items():
        reference, least = variant.like
        cosine = _cosine(said[name], wanted[reference])
        top1 = float((said[name].argmax(-1) == wanted[reference].argmax(-1)).mean())
        effect = 1.0
        if variant.effect_of:
            moved = said[name] - said[variant.effect_of]
            without = variants[variant.effect_of].like[0]
            effect = _cosine(moved, wanted[reference] - wanted[without])
        print(f"{name}: cosine {cosine:.5f}, top-1 {top1:.3f}, effect {effect:.3f}", flush=True)
        if not (cosine >= least and effect >= _EFFECT):  # nor may they be no numbers
            raise SystemExit(
                f"{name} does not answer as {reference} does: cosine {cosine:.5f} of {least}, "
                f"effect of the adapter {effect:.3f} of {_EFFECT}"
            )


def _cosine(found: np.ndarray, wanted: np.ndarray) -> float:
    """Mean over the positions."""
    products = (found * wanted).sum(-1)
    return float(
        (products / np.linalg.norm(found, axis=-1) / np.linalg.norm(wanted, axis=-1)).mean()
    )


def _fastest(
    variants: Mapping[str, Variant], readers: Readers, ids: Sequence[int], sizes: Sizes
) -> list[str]:
    """One trial round; of each family the fastest to prefill and the fastest to decode stay."""
    trial = {name: r.read(name, ids, sizes.prompt) for name, r in readers.items()}
    kept = [name for name, variant in variants.items() if not variant.family]
    for family in dict.fromkeys(v.family for v in variants.values() if v.family):
        members = [name for name, variant in variants.items() if variant.family == family]
        for phase in Times._fields:
            kept.append(min(members, key=lambda name: getattr(trial[name], phase)))
    return list(dict.fromkeys(kept))


def _turns(
    kept: Sequence[str], readers: Readers, ids: Sequence[int], sizes: Sizes
) -> dict[str, list[Times]]:
    """Rounds over all, every other one backwards."""
    times: dict[str, list[Times]] = {name: [] for name in kept}
    for turn in range(sizes.repeats):
        for name in kept if turn % 2 == 0 else reversed(kept):
            times[name].append(readers[name].read(name, ids, sizes.prompt))
    return times


def _rows(
    times: Mapping[str, Sequence[Times]], variants: Mapping[str, Variant], threads: int,
    sizes: Sizes, model: str,
) -> list[Row]:  # fmt: skip
    compare = {
        "base": (EAGER, COMPILED, LLAMA_CPP),
        "base + adapter": (PEFT, f"{LLAMA_CPP} + LoRA"),
        "merged": (EAGER, LLAMA_CPP),
    }
    found: list[Row] = []
    for phase, tokens in (("prefill", sizes.prompt), ("decode", sizes.tokens)):
        rates = {n: [tokens / getattr(t, phase) for t in each] for n, each in times.items()}
        for ours in (name for name in rates if variants[name].library == "pocketune"):
            recipe, layout = ours.split(" ", 1)
            for peer in compare[layout]:
                if recipe == "fp32" and peer.startswith(LLAMA_CPP):
                    continue  # four bits against 32
                members = [n for n in rates if n == peer or variants[n].family == peer]
                if not members:
                    continue
                best = max(members, key=lambda name: float(np.median(rates[name])))
                aimed = phase == "decode" and recipe == "8da4w" and peer == EAGER
                found.append(
                    compared(
                        f"{phase} {tokens}, {_threads(threads)}, {model}: {ours}", "tokens/s",
                        best, rates[ours], rates[best], less_is_better=False,
                        aim=AIM if aimed else None,
                    )
                )  # fmt: skip
        for recipe in ("8da4w", "fp32"):
            if f"{recipe} merged" in rates:
                found.append(
                    compared(
                        f"{phase} {tokens}, {_threads(threads)}, {model}: what an adapter costs, "
                        f"{recipe}", "tokens/s", f"{recipe} merged",
                        rates[f"{recipe} base + adapter"], rates[f"{recipe} merged"],
                        less_is_better=False,
                        aim=ADAPTER_AIM if (phase, recipe) == ("decode", "8da4w") else None,
                    )
                )  # fmt: skip
    return found


def _threads(count: int) -> str:
    return f"{count} thread" if count == 1 else f"{count} threads"
