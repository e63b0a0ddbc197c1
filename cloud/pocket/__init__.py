"""The pocket world: synthetic users, and the two small models that are bundled with Pocketune.

`world` makes users and their items, `build` makes the tokenizer, the models and the bundled users.
`pocketune eval --suite pocket` says what they are worth. Nothing here needs a network, and `world`
needs no torch.
"""

from typing import Any

AUGMENT: dict[str, Any] = {
    "per_real": 12.0, "fill_to": 48, "label_shares": "teacher", "answer_shots": 16,
    "temperature": 0.8,
}  # fmt: skip
TRAIN: dict[str, Any] = {"learning_rate": 2e-3, "epochs": 12, "patience": 3}
OPTIONS = {**AUGMENT, **TRAIN}
"""What suits the bundled models, which are far smaller than what the defaults are made for."""
