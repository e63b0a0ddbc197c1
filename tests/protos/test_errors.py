"""One error that tells of many."""

from protos.errors import listed


def test_of_many_failures_three_are_told_and_none_is_named_twice() -> None:
    reasons = {"out/ann": "out/ann: in use", "out/bob": "no items"}
    assert listed(reasons) == "out/ann: in use; out/bob: no items"
    many = {f"u{number}": "no items" for number in range(1000)}
    assert listed(many) == "u0: no items; u1: no items; u2: no items; and 997 more"
