"""What an adapter gains from training over the phone's own 4-bit weights: loss on held-out items.

`python -m benchmarks.quantization_aware [--quick] [--out results.json]` trains users of the bundled
world twice, over the float base and over each recipe's weights, exports both adapters, and lets the
reference runtime say how likely each user's held-out answers are. A user's two losses make a pair.
Before they count, each is held against PyTorch with PEFT over the weights that the bundle holds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.rows import Row
from cloud.metrics import bootstrap_interval
from cloud.pocket.world import DEV_USERS, sample_items, sample_user
from cloud.profiles import write_rows
from cloud.tasks import TASKS
from cloud.train import TrainConfig, train
from protos.artifacts import Artifact, create, open_artifact, tool_versions
from protos.base_model import BaseModel, completion_ids, load_tokenizer, open_base, prompt_ids

RECIPES = {"mlc-q4f16_1": 0.01, "executorch-xnnpack-8da4w": 0.05}
"""How far the runtime's loss may be from PyTorch's over the same weights, nats: 8da4w also rounds
what a layer reads, which weights alone do not show."""
CONFIG = TrainConfig(learning_rate=2e-3, epochs=12, patience=3)
OWN, VALID, HELD_OUT = 36, 4, 30
FIRST, USERS = 500, {"LaMP_4": 10, "LaMP_3": 6}

Sequences = list[tuple[list[int], list[int]]]
"""Token ids of prompt and completion of each held-out item."""


@dataclass(frozen=True)
class Pair:
    """Held-out losses of one user, nats a token. base: without an adapter, on the same phone."""

    base: float
    over_float: float
    over_shipped: float


def rows(quick: bool, work: Path) -> list[Row]:
    """A row for each recipe and task; quick: two users and MLC, which needs no lowering."""
    base = open_base(str(Path(__file__).parents[1] / "cloud" / "pocket" / "models" / "base"))
    users = {"LaMP_4": 2} if quick else USERS
    return [
        _row(f"{task}, {recipe}", measure(recipe, base, task, range(FIRST, FIRST + count), work))
        for recipe in (list(RECIPES)[:1] if quick else RECIPES)
        for task, count in users.items()
    ]


def measure(
    recipe: str, base: BaseModel, task: str, numbers: Iterable[int], work: Path
) -> list[Pair]:
    """Train, export and ask the runtime, user by user."""
    from export.adapter import export_adapter
    from export.base import export_base
    from mobile_runtime.engine import open_engine

    source = str(base.directory)
    bundle = export_base(source, work / recipe, recipe, context_length=512)
    engine, pairs = open_engine(bundle.path, None), list[Pair]()
    for number in numbers:
        home = work / f"{task}-{number}"
        dataset = make_dataset(home / "dataset", task, number)
        held_out = _held_out(base, task, number)
        losses = {"base": runtime_loss(engine, held_out)}
        for kind, over in (("over_float", None), ("over_shipped", bundle)):
            name = f"{kind}-{recipe}" if over else kind
            adapter = train(dataset, base, home / name, CONFIG, 1, shipped=over)
            out = home / f"{name}-{recipe}-bundle"
            packed = export_adapter(adapter.path, bundle.path, out, base=source, goldens=False)
            engine.set_adapter(packed.path)
            losses[kind] = runtime_loss(engine, held_out)
            wanted = torch_loss(base, bundle, adapter.path, held_out)
            hold(str(home), losses[kind], wanted, RECIPES[recipe])
        engine.set_adapter(None)
        pairs.append(Pair(**losses))
    return pairs


def hold(name: str, found: float, wanted: float, limit: float) -> None:
    """See to it that the runtime's loss is PyTorch's, up to so many nats.

    Raises:
        SystemExit: it is not.
    """
    if not abs(found - wanted) <= limit:
        raise SystemExit(f"{name}: {found:.4f} on the runtime, {wanted:.4f} in PyTorch")


def make_dataset(path: Path, task: str, number: int) -> Artifact:
    """The user's own items, the newest of them to stop by."""
    made = [
        _prompted(task, item)
        for item in sample_items(sample_user(task, DEV_USERS[number]), OWN + VALID)
    ]
    if path.exists():
        return open_artifact(path, "Dataset")
    with create(path, "Dataset", {"profile": f"{task}-{number}"}, {}) as draft:
        write_rows(draft.path / "train.jsonl", made[:OWN])
        write_rows(draft.path / "valid.jsonl", made[OWN:])
    return open_artifact(path, "Dataset")


def runtime_loss(engine: Any, held_out: Sequences) -> float:
    """Mean cross-entropy of a completion token, read token by token as a phone would."""
    import numpy as np

    losses: list[float] = []
    for prompt, completion in held_out:
        engine.reset()
        logits = engine.prefill(prompt)
        for place, token in enumerate(completion):
            shifted = logits.astype(np.float64) - logits.max()
            losses.append(float(np.log(np.exp(shifted).sum()) - shifted[token]))
            if place + 1 < len(completion):
                logits = engine.decode(token)
    return statistics.fmean(losses)


def torch_loss(base: BaseModel, bundle: Artifact, adapter: Path, held_out: Sequences) -> float:
    """The same by PyTorch and PEFT."""
    import torch
    from peft import PeftModel

    from protos.shipped_weights import load_shipped

    model: Any = PeftModel.from_pretrained(load_shipped(base, bundle, torch.float32), str(adapter))
    losses: list[torch.Tensor] = []
    with torch.no_grad():
        for prompt, completion in held_out:
            logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
            wanted = torch.tensor(completion)
            losses.append(torch.nn.functional.cross_entropy(logits, wanted, reduction="none"))
    return float(torch.cat(losses).mean())


def _held_out(base: BaseModel, task: str, number: int) -> Sequences:
    tokenizer = load_tokenizer(base)
    items = sample_items(sample_user(task, DEV_USERS[number]), HELD_OUT, "questions")
    told = [_prompted(task, item) for item in items]
    return [
        (prompt_ids(tokenizer, row["prompt"]), completion_ids(tokenizer, row["completion"]))
        for row in told
    ]


def _prompted(task: str, item: dict[str, str]) -> dict[str, str]:
    return {"prompt": TASKS[task].query(item["input"]), "completion": item["output"]}


def _row(what: str, pairs: Sequence[Pair]) -> Row:
    differences = [pair.over_float - pair.over_shipped for pair in pairs]
    mean, low, high = bootstrap_interval(differences)
    ratios = [pair.over_float / pair.over_shipped for pair in pairs]
    return Row(
        figure=f"loss on {HELD_OUT} held-out items, {len(pairs)} bundled users, {what}",
        ours=round(statistics.fmean(pair.over_shipped for pair in pairs), 4),
        unit="nats a token",
        peer="the same adapter trained over the float base",
        theirs=round(statistics.fmean(pair.over_float for pair in pairs), 4),
        ratio=round(statistics.median(ratios), 4),
        spread=(round(min(ratios), 4), round(max(ratios), 4)),
        note=f"lower by {mean:.4f} (95% interval {low:.4f} to {high:.4f}); no adapter "
        f"{statistics.fmean(pair.base for pair in pairs):.4f}",
    )


def main() -> None:
    """Run, print, and write the figures where `--out` says."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--quick", action="store_true")
    arguments.add_argument("--out", type=Path)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as work:
        made = [dataclasses.asdict(row) for row in rows(given.quick, Path(work))]
    text = json.dumps(
        {"benchmark": "quantization_aware", "rows": made, "versions": tool_versions()}, indent=1
    )
    print(text)
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
