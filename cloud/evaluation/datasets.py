"""What each arm's adapter learns from; whatever two arms share is made once.

In: a user's Profile and a teacher. Out: Datasets, all with the same real items, cut in the same
place: the newest fifth decides when training stops. Held-out questions are read by the leakage
filter only.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloud.augment import (
    REJECTED_FILE,
    TRAIN_FILE,
    VALID_FILE,
    AugmentConfig,
    UnreadableError,
    augment,
    filters_for,
    real_row,
    scrubber_for,
    split,
    synthetic_row,
)
from cloud.candidates import Candidate
from cloud.profiles import Profile, read_profile, read_rows, write_rows
from cloud.teachers import Calls, Teacher
from protos.artifacts import Artifact, create, finished, open_artifact
from protos.progress import Progress, silent

if TYPE_CHECKING:
    from cloud.privacy import Scrubber

Rows = list[dict[str, Any]]


@dataclass
class Datasets:
    """The Datasets of one user, made when they are asked for. folder: where they go.

    fallen_back: those that are the real items alone, since nothing that the teacher wrote passed:
    what this user would get, and so what counts. unreadable: the error, by folder, where not even
    one of its replies could be read.
    """

    profile: Artifact
    teacher: Teacher
    folder: Path
    config: AugmentConfig
    ratios: Sequence[float] = ()
    judge: Teacher | None = None
    calls: Calls | None = None
    progress: Progress = silent

    def __post_init__(self) -> None:
        self.fallen_back: set[str] = set()
        self.unreadable: dict[str, UnreadableError] = {}
        self._user = read_profile(self.profile)
        self._train, self._valid = split(self._user.items)

    def of(self, data: str) -> Artifact | None:
        """The Dataset that an arm names; None if there is nothing in it to train on.

        Raises:
            InputError: the user did not consent to the teacher, or no item can be shown to it.
            TeacherError: the teacher failed.
        """
        if data == "real":
            return self._real()
        whole = self._augmented(data)
        if whole is None or whole.manifest.measured.get("warning"):
            return self._without_teacher(data)
        if data == "real-repeated":
            return self._repeated(counts(whole)[0])
        if not counts(whole)[1]:
            return None if data == "synthetic" else self._real()
        if data == "mixed":
            return whole
        real, synthetic = by_origin(whole)
        if data.startswith("ratio-"):
            rows = real + self._some(synthetic, float(data.removeprefix("ratio-")))
        elif data == "synthetic":
            rows = synthetic
        else:
            rows = real + unfiltered(self._user, whole, self._scrubber())
        spent = whole.manifest.measured["spent"]
        return self._written(data, {"dataset": whole.id}, rows, spent) if rows else None

    def _real(self) -> Artifact:
        """The user's own items alone; no teacher has a part in it."""
        return self._written("real", {"profile": self.profile.id}, self._own(), {})

    def _without_teacher(self, data: str) -> Artifact | None:
        """What is left of an arm's data where nothing that the teacher wrote can be taken."""
        if data != "real-repeated":
            self.fallen_back.add(data)
        return None if data == "synthetic" else self._real()

    def _repeated(self, rows: int) -> Artifact:
        """The user's own items alone, so often that there are so many rows.

        In whole passes and a last one in part, which is drawn by lot. With as many rows as a mix,
        its adapter takes as many steps: what the mix gains over it is not theirs.
        """
        own, seed = self._own(), self.config.seed
        if rows == len(own):
            return self._real()
        passes, rest = divmod(rows, len(own))
        drawn = random.Random(f"repeated {seed}").sample(range(len(own)), rest)
        repeated = own * passes + [own[index] for index in sorted(drawn)]
        parents = {"profile": self.profile.id}
        return self._written("real-repeated", parents, repeated, {}, to=rows, seed=seed)

    def _own(self) -> Rows:
        return [real_row(self._user.task, item) for item in self._train]

    def augmentation(self, data: str) -> AugmentConfig:
        """Of what an arm's data is taken: what is configured, or for ratios the largest of them."""
        if not data.startswith("ratio-"):
            return self.config
        ratio = max(self.ratios)
        share = min(self.config.real_share, 1 / (1 + ratio))
        return replace(self.config, per_real=ratio, fill_to=0, real_share=share)

    def _augmented(self, data: str) -> Artifact | None:
        """That augmentation; None where the teacher answered, but nothing of it could be read."""
        config = self.augmentation(data)
        kind = "ratio-" * data.startswith("ratio-")
        name = f"augmented-{kind}{config.per_real:g}"
        if name in self.unreadable:
            return None
        try:
            return augment(
                self.profile, self.teacher, self.folder / name, config, self.progress, self.judge,
                self.calls, beside=self.folder / "augmented",
            )  # fmt: skip
        except UnreadableError as error:
            self.unreadable[name] = error
            return None

    def _some(self, synthetic: Rows, ratio: float) -> Rows:
        """Of the largest mix's synthetic items as many as the ratio says, drawn by lot.

        Not the best of them: then a smaller ratio would have better items, and the quality would
        vary with the number. Each draw holds the smaller ones, and labels have their shares in it.
        """
        rng = random.Random(f"ratios {self.config.seed}")
        places: dict[int, float] = {}
        labels = [row["output"] if self._user.task.labels else "" for row in synthetic]
        for label in dict.fromkeys(labels):
            mine = [index for index, other in enumerate(labels) if other == label]
            for number, index in enumerate(rng.sample(mine, len(mine))):
                places[index] = (number + rng.random()) / len(mine)
        drawn = sorted(places, key=places.__getitem__)[: round(ratio * len(self._train))]
        return [synthetic[index] for index in sorted(drawn)]

    def _scrubber(self) -> Scrubber | None:
        """The one that the augmentation had."""
        config = self.config
        if not config.per_real:
            return None
        return scrubber_for(self._user.task, self._train, config, self.teacher, self.judge)

    def _written(
        self, name: str, parents: dict[str, str], rows: Rows, spent: dict[str, Any], **how: int
    ) -> Artifact:
        """A Dataset with these rows to train on, and the newest real items to validate on."""
        out, config = self.folder / name, {"arm": name, **how}
        if current := finished(out, "Dataset", parents, config):
            return current
        with create(out, "Dataset", parents, config) as draft:
            valid = [real_row(self._user.task, item) for item in self._valid]
            write_rows(draft.path / TRAIN_FILE, rows)
            write_rows(draft.path / VALID_FILE, valid)
            draft.measured.update(rows=len(rows), spent=spent)
        return open_artifact(out, "Dataset")


