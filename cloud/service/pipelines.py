"""The pipelines: which stages each method runs, in order, and what share of the time they take.

In: the parts of the service, and the tools of other packages that the composition root injects.
Out: a `Pipeline` for each method that begins an operation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from google.protobuf.message import Message

from cloud.service import child, erasure
from cloud.service.parts import Parts
from cloud.service.pipeline import Job, Pipeline, Result, Stage
from cloud.service.stages import augment, base, export, lower, parity, prepare, publish, train
from cloud.service.stages.site import Site, Tools
from cloud.service.stages.together import Together
from protos.v1 import operations_pb2 as numbers

_NUMBERS = {
    "prepare": numbers.STAGE_PREPARE,
    "augment": numbers.STAGE_AUGMENT,
    "train": numbers.STAGE_TRAIN,
    "lower": numbers.STAGE_LOWER,
    "export": numbers.STAGE_EXPORT,
    "parity": numbers.STAGE_PARITY,
    "publish": numbers.STAGE_PUBLISH,
}
_LIBRARIES = (
    "transformers.models.auto.modeling_auto", "peft", "cloud.service.stages.augment",
    "cloud.service.stages.train", "executorch.extension.flat_tensor.serialize.serialize",
    "executorch.extension.pybindings.portable_lib",
)  # fmt: skip
"""What the steps in child processes import, and takes seconds."""
Row = tuple[str, float, Callable[[Site, Job], Result]]
_AUGMENT: Row = ("augment", 0.98, augment.run)
_TRAIN: Row = ("train", 0.98, train.run)
_EXPORT: tuple[Row, ...] = (
    ("lower", 0.5, lower.run),
    ("export", 0.25, export.run),
    ("parity", 0.22, parity.run),
    ("publish", 0.01, publish.run),
)
_METHODS: Mapping[str, tuple[tuple[Row, ...], Callable[[Site, Job], Message]]] = {
    "AugmentProfile": ((("prepare", 0.02, prepare.augment), _AUGMENT), augment.answer),
    "TrainAdapter": ((("prepare", 0.02, prepare.train), _TRAIN), train.answer),
    "ExportBundle": ((("prepare", 0.02, prepare.export), *_EXPORT), export.answer),
    "PersonalizeProfile": (
        (
            ("prepare", 0.01, prepare.personalize),
            ("augment", 0.3, augment.run),
            ("train", 0.35, train.run),
            ("lower", 0.15, lower.run),
            ("export", 0.1, export.run),
            ("parity", 0.08, parity.run),
            ("publish", 0.01, publish.run),
        ),
        publish.personalized,
    ),
    "CreateBase": ((("prepare", 1.0, base.run),), lower.answer),
    "LowerBase": ((("prepare", 0.02, prepare.lower), ("lower", 0.98, lower.run)), lower.answer),
}


def pipelines(parts: Parts, tools: Tools) -> Mapping[str, Pipeline]:
    """All of them, by method."""
    child.load_ahead(_LIBRARIES)
    settings = parts.settings
    together = Together(settings.train_together)
    site = Site(parts.database, parts.vault, settings, tools, together)
    made = {method: _pipeline(site, *row) for method, row in _METHODS.items()}
    return {**made, erasure.METHOD: erasure.pipeline(parts)}


def _pipeline(
    site: Site, rows: tuple[Row, ...], answer: Callable[[Site, Job], Message]
) -> Pipeline:
    stages = [
        Stage(name, _NUMBERS[name], share, partial(_run, site, run)) for name, share, run in rows
    ]
    return Pipeline(stages, partial(answer, site))


def _run(site: Site, run: Callable[[Site, Job], Result], job: Job) -> Result:
    with job.held:
        return run(site, job)
