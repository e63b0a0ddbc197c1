"""What a caller may leave out or ask for of augmentation, and what becomes of it."""

from cloud.service import options
from protos.v1 import profiles_pb2


def test_callers_get_the_shares_that_the_api_promises() -> None:
    given = profiles_pb2.AugmentOptions
    assert options.augmenting(given()).per_real == 12, "what suits the bundled teacher"
    assert options.augmenting(given(teacher="big")).per_real == 1
    assert options.augmenting(given(teacher="big")).real_share == 0.25
    assert options.augmenting(given(teacher="big", per_real=20)).per_real == 20
    assert options.augmenting(given(per_real=0)).per_real == 0
    usual, asked = options.augmenting(given()), options.augmenting(given(per_real=5))
    assert (usual.fill_to, asked.fill_to) == (48, 0), "they get as many as they ask for"
