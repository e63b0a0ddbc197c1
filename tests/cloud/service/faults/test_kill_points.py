"""SIGKILL of server and worker at seeded moments in every stage: nothing is lost, repeated or left.

Users are made, their items uploaded, personalized with real models, and half of them erased, all
through a server that is killed again and again, by workers that are. A point names what is killed
and in which stage, and the delay after which it is; the stage in which the operation's row stands
afterwards tells whether it was hit, otherwise the point is tried again.
"""

from __future__ import annotations

import json
import random
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from fleet import STAGES, Fleet
from google.longrunning import operations_pb2 as longrunning
from sqlalchemy import Row, select

from cloud.client import Client
from cloud.client.errors import NotFound, Unreachable
from cloud.service.state import Database
from cloud.service.tables import Operation
from protos.v1 import (
    operations_pb2,
    profiles_pb2,
    profiles_pb2_grpc,
    users_pb2,
    users_pb2_grpc,
)

ROOT = Path(__file__).parents[4]
QUESTIONS = ROOT / "cloud/pocket/users/LaMP_4/dev_questions.json"
RECIPE = "executorch-xnnpack-fp32"
UPLOADS = 6
LONG = {"augment", "train", "lower", "export", "parity"}
"""Stages that last for some time; the others are over in milliseconds."""
POINTS = 26
"""Of each run, see `_points`."""


@dataclass(frozen=True)
class Point:
    """A kill. where: a stage, or what a client is at. delay_s: after that was seen to begin."""

    victim: str
    where: str
    delay_s: float


def _points(seed: int) -> list[Point]:
    """Worker and server in every stage, the server also in the midst of calls."""
    rng = random.Random(seed)
    places = [("worker", where) for where in (*STAGES, "erase", rng.choice(STAGES[1:]), "publish")]
    places += [("server", where) for where in (*STAGES, "erase")]
    places += [("server", where) for where in ("create", "upload") for _ in range(4)]
    points = [
        Point(victim, where, rng.uniform(0, 1.0 if where in LONG else 0.01))
        for victim, where in places
    ]
    assert len(points) == POINTS
    return rng.sample(points, len(points))


@dataclass
class Caller:
    """What an app's backend does: it calls until it is answered, with the same request id.

    at: what it is doing, for the killer, and a number that changes with each call. By profile:
    acknowledged: ids of the items whose upload was answered. personalized, erased: the operation.
    """

    address: str
    seed: int
    at: tuple[str, int] = ("", 0)
    acknowledged: dict[str, list[str]] = field(default_factory=dict)
    personalized: dict[str, str] = field(default_factory=dict)
    erased: dict[str, str] = field(default_factory=dict)
    count: int = 0

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.channel = grpc.insecure_channel(self.address, [("grpc.max_reconnect_backoff_ms", 300)])
        self.users = users_pb2_grpc.UserServiceStub(self.channel)
        self.profiles = profiles_pb2_grpc.ProfileServiceStub(self.channel)
        self.client = Client(self.address)
        self.rows = json.loads(QUESTIONS.read_text("utf-8"))

    def insist(self, at: str, method: Any, request: Any) -> Any:
        """The answer, whatever happens to the server meanwhile."""
        request.request_id = str(uuid.UUID(int=self.rng.getrandbits(128), version=4))
        while True:
            self.doing(at)
            try:
                return method(request, timeout=30)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                time.sleep(0.05)
            finally:
                self.doing("")

    def doing(self, what: str) -> None:
        self.count += 1
        self.at = (what, self.count)

    def new_profile(self, user: str) -> str:
        """A user with a profile and some items, uploaded in several pieces."""
        request = users_pb2.CreateUserRequest(user_id=user)
        name = self.insist("create", self.users.CreateUser, request).name
        request = profiles_pb2.CreateProfileRequest(parent=name, profile_id="LaMP_4")
        profile = self.insist("create", self.profiles.CreateProfile, request).name
        self.acknowledged[profile] = []
        rows = self.rng.choice(self.rows)["profile"][: 2 * UPLOADS]
        for piece in range(UPLOADS):
            items = [
                profiles_pb2.Item(item_id=row["id"], input=row["text"][:300], output=row["title"])
                for row in rows[2 * piece : 2 * piece + 2]
            ]
            self.upload(profile, items)
            self.acknowledged[profile] += [item.item_id for item in items]
        return profile

    def upload(self, profile: str, items: list[profiles_pb2.Item]) -> None:
        upload_id = str(uuid.uuid4())
        while True:
            self.doing("upload")
            try:
                self.client.upload(profile, items, upload_id)
                return
            except Unreachable:
                continue
            finally:
                self.doing("")

    def personalize(self, profile: str, base: str) -> None:
        request = profiles_pb2.PersonalizeProfileRequest(
            name=profile, base=base, recipe=RECIPE, augment={"per_real": 0.5}, train={"epochs": 1}
        )
        begun = self.insist("create", self.profiles.PersonalizeProfile, request)
        self.personalized[profile] = begun.name
        self.until_done(begun.name)

    def erase(self, profile: str) -> None:
        user = profile.split("/profiles")[0]
        request = users_pb2.DeleteUserRequest(name=user)
        begun = self.insist("create", self.users.DeleteUser, request)
        self.erased[profile] = begun.name
        self.until_done(begun.name)

    def until_done(self, name: str) -> None:
        while True:
            try:
                found = self.client.get_operation(name, profiles_pb2.PersonalizeProfileResponse)
                if self.client.settle(found).done:
                    return
            except Unreachable:
                continue

    def close(self) -> None:
        self.client.close()
        self.channel.close()


