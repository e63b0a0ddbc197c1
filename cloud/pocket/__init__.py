"""The pocket world: synthetic users, and the two small models that are bundled with Pocketune.

`world` makes users and their items, `build` makes the tokenizer, the models and the bundled users,
`measure` says how good they are. Nothing here needs a network, and `world` needs no torch.
"""

OPTIONS = {
    "per_real": 3.0, "temperature": 0.8, "learning_rate": 2e-3, "epochs": 12, "patience": 3,
}  # fmt: skip
"""What suits the bundled models, which are far smaller than what the defaults are made for."""
