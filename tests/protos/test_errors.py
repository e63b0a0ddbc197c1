"""One error that tells of many."""

import weakref

from protos.errors import InputError, listed, without_frames


def test_of_many_failures_three_are_told_and_none_is_named_twice() -> None:
    reasons = {"out/ann": "out/ann: in use", "out/bob": "no items"}
    assert listed(reasons) == "out/ann: in use; out/bob: no items"
    many = {f"u{number}": "no items" for number in range(1000)}
    assert listed(many) == "u0: no items; u1: no items; u2: no items; and 997 more"


class Large:
    """What a frame may hold."""


def test_a_kept_error_holds_nothing_of_where_it_was_raised() -> None:
    kept: list[weakref.ref[Large]] = []

    def deep() -> None:
        large = Large()
        kept.append(weakref.ref(large))
        raise OSError("no space")

    def failing() -> None:
        try:
            deep()
        except OSError as error:
            raise InputError("x: cannot be written") from error

    def caught() -> InputError:
        try:
            failing()
        except InputError as error:
            return error
        raise AssertionError

    error = caught()
    assert kept[0]() is not None
    without_frames(error)
    assert kept[0]() is None
    assert (str(error), error.exit_code) == ("x: cannot be written", 2)
    assert str(error.__cause__) == "no space"
    error.__context__ = loop = ValueError("a chain without an end")
    loop.__context__ = error
    without_frames(error)
