"""A tiny base model whose bundles pass parity, and the processes that the tests kill."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
sys.path.append(str(ROOT / "benchmarks"))  # `fleet` is shared with benchmarks/scale.py


@pytest.fixture(scope="session")
def sound_base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Doubled matrices: otherwise random logits are so alike that rounding changes the order."""
    import torch
    from transformers import LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "sound"
    shutil.copytree(tiny_base, folder)
    model = LlamaForCausalLM.from_pretrained(tiny_base)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(2.0)
    model.save_pretrained(folder)
    return folder
