"""What a caller may leave out or ask for of augmentation, and what becomes of it."""

from cloud.service import options
from protos.v1 import profiles_pb2


def test_callers_get_the_shares_that_the_api_promises() -> None:
    given = profiles_pb2.AugmentOptions
    assert options.augmenting(given()).per_real == 3, "what suits the bundled teacher"
    assert options.augmenting(given(teacher="big")).per_real == 1
    assert options.augmenting(given(teacher="big")).real_share == 0.25
    most = options.augmenting(given(teacher="big", per_real=20))
    assert (most.per_real, most.real_share) == (20, 1 / 21)
    assert options.augmenting(given(per_real=0)).per_real == 0
