"""One adapter for everybody with a task, trained on users who agreed, and merged into the base.

In: Profiles whose consent says `contributes`, and a base model. Out: a TaskBase: a Hugging Face
directory like the base's own, over which users' adapters are trained and exported as over any base.
Its manifest lists the contributors by pseudonym; who withdraws marks it for training again.

A pseudonym is an HMAC of the user's name under a key of this folder's own, which stays with whoever
trained it: from a manifest alone nobody can be told, not even by guessing names, and nobody's
pseudonyms in two folders look alike.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from cloud.augment import TRAIN_FILE, VALID_FILE, consent_ended, real_row, split
from cloud.pieces import store
from cloud.profiles import EVALUATION, Consent, read_profile, write_rows
from cloud.train import TrainConfig, train
from protos.artifacts import (
    MANIFEST,
    WITHDRAWN,
    Artifact,
    create,
    finished,
    open_artifact,
    read_json,
)
from protos.base_model import TOKENIZER_FILES, BaseModel, load_model
from protos.errors import InputError, UnsupportedError
from protos.progress import Progress, part, silent

KEY_FILE = "contributors.key"
_KEY_BYTES = 32
DATASET, ADAPTER, BASE = "dataset", "adapter", "base"


def train_task(
    profiles: Sequence[Artifact],
    base: BaseModel,
    out: Path,
    config: TrainConfig,
    threads: int,
    progress: Progress = silent,
) -> Artifact:
    """Make the TaskBase in `out/base`; an unchanged one is left as it is.

    Beside it stay the adapter that is merged into it and, to be kept private, the Dataset with the
    contributors' items and the key of their pseudonyms.

    Raises:
        InputError: somebody did not agree, or has withdrawn; or no row is usable.
        UnsupportedError: PEFT cannot adapt or merge this model.
    """
    dataset = task_dataset(profiles, out)
    adapter = train(dataset, base, out / ADAPTER, config, threads, part(progress, 0, 0.9))
    progress("merged into the base", 0.9)
    return _merged(adapter, base, out / BASE)


def task_dataset(profiles: Sequence[Artifact], out: Path) -> Artifact:
    """One Dataset of many users' real items, in `out/dataset`.

    Raises:
        InputError: see `check_contributors`; or two Profiles of one user.
    """
    check_contributors(profiles, out)
    names = [profile.config["user"] for profile in profiles]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{', '.join(twice)}: given twice; give one Profile of each user")
    parents = {f"profile-{number}": profile.id for number, profile in enumerate(profiles)}
    _make_key(out)
    key = _key(out)
    resolved = {"contributors": sorted(_pseudonym(key, name) for name in names)}
    if current := finished(out / DATASET, "Dataset", parents, resolved):
        return current
    rows, valid = [], []
    for profile in profiles:
        user = read_profile(profile)
        for kept, items in zip((rows, valid), split(user.items), strict=True):
            for item in items:
                row = real_row(user.task, item)
                kept.append({**row, "source": {**row["source"], "user": user.user}})
    with create(out / DATASET, "Dataset", parents, resolved) as draft:
        write_rows(draft.path / TRAIN_FILE, rows)
        write_rows(draft.path / VALID_FILE, valid)
        draft.measured.update(rows=len(rows), valid=len(valid), users=len(profiles))
    return open_artifact(out / DATASET, "Dataset")


def check_contributors(profiles: Sequence[Artifact], out: Path) -> None:
    """Refuse users whose items may not be learned from for others, and users of several tasks.

    Raises:
        InputError: names all of them, each with what is missing.
    """
    if not profiles:
        raise InputError("no contributors; name Profiles of users who agreed")
    tasks = sorted({profile.config["task"]["name"] for profile in profiles})
    if len(tasks) > 1:
        raise InputError(f"contributors with several tasks ({', '.join(tasks)}); one at a time")
    withdrawn = _withdrawn(out)
    key = _key(out) if withdrawn else b""
    refused: list[str] = []
    for profile in profiles:
        user, consent = profile.config["user"], Consent(**profile.config["consent"])
        left = withdrawn.get(_pseudonym(key, user), "") if withdrawn else ""
        if not consent.contributes:
            refused.append(f"{user} did not agree (`profile import --contributes`)")
        elif consent_ended(profile):
            refused.append(f"{user}'s consent is over")
        elif profile.manifest.created <= left:
            refused.append(f"{user} withdrew on {left[:10]}, after this Profile was imported")
        elif left and consent.purpose == EVALUATION:
            refused.append(
                f"{user} withdrew on {left[:10]}, and an import for an evaluation is no new consent"
            )
    if refused:
        raise InputError(
            f"{'; '.join(refused)}; leave them out, or import them to another place once they agree"
        )


def withdraw(user: str, out: Path) -> list[str]:
    """Mark for training again what a user's items went into in `out`, and remove the items.

    What is marked can be neither trained over nor exported any more; what was exported before goes
    on running. Interrupted, it is to be run again.

    Returns:
        The names of the artifacts that the user is in; of none if they are no contributor.

    Raises:
        InputError: there is no task adapter in `out`, or its key is lost.
    """
    listed = {
        name: read_json(out / name / MANIFEST)["config"].get("contributors", ())
        for name in (BASE, ADAPTER, DATASET)
        if (out / name / MANIFEST).is_file()
    }
    if not listed:
        raise InputError(f"{out}: no task adapter in it; name the --out of `pocketune task train`")
    mine = _pseudonym(_key(out), user)
    holding = [name for name, contributors in listed.items() if mine in contributors]
    if holding:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        known = {**_withdrawn(out), mine: now}
        for place in (out, *(out / name for name in holding if name != DATASET)):
            store(place / WITHDRAWN, known)
        if (out / DATASET).exists():
            shutil.rmtree(out / DATASET)
    return holding


def _withdrawn(out: Path) -> dict[str, str]:
    """Who has withdrawn, and when: by pseudonym."""
    path = out / WITHDRAWN
    return dict(read_json(path)) if path.is_file() else {}


def _make_key(out: Path) -> None:
    """Draw the secret under which this folder's contributors have their pseudonyms, once."""
    out.mkdir(parents=True, exist_ok=True)
    with (
        contextlib.suppress(FileExistsError),
        open(out / KEY_FILE, "x", opener=lambda name, flags: os.open(name, flags, 0o600)) as file,
    ):
        file.write(secrets.token_hex(_KEY_BYTES))