def counts(dataset: Artifact | None) -> tuple[int, int]:
    """Rows to train on, and how many of them are synthetic; none without a Dataset."""
    if dataset is None:
        return 0, 0
    real, synthetic = by_origin(dataset)
    return len(real) + len(synthetic), len(synthetic)


def by_origin(dataset: Artifact) -> tuple[Rows, Rows]:
    """The rows to train on: the real ones, and the synthetic ones."""
    rows = read_rows(dataset.file(TRAIN_FILE))
    real = [row for row in rows if row["origin"] == "real"]
    return real, [row for row in rows if row["origin"] == "synthetic"]


def unfiltered(user: Profile, whole: Artifact, scrubber: Scrubber | None) -> Rows:
    """As many as passed, but the first ones that the teacher wrote and that can be trained on.

    With the outputs that came with them, where outputs were asked for anew.
    Out stays all the same what is not of the task's form, what is near a held-out question, and
    what holds somebody's personal data, whatever else was wrong with it.
    """
    _, synthetic = by_origin(whole)
    rejected = read_rows(whole.file(REJECTED_FILE))
    written = [((row["input"], row["output"]), row["source"]) for row in synthetic]
    written += [
        ((row["pair"][0], row["pair"][1]), row["source"])
        for row in rejected
        if row["pair"] and row["reason"] != "schema"
    ]
    written = [((text, source.get("drawn", output)), source) for (text, output), source in written]
    written.sort(key=lambda each: (each[1]["seed"], each[1]["index"]))
    filters = filters_for(user, *split(user.items), scrubber)
    sound = [
        (pair, source)
        for pair, source in written
        if all(text.strip() for text in pair)
        and not filters.leaks(pair)
        and not filters.is_private(pair)
    ]
    return [synthetic_row(user.task, Candidate(*each)) for each in sound[: len(synthetic)]]
