"""What binds a bundle to its base, for every engine: ids, never names or paths.

In: opened artifacts and what their JSON files say. Out: nothing, or a refusal that names both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from protos.artifacts import Artifact, read_json
from protos.errors import ArtifactError, InputError, MismatchError

FORMAT = 1
_SHOWN = 4


def read_object(source: Path) -> dict[str, Any]:
    """A JSON object of a bundle, of the format that this build reads.

    Raises:
        ArtifactError: it is malformed, or of another format.
    """
    try:
        raw = read_json(source)
    except InputError as error:
        raise ArtifactError(str(error)) from None
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise ArtifactError(f"{source}: not of format {FORMAT}, the only one that this build reads")
    return raw


def check_base(artifact: Artifact, raw: Mapping[str, Any], base: Artifact) -> None:
    """An adapter names its base in its manifest and in `adapter.json`; both must be this one.

    Raises:
        MismatchError: it was made for another base.
    """
    wanted = {str(artifact.manifest.parents.get("base_bundle")), str(raw.get("base_bundle"))}
    if wanted != {base.id}:
        made_for = " and ".join(sorted(wanted))
        raise MismatchError(
            f"{artifact.path}: this adapter was made for the base bundle {made_for}, but "
            f"{base.path} is {base.id}; export the adapter for this base"
        )


def check_base_model(artifact: Artifact, base: Artifact | None) -> None:
    """A merged bundle needs no base, but one that is given must be of the same model.

    Raises:
        MismatchError: it is of another one.
    """
    mine = artifact.manifest.parents.get("base_model")
    theirs = base.manifest.parents.get("base_model") if base else mine
    if base and mine != theirs:
        raise MismatchError(
            f"{artifact.path}: this bundle was merged into the base model {mine}, but "
            f"{base.path} is of {theirs}"
        )


def refuse(
    path: Path, problems: Sequence[str], error: type[ArtifactError] | type[MismatchError]
) -> None:
    """Raise if there are problems; the first few are named."""
    if problems:
        raise error(f"{path}: {'; '.join(problems[:_SHOWN])}; export it again")