def _key(out: Path) -> bytes:
    """The secret of this folder.

    Raises:
        InputError: it is lost or damaged.
    """
    path = out / KEY_FILE
    try:
        key = bytes.fromhex(path.read_text("ascii"))
    except (FileNotFoundError, ValueError):
        key = b""
    if len(key) != _KEY_BYTES:
        raise InputError(
            f"{path}: expected a key of {2 * _KEY_BYTES} hex digits, without which no contributor "
            "can be told; restore it, or train with those who still agree in another folder"
        )
    return key


def _pseudonym(key: bytes, user: str) -> str:
    return hmac.new(key, user.encode(), hashlib.sha256).hexdigest()


def _merged(adapter: Artifact, base: BaseModel, out: Path) -> Artifact:
    """The base with PEFT's own merge of the adapter, in float32, which holds all of it."""
    parents = {"adapter": adapter.id, "base_model": base.digest}
    resolved = {"contributors": adapter.config["contributors"]}
    if current := finished(out, "TaskBase", parents, resolved):
        return current
    import torch
    from peft import PeftModel
    from transformers import GenerationConfig

    with create(out, "TaskBase", parents, resolved) as draft:
        tuned = PeftModel.from_pretrained(load_model(base, torch.float32), str(adapter.path))
        try:
            merged = tuned.merge_and_unload(safe_merge=True)
        except (ValueError, NotImplementedError, AttributeError) as error:
            raise UnsupportedError(f"{adapter.path}: PEFT cannot merge it: {error}") from None
        merged.generation_config = GenerationConfig()  # a hub's own may be one that is not saved
        merged.save_pretrained(draft.path)
        (draft.path / "generation_config.json").unlink()
        for name in ("generation_config.json", *TOKENIZER_FILES):
            if (base.directory / name).is_file():
                shutil.copyfile(base.directory / name, draft.path / name)
        losses = ("valid_loss_before", "valid_loss_after", "rows", "weights")
        draft.measured.update({name: adapter.manifest.measured[name] for name in losses})
        draft.measured["contributors"] = len(resolved["contributors"])
    return open_artifact(out, "TaskBase")
