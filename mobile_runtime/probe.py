"""What each operator is given and gives on the device, so that a failure of parity has a place.

In: a base bundle, its ProbeBundle, an adapter bundle or none, and a golden. Out: the device's own
`Rung.operators`. The probe is a second program over the same constants; like an adapter's program,
it gets the adapter's keys written into it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mobile_runtime import cache
from mobile_runtime.binding import read_object
from mobile_runtime.bundles import (
    AdapterBundle,
    BaseBundle,
    MergedBundle,
    TemplateBundle,
    layout_of,
    open_adapter,
    open_base,
    open_probe,
)
from mobile_runtime.executorch_engine import constants
from mobile_runtime.fit import patched
from mobile_runtime.native import Program
from protos.errors import ArtifactError, UnsupportedError
from protos.golden import Floats, Golden, Operators, sketch

_OPERATORS = "operators.json"


def device_operators(
    probe: Path,
    base: Path,
    adapter: Path | None,
    golden: Golden,
    threads: int,
    cache_dir: Path | None = None,
) -> Operators:
    """As the golden holds them of its references.

    Raises:
        InputError, ArtifactError, MismatchError: a bundle is missing, damaged or does not fit.
        UnsupportedError: the adapter is merged into a program of its own.
    """
    opened, template, user = open_probed(probe, base, adapter)
    widths = _widths(template)
    program = _load(patched(template, _keys(opened, user)), opened, user, threads, cache_dir)
    try:
        rows = np.stack([_after_last(program, ids) for ids in _up_to_whole_rows(golden)])
    except (RuntimeError, IndexError) as error:
        raise ArtifactError(f"{template.artifact.path}: ExecuTorch stopped: {error}") from None
    ends = np.cumsum([width for pair in widths.values() for width in pair])
    if rows.shape[1] != ends[-1]:
        raise ArtifactError(
            f"{template.artifact.path}: the program gives {rows.shape[1]} numbers of operators, "
            f"but {_OPERATORS} lists {ends[-1]}"
        )
    sides = iter([sketch(side) for side in np.split(rows, ends[:-1], axis=1)])
    return {name: np.stack([next(sides), next(sides)]) for name in widths}


def open_probed(
    probe: Path, base: Path, adapter: Path | None
) -> tuple[BaseBundle, TemplateBundle, AdapterBundle | None]:
    """The bundles of `device_operators`, checked. Raises as that does."""
    if adapter is not None and layout_of(adapter) == "merged":
        raise UnsupportedError(
            f"{adapter}: a probe is of a base, and this bundle has merged its own"
        )
    opened = open_base(base)
    template = open_probe(probe, opened)
    user = None if adapter is None else open_adapter(adapter, opened)
    assert not isinstance(user, MergedBundle)
    return opened, template, user


def _widths(template: TemplateBundle) -> dict[str, tuple[int, int]]:
    """Operator -> how many numbers it is given, and gives, in the order of the program's output."""
    source = template.artifact.file(_OPERATORS)
    try:
        return {
            str(n): (int(given), int(gives)) for n, (given, gives) in read_object(source)["widths"]
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{source}: malformed list of operators ({error!r})") from None


def _keys(base: BaseBundle, adapter: AdapterBundle | None) -> dict[str, str]:
    """Slot name -> the key under which `constants` has its tensor."""
    return {slot.name: slot.key for slot in (adapter or base).slots}


def _load(
    program: bytes,
    base: BaseBundle,
    adapter: AdapterBundle | None,
    threads: int,
    cache_dir: Path | None,
) -> Program:
    parents, tensors = constants(base, adapter)
    directory = cache_dir or cache.default_directory()
    with (
        tempfile.TemporaryDirectory() as folder,
        cache.joined(directory, parents, tensors) as data,
    ):
        file = Path(folder) / "probe.pte"
        file.write_bytes(program)
        return Program(file, data.path, threads)


def _after_last(program: Program, ids: Sequence[int]) -> Floats:
    """What the program says of its operators at the last of `ids`, read in as many calls as it
    takes: the whole context is more than one takes.
    """
    step = program.max_tokens
    calls = [program.outputs(ids[at : at + step], at) for at in range(0, len(ids), step)]
    return calls[-1][1][0]


def _up_to_whole_rows(golden: Golden) -> Iterator[list[int]]:
    """For each row that the golden keeps whole, the tokens up to its position."""
    sequences = [[*prompt.ids, *prompt.continuation] for prompt in golden.prompts]
    starts = np.cumsum([0, *map(len, sequences)])
    for row in golden.full_rows:
        at = int(np.searchsorted(starts, row, side="right")) - 1
        yield sequences[at][: int(row) - int(starts[at]) + 1]