class Killer:
    """Takes every point as soon as something is where the point wants it."""

    def __init__(self, fleet: Fleet, clients: list[Caller], points: list[Point]) -> None:
        self.fleet, self.clients, self.left = fleet, clients, list(points)
        self.hits: Counter[tuple[str, str]] = Counter()
        self.done = threading.Event()
        self._database = Database(fleet.settings["database_url"])
        self._server_since = time.monotonic()

    def run(self, deadline: float) -> None:
        """Until all points were hit; whatever was killed, or ended by itself, is begun again."""
        while self.left and time.monotonic() < deadline:
            self.fleet.begin_all()
            self._in_calls()
            for row in self._open():
                self._in_stage(row)
            time.sleep(0.002)
        self.done.set()

    def keep(self) -> None:
        """Keep all members running; for the time after the last point."""
        self.fleet.begin_all()

    def close(self) -> None:
        self._database.close()

    def _open(self) -> list[Row[Any]]:
        columns = (Operation.uid, Operation.stage, Operation.attempt, Operation.worker)
        with self._database.transaction(write=False) as connection:
            wanted = select(*columns).where(Operation.end_time.is_(None), Operation.attempt > 0)
            return list(connection.execute(wanted).all())

    def _in_stage(self, row: Row[Any]) -> None:
        point = next((p for p in self.left if p.where == _stage(row)), None)
        victim = self.fleet.holder(row)
        if point is None or not victim or (point.victim == "server" and not self._may_server()):
            return
        time.sleep(point.delay_s)
        if _stage(self._again(row)) != point.where:
            # The stage was shorter than the delay: come earlier the next time.
            self.left[self.left.index(point)] = Point(point.victim, point.where, point.delay_s / 2)
            return
        self._kill("server" if point.victim == "server" else victim)
        if _stage(self._again(row)) == point.where:
            self._hit(point)

    def _in_calls(self) -> None:
        for point in self.left:
            for client in self.clients:
                seen = client.at
                if seen[0] == point.where and self._may_server():
                    time.sleep(point.delay_s / 4)
                    if client.at == seen:
                        self._kill("server")
                        if client.at[0] == point.where:
                            self._hit(point)
                        return

    def _again(self, row: Row[Any]) -> Row[Any] | None:
        return next((r for r in self._open() if (r.uid, r.attempt) == (row.uid, row.attempt)), None)

    def _kill(self, name: str) -> None:
        self.fleet.kill(name)
        if name == "server":
            self._server_since = time.monotonic()

    def _may_server(self) -> bool:
        """The server answers again, and has done some work since the last time."""
        return self.fleet.listens() and time.monotonic() > self._server_since + 2.5

    def _hit(self, point: Point) -> None:
        self.left.remove(point)
        self.hits[point.victim, point.where] += 1


def _stage(row: Row[Any] | None) -> str:
    if row is None:
        return ""
    return operations_pb2.Stage.Name(row.stage).removeprefix("STAGE_").lower()


def _live(client: Caller, base: str, killer: Killer, name: str) -> None:
    """One user after the other until all points are hit; every second one is erased."""
    number = 0
    while not killer.done.is_set():
        number += 1
        profile = client.new_profile(f"{name}-{number}")
        client.personalize(profile, base)
        if number % 2:
            client.erase(profile)


def _upload(client: Caller, killer: Killer, name: str) -> None:
    """Users with items, of whom no more is wanted; so calls are under way all the time."""
    number = 0
    while not killer.done.is_set():
        number += 1
        client.new_profile(f"{name}-{number}")
        time.sleep(0.2)


