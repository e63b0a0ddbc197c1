"""A worker that erases users, and sleeps where others would augment: `DATABASE DATA [die]`.

`die`: it kills itself in the middle of an erasure, when the key is destroyed and nothing else.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from cloud.service import erasure
from cloud.service.jobs import JobWorker
from cloud.service.parts import open_parts
from cloud.service.pipeline import Job, Pipeline, Stage
from cloud.service.settings import Settings
from protos.v1 import operations_pb2, profiles_pb2


def sleep(progress) -> None:
    for step in range(600):
        progress("sleeping", step / 600)
        time.sleep(0.1)


def augment(job: Job) -> dict[str, object]:
    (job.folder / "readable").write_text("CANARY")
    return {"made": job.in_child(sleep)}


def die(prefix: str) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def main() -> None:
    settings = Settings(
        data_dir=Path(sys.argv[2]), database_url=sys.argv[1], worker_timeout_s=5, threads=1
    )
    with open_parts(settings) as parts:
        if sys.argv[3:] == ["die"]:
            parts.vault.blobs.delete_all = die  # type: ignore
        stage = Stage("augment", operations_pb2.STAGE_AUGMENT, 1.0, augment)
        pipelines = {
            "AugmentProfile": Pipeline(
                [stage], lambda job: profiles_pb2.AugmentProfileResponse()
            ),
            "DeleteUser": erasure.pipeline(parts),
        }  # fmt: skip
        JobWorker(parts.database, parts.vault, settings, pipelines).start()
        time.sleep(600)


if __name__ == "__main__":
    main()
