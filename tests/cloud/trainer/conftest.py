"""Tiny random models of each family, and PEFT training one user alone: the reference."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from cloud.train import TrainConfig
from cloud.trainer.packing import Example

VOCABULARY = 352
COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
WINDOW = 8
FAMILIES = {
    "llama": {},
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3": {"head_dim": 16},
    "gemma3_text": {
        "head_dim": 16, "sliding_window": WINDOW, "final_logit_softcapping": 5.0,
        "layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 16,
    },
    "smollm3": {"no_rope_layers": [1, 0]},
    "phi": {"num_key_value_heads": 4},
    "phi3": {"sliding_window": WINDOW},
}  # fmt: skip

LONGROPE = {
    "original_max_position_embeddings": 64, "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 10000.0,
        "short_factor": [1.0, 1.1, 1.3, 1.6, 2.0, 2.5],
        "long_factor": [1.5, 2.0, 3.0, 5.0, 8.0, 12.0],
    },
}  # fmt: skip


SEEDS = {"phi3": 4}
"""Of the weights, else 3. With 3, one gradient of Phi 3's second user is nothing but rounding,
which Adam makes as large as any other: PEFT in float32 is then 1.4e-4 away from PEFT in float64."""


def make_model(family: str, **changes: object):
    """A random model in float32, with B of nothing: what a hub's would be, but small."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(SEEDS.get(family, 3))
    config = AutoConfig.for_model(family, **{**COMMON, **FAMILIES.get(family, {}), **changes})
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():  # larger than the usual 0.02: gradients that no rounding hides
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.12)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
    return model.requires_grad_(False)


@dataclass
class User:
    """What one user brings. until: steps after which the comparison ends."""

    rows: list[Example]
    valid: list[Example]
    config: TrainConfig
    history: list[float] = field(default_factory=list)


def make_user(seed: int, count: int, longest: int = 30, **config: object) -> User:
    generator = torch.Generator().manual_seed(seed)

    def example() -> Example:
        size = int(torch.randint(6, longest, (), generator=generator))
        ids = torch.randint(3, VOCABULARY, (size,), generator=generator).tolist()
        return Example(ids, int(torch.randint(1, 5, (), generator=generator)))

    settings = {"learning_rate": 5e-3, "dtype": "float32", "patience": 99, "seed": seed}
    rows, valid = [example() for _ in range(count)], [example() for _ in range(3)]
    return User(rows, valid, TrainConfig(**{**settings, **config}))


def train_with_peft(model, user: User, steps: int | None = None) -> dict[str, torch.Tensor]:
    """Plain PEFT over one user: rows one by one without padding, nothing of the trainer's.

    The order of the rows, the schedule and the clipping are those that TrainConfig promises.
    """
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    config = user.config
    torch.manual_seed(config.seed)
    targets = config.targets if config.targets == "all-linear" else config.targets.split(",")
    lora = LoraConfig(
        r=config.rank, lora_alpha=config.alpha, target_modules=targets, task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(model, lora)
    parameters = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay
    )
    per_epoch = math.ceil(len(user.rows) / config.batch_size)
    last = per_epoch * config.epochs
    up = max(1, round(last * config.warmup))
    for step in range(last if steps is None else steps):
        epoch, place = divmod(step, per_epoch)
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
        order = torch.randperm(len(user.rows), generator=generator).tolist()
        chosen = order[place * config.batch_size : (place + 1) * config.batch_size]
        batch = [user.rows[i] for i in chosen]
        loss = sum(cross_entropy(adapted, row) for row in batch) / predicted(batch)
        rate = (step + 1) / up if step < up else (last - step) / max(1, last - up)
        optimizer.param_groups[0]["lr"] = config.learning_rate * rate
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        user.history.append(loss.item())
    found = get_peft_model_state_dict(adapted)
    made = {name: tensor.detach().clone() for name, tensor in found.items()}
    adapted.unload()
    return made


def cross_entropy(model, row: Example) -> torch.Tensor:
    """Summed over the completion tokens."""
    logits = model(torch.tensor([row.ids])).logits[0]
    losses = torch.nn.functional.cross_entropy(
        logits[:-1], torch.tensor(row.ids[1:]), reduction="none"
    )
    return losses[-row.completion :].sum()


def predicted(rows: Sequence[Example]) -> int:
    return sum(row.completion for row in rows)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    return tmp_path