def _run(fleet: Fleet, seed: int, seconds: float) -> tuple[Killer, list[Caller]]:
    clients = [Caller(fleet.address, seed + n) for n in range(3)]
    killer = Killer(fleet, clients, _points(seed))
    try:
        base = _base(clients[0].client)
        lives = [
            threading.Thread(target=_live, args=(clients[n], base, killer, f"user{n}"))
            for n in range(2)
        ]
        lives.append(threading.Thread(target=_upload, args=(clients[2], killer, "other")))
        for thread in lives:
            thread.start()
        killer.run(time.monotonic() + seconds)
        while any(thread.is_alive() for thread in lives):
            killer.keep()
            time.sleep(0.2)
    finally:
        killer.done.set()
        killer.close()
    return killer, clients


def _base(client: Client) -> str:
    client.wait(client.create_base("tiny", "tiny"))
    return "bases/tiny"


def _problems(client: Caller) -> list[str]:
    """What does not stand in the service as it was acknowledged to this client."""
    api = client.client
    found: list[str] = []
    for profile, items in client.acknowledged.items():
        user = profile.split("/profiles")[0]
        if profile in client.erased:
            found += _erasure_problems(api, user, client.erased[profile])
            continue
        stored = [item.item_id for item in api.list_items(profile)]
        if stored != items or api.get_profile(profile).item_count != len(items):
            found.append(f"{profile}: {len(items)} items acknowledged, {len(stored)} stored")
        if name := client.personalized.get(profile):
            found += _result_problems(api, user, name)
    return found


def _result_problems(api: Client, user: str, name: str) -> list[str]:
    operation = api.get_operation(name, profiles_pb2.PersonalizeProfileResponse)
    if operation.error:
        return [f"{name}: {operation.error}"]
    made = operation.response()
    adapters, bundles = list(api.list_adapters(user)), list(api.list_bundles(user))
    if adapters != [made.adapter] or bundles != [made.bundle] or not made.parity_report.passed:
        return [f"{user}: {len(adapters)} adapters, {len(bundles)} bundles, expected one of each"]
    return []


def _erasure_problems(api: Client, user: str, name: str) -> list[str]:
    receipt = api.get_operation(name, users_pb2.ErasureReceipt).response()
    try:
        api.get_user(user)
    except NotFound:
        return [] if receipt.user == user else [f"{name}: receipt for {receipt.user}"]
    return [f"{user} was erased and is still there"]


def _survives(fleet: Fleet, seed: int) -> None:
    fleet.start()
    clients: list[Caller] = []
    try:
        killer, clients = _run(fleet, seed, 1200)
        problems = [problem for client in clients for problem in _problems(client)]
        begun = [n for c in clients for n in (*c.personalized.values(), *c.erased.values())]
        known: list[longrunning.Operation] = list(clients[0].client.list_operations())
        users = {user.name for user in clients[0].client.list_users()}
    finally:
        for client in clients:
            client.close()
        faults = fleet.faults()
    expected = {p.split("/profiles")[0] for c in clients for p in c.acknowledged.keys() - c.erased}
    erased_work = sum(len(c.personalized.keys() & c.erased) for c in clients)
    print(f"seed {seed}: {fleet.kills} kills, {len(begun)} operations, hits {dict(killer.hits)}")
    where = f"seed {seed}, after {sum(killer.hits.values())} of {POINTS} points, see {fleet.folder}"
    assert not killer.left, where
    assert sum(killer.hits.values()) == POINTS, where
    assert problems + faults == [], where
    assert users == expected, where
    assert {name.split("/")[1] for name in begun} <= fleet.begun().keys(), where
    # Besides what was begun there is the base; the operations of an erased user went with them.
    assert len(known) == len(begun) - erased_work + 1, where
    assert len(set(begun)) == len(begun), where


def _settings(base: Path, **given: str) -> dict[str, Any]:
    return {
        **given, "base_sources": {"tiny": str(base)}, "context_length": 128, "threads": 1,
        "worker_timeout_s": 3, "job_attempts": 30, "checkpoint_s": 0.5, "sweep_s": 3600,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_nothing_is_lost_done_twice_or_left_on_sqlite_and_a_folder(
    sound_base: Path, tmp_path: Path
):
    folder = tmp_path / "fleet"
    url = f"sqlite:///{tmp_path / 'state.db'}"
    blobs = f"file://{folder / 'blobs'}"
    settings = _settings(sound_base, database_url=url, blobs_url=blobs, keys_url=f"{blobs}-keys")
    _survives(Fleet(folder, settings, workers=2, one_folder=True), seed=20)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_nothing_is_lost_done_twice_or_left_on_postgresql_and_s3(
    sound_base: Path, tmp_path: Path, fresh_postgresql: str, bucket: str, s3: str
):
    settings = _settings(
        sound_base, database_url=fresh_postgresql, blobs_url=bucket, s3_endpoint_url=s3
    )
    _survives(Fleet(tmp_path / "fleet", settings, workers=2), seed=21)
