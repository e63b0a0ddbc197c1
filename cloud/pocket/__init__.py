"""The pocket world: synthetic users, and the two small models that are bundled with Pocketune.

`world` makes users and their items, `build` makes the tokenizer, the models and the bundled users,
`measure` says how good they are. Nothing here needs a network, and `world` needs no torch.
"""
