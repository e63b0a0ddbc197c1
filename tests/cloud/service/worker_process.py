"""A worker with a toy pipeline, as a process of its own: `python worker_process.py DATABASE DATA`.

Stages `one`, `heavy` (in a child process) and `last` write a line to DATA/log when they begin and
end. What `heavy` does stands in the operation's request: sleep, stumble (die the first time, when
most is done), fail, die, or kill the worker.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

from cloud.service.jobs import JobWorker
from cloud.service.parts import open_parts
from cloud.service.pipeline import Job, Pipeline, Stage
from cloud.service.settings import Settings
from protos.errors import InputError
from protos.v1 import operations_pb2, profiles_pb2


def say(data: Path, *words: object) -> None:
    with (data / "log").open("a") as log:
        log.write(" ".join(map(str, words)) + "\n")


def heavy(data: str, uid: str, what: str, worker: int, progress) -> str:
    again = f"{uid} child" in (Path(data) / "log").read_text()
    say(Path(data), uid, "child", os.getpid())
    verb, _, seconds = what.partition(":")
    if verb == "fail":
        raise InputError("there is nothing in it")
    if verb == "die":
        os._exit(3)
    if verb == "killworker":
        os.kill(worker, signal.SIGKILL)
    for step in range(10):
        progress(f"step {step}", step / 10)
        if verb == "stumble" and step == 8 and not again:
            os._exit(3)
        time.sleep(float(seconds or 0) / 10)
    return "made"


def stage(data: Path, name: str, job: Job) -> dict[str, object]:
    request = job.request(profiles_pb2.AugmentProfileRequest())
    say(data, job.operation.uid, name, "begin", job.operation.tenant)
    result: dict[str, object] = {"of": name}
    if name == "heavy":
        what = request.options.teacher
        result["made"] = job.in_child(heavy, str(data), job.operation.uid, what, os.getpid())
        job.counters["steps"] = 10
    say(data, job.operation.uid, name, "end")
    return result


def answer(job: Job) -> profiles_pb2.AugmentProfileResponse:
    return profiles_pb2.AugmentProfileResponse(
        dataset="-".join(job.results), real_count=len(job.results)
    )


def main() -> None:
    data = Path(sys.argv[2])
    settings = Settings(
        data_dir=data,
        database_url=sys.argv[1],
        worker_timeout_s=2,
        job_attempts=3,
        stage_tries=2,
        threads=1,
    )
    number = {
        "one": operations_pb2.STAGE_PREPARE,
        "heavy": operations_pb2.STAGE_TRAIN,
        "last": operations_pb2.STAGE_PUBLISH,
    }
    share = {"one": 0.1, "heavy": 0.8, "last": 0.1}
    stages = [Stage(n, number[n], share[n], partial(stage, data, n)) for n in number]
    with open_parts(settings) as parts:
        worker = JobWorker(
            parts.database, parts.vault, settings, {"AugmentProfile": Pipeline(stages, answer)}
        )
        worker.start()
        signal.sigwait({signal.SIGTERM})
        worker.stop()
        os._exit(0)


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    main()
