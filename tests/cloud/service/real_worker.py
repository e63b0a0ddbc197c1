"""A worker with the real pipelines, as a process of its own: `python real_worker.py SETTINGS`.

SETTINGS is JSON of `Settings`. It runs what `pocketune worker` runs.
"""

from __future__ import annotations

import json
import os
import signal
import sys

from cloud.service.jobs import JobWorker
from cloud.service.parts import open_parts
from cloud.service.pipelines import pipelines
from cloud.service.settings import Settings
from pocketune import _service_stages


def main() -> None:
    settings = Settings(**json.loads(sys.argv[1]))
    with open_parts(settings) as parts:
        lines = pipelines(parts, _service_stages())
        worker = JobWorker(parts.database, parts.vault, settings, lines)
        worker.start()
        signal.sigwait({signal.SIGTERM})
        worker.stop()
        os._exit(0)


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    main()
