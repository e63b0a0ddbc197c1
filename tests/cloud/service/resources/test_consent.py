"""A consent that is taken back counts at once, also for a teacher that is at work."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2 as longrunning

from cloud.service.pipelines import pipelines
from cloud.service.stages.site import Tools
from protos.v1 import profiles_pb2, users_pb2

PROFILE = "users/ann/profiles/LaMP_4"
CONSENT = "users/ann/consent"
ANSWER = json.dumps({"input": "A bell was found near the wall.", "output": "Bell out of the sea"})


class SlowTeacher(BaseHTTPRequestHandler):
    """OpenAI's chat completions over HTTP, a quarter of a second each; never enough of them."""

    asked: list[float]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        type(self).asked.append(time.monotonic())
        time.sleep(0.25)
        message = {"role": "assistant", "content": ANSWER}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        value = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
        data = json.dumps({**value, "choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture
def teacher() -> Iterator[tuple[str, type[SlowTeacher]]]:
    """One that counts as somebody else's: its address is none of the loopback's names."""
    handler = type("Handler", (SlowTeacher,), {"asked": []})
    running = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield f"openai:http://0.0.0.0:{running.server_port}/v1#small", handler
    running.shutdown()
    running.server_close()
    thread.join()


def test_consent_taken_back_ends_the_work_of_a_third_party_teacher(
    make_site, database_url, teacher, tmp_path
):
    spec, handler = teacher
    site = make_site(database_url=database_url, teachers={"elsewhere": spec}, checkpoint_s=0.2)
    site.add_user("ann", tuple(f"The mill opened with {n} guests." for n in range(6)))
    allow(site, True)
    request = profiles_pb2.AugmentProfileRequest(name=PROFILE)
    request.options.teacher, request.options.per_real = "elsewhere", 20
    name = site.profiles.AugmentProfile(request).name
    none = Tools(*[lambda: None] * 4)
    worker = threading.Thread(target=lambda: site.work(pipelines(site.parts, none)))
    worker.start()
    until(lambda: len(handler.asked) > 2)
    allow(site, False)
    worker.join(60)
    asked = len(handler.asked)
    ended = site.operations.GetOperation(longrunning.GetOperationRequest(name=name))
    assert ended.error.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
    assert f"{CONSENT}: does not allow a teacher that others operate" in ended.error.message
    time.sleep(1)  # enough for several more questions
    assert len(handler.asked) == asked
    assert site.artifact_ids("ann", "Dataset") == site.artifact_ids("ann", "Checkpoint") == []
    assert not any((tmp_path / "data" / "scratch").iterdir())
    with pytest.raises(grpc.RpcError) as refused:
        site.profiles.AugmentProfile(request)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def allow(site, third_party: bool) -> None:
    consent = users_pb2.Consent(name=CONSENT, third_party=third_party)
    request = users_pb2.UpdateConsentRequest(consent=consent)
    request.update_mask.paths.append("third_party")
    site.users.UpdateConsent(request)


def until(what) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)
