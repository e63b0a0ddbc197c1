"""The calling side of the service's benchmark, a process of its own: it costs all servers the same.

`python -m benchmarks.service_client TASK JSON` does one of the tasks at the end of this file, whose
arguments the JSON holds, and prints what it measured as JSON. It exits with 1 and says so where an
answer is wrong. Targets are measured in turn, A B A B, each through one connection of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from protos.v1 import (
    adapters_pb2,
    adapters_pb2_grpc,
    bundles_pb2,
    bundles_pb2_grpc,
    profiles_pb2,
    profiles_pb2_grpc,
    users_pb2,
    users_pb2_grpc,
)

MIB = 1 << 20
_GETS = {
    "GetUser": (users_pb2_grpc.UserServiceStub, users_pb2.GetUserRequest),
    "GetProfile": (profiles_pb2_grpc.ProfileServiceStub, profiles_pb2.GetProfileRequest),
    "GetAdapter": (adapters_pb2_grpc.AdapterServiceStub, adapters_pb2.GetAdapterRequest),
}
Figures = dict[str, Any]


class WrongError(Exception):
    """A server has answered what it must not."""


class Target(NamedTuple):
    """One server. file: what is downloaded from it."""

    address: str
    pid: int
    file: str = ""


async def calls(
    targets: Mapping[str, Sequence[Any]],
    method: str,
    name: str,
    rounds: int,
    callers: int,
    count: int,
) -> Figures:
    """Latency with one caller, then calls per second with many, `count` calls for each of them."""
    make_stub, make_request = _GETS[method]
    request = make_request(name=name)
    figures: dict[str, dict[str, list[float]]] = {
        label: {"calls_per_s": [], "cpu_us": []} for label in targets
    }
    latencies: dict[str, list[float]] = {label: [] for label in targets}
    async with contextlib.AsyncExitStack() as stack:
        gets: dict[str, Any] = {}
        for label, target in targets.items():
            channel = await stack.enter_async_context(
                grpc.aio.insecure_channel(Target(*target).address)
            )
            gets[label] = getattr(make_stub(channel), method)
        answers = [await get(request) for get in gets.values()]
        if any(answer != answers[0] for answer in answers):
            raise WrongError(f"{method}: the servers do not answer the same message")

        async def caller(get: Any) -> list[float]:
            return [await _timed(get(request)) for _ in range(count)]

        for _ in range(rounds):
            for label, target in targets.items():
                get, into = gets[label], figures[label]
                latencies[label] += await caller(get)
                cpu, started = cpu_seconds(Target(*target).pid), time.perf_counter()
                await asyncio.gather(*(caller(get) for _ in range(callers)))
                done = callers * count
                into["calls_per_s"].append(done / (time.perf_counter() - started))
                into["cpu_us"].append((cpu_seconds(Target(*target).pid) - cpu) / done * 1e6)
    for label, seconds in latencies.items():
        for percent in (50, 99):
            figures[label][f"p{percent}_ms"] = [percentile(seconds, percent) * 1000]
    return figures


async def downloads(
    targets: Mapping[str, Sequence[Any]],
    name: str,
    size: int,
    sha256: str,
    rounds: int,
    streams: int,
) -> Figures:
    """MiB per second of so many downloads at once; the bytes are looked at before that."""
    figures: dict[str, dict[str, list[float]]] = {
        label: {"mib_per_s": [], "cpu_ms_per_mib": []} for label in targets
    }
    async with contextlib.AsyncExitStack() as stack:
        stubs: dict[str, Any] = {}
        for label, target in targets.items():
            channel = await stack.enter_async_context(
                grpc.aio.insecure_channel(Target(*target).address)
            )
            stubs[label] = bundles_pb2_grpc.BundleServiceStub(channel)
            digest = hashlib.sha256()
            await _download(stubs[label], name, Target(*target).file, digest.update)
            if digest.hexdigest() != sha256:
                raise WrongError(f"{label}: what was downloaded is not what was stored")
        for _ in range(rounds):
            for label, target in targets.items():
                pid, file = Target(*target)[1:]
                cpu, started = cpu_seconds(pid), time.perf_counter()
                got = await asyncio.gather(
                    *(_download(stubs[label], name, file) for _ in range(streams))
                )
                seconds, mib = time.perf_counter() - started, size * streams / MIB
                if got != [size] * streams:
                    raise WrongError(f"{label}: {got} bytes came, not {size} each")
                figures[label]["mib_per_s"].append(mib / seconds)
                figures[label]["cpu_ms_per_mib"].append((cpu_seconds(pid) - cpu) / mib * 1000)
    return figures


async def _download(
    stub: Any, name: str, file: str, look: Callable[[bytes], object] | None = None
) -> int:
    size = 0
    async for chunk in stub.DownloadBundle(bundles_pb2.DownloadBundleRequest(name=name, file=file)):
        size += len(chunk.data)
        if look:
            look(chunk.data)
    return size


async def uploads(address: str, users: int, items: int, callers: int) -> Figures:
    """New users, a profile each, and their items in one message; then every item is read back."""
    latencies: list[float] = []
    errors: list[str] = []
    waiting = iter(range(users))
    async with grpc.aio.insecure_channel(address) as channel:
        accounts = users_pb2_grpc.UserServiceStub(channel)
        profiles = profiles_pb2_grpc.ProfileServiceStub(channel)

        async def upload(number: int) -> None:
            user = await accounts.CreateUser(users_pb2.CreateUserRequest(user_id=f"u{number}"))
            profile = await profiles.CreateProfile(
                profiles_pb2.CreateProfileRequest(parent=user.name, profile_id="LaMP_4")
            )
            batch = profiles_pb2.AppendItemsRequest(
                parent=profile.name, items=[_item(number, each) for each in range(items)]
            )
            latencies.append(await _timed(profiles.AppendItems(iter([batch]))))

        async def caller() -> None:
            for number in waiting:
                try:
                    await upload(number)
                except grpc.RpcError as error:
                    errors.append(str(error))

        async def reader() -> None:
            for number in again:
                lost.extend(await _lost(profiles, number, items))

        started = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(callers)))
        seconds = time.perf_counter() - started
        if errors:
            raise WrongError(f"{len(errors)} of {users} uploads failed, the first: {errors[0]}")
        lost: list[str] = []
        again = iter(range(users))
        await asyncio.gather(*(reader() for _ in range(callers)))
    if lost:
        raise WrongError(f"{len(lost)} items are not there after the upload, such as {lost[0]}")
    return {
        "users": users, "items": users * items, "callers": callers, "errors": 0,
        "seconds": seconds, "items_per_s": users * items / seconds,
        "append_p50_ms": percentile(latencies, 50) * 1000,
        "append_p99_ms": percentile(latencies, 99) * 1000,
    }  # fmt: skip


def _item(user: int, number: int) -> profiles_pb2.Item:
    text = f"item {number} of user {user}"
    return profiles_pb2.Item(input=text + ", and what somebody wrote" * 15, output=text)


async def _lost(profiles: Any, user: int, items: int) -> list[str]:
    """Those items of a user that the service does not give back."""
    parent = f"users/u{user}/profiles/LaMP_4"
    answer = await profiles.ListItems(profiles_pb2.ListItemsRequest(parent=parent, page_size=1000))
    wanted = [_item(user, number) for number in range(items)]
    if answer.next_page_token or len(answer.items) > items:
        raise WrongError(f"{parent}: more than the {items} items that were sent")
    there = {(item.input, item.output) for item in answer.items}
    return [item.output for item in wanted if (item.input, item.output) not in there]


async def pages(address: str, parent: str, total: int, size: int, repeats: int) -> Figures:
    """Walk a long list once, then time its first, middle and last page in turn."""
    async with grpc.aio.insecure_channel(address) as channel:
        adapters = adapters_pb2_grpc.AdapterServiceStub(channel)

        def request(token: str) -> adapters_pb2.ListAdaptersRequest:
            return adapters_pb2.ListAdaptersRequest(parent=parent, page_size=size, page_token=token)

        names: list[str] = []
        tokens = [""]
        while True:
            page = await adapters.ListAdapters(request(tokens[-1]))
            names.extend(adapter.name for adapter in page.adapters)
            if not page.next_page_token:
                break
            tokens.append(page.next_page_token)
        if len(names) != total or len(set(names)) != total:
            raise WrongError(f"{len(set(names))} adapters in {len(names)} rows, expected {total}")
        places = {"first": tokens[0], "middle": tokens[len(tokens) // 2], "last": tokens[-1]}
        times: dict[str, list[float]] = {place: [] for place in places}
        for _ in range(repeats):
            for place, token in places.items():
                times[place].append(await _timed(adapters.ListAdapters(request(token))))
    figures: Figures = {"adapters": total, "page_size": size, "pages": len(tokens)}
    for place, seconds in times.items():
        figures[f"{place}_p50_ms"] = percentile(seconds, 50) * 1000
        figures[f"{place}_p99_ms"] = percentile(seconds, 99) * 1000
    return figures


async def slow_streams(
    address: str, name: str, file: str, content: str, streams: int, seconds: float, pause_s: float
) -> Figures:
    """Downloads that take one chunk each `pause_s`, each through a connection of its own."""
    expected = Path(content).read_bytes()
    until = time.monotonic() + seconds

    async def reader() -> int:
        alone = (("grpc.use_local_subchannel_pool", 1),)
        async with grpc.aio.insecure_channel(address, options=alone) as channel:
            stub = bundles_pb2_grpc.BundleServiceStub(channel)
            call = stub.DownloadBundle(bundles_pb2.DownloadBundleRequest(name=name, file=file))
            size = 0
            chunks = aiter(call)
            while time.monotonic() < until and size < len(expected):
                chunk = await anext(chunks)
                if chunk.data != expected[chunk.offset : chunk.offset + len(chunk.data)]:
                    raise WrongError(f"{file}: wrong bytes at {chunk.offset}")
                size += len(chunk.data)
                await asyncio.sleep(pause_s)
            call.cancel()
            return size

    got = await asyncio.gather(*(reader() for _ in range(streams)))
    if not all(got):
        raise WrongError(f"{got.count(0)} of {streams} streams got nothing in {seconds:g} s")
    return {"streams": streams, "mib_read": sum(got) / MIB, "mib_read_least": min(got) / MIB}


async def _timed(call: Any) -> float:
    started = time.perf_counter()
    await call
    return time.perf_counter() - started


def percentile(values: Sequence[float], percent: int) -> float:
    """By linear interpolation, as `statistics` has it."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def cpu_seconds(pid: int) -> float:
    """User and system time that a process has taken so far; 0 where there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


TASKS: dict[str, Callable[..., Any]] = {
    task.__name__: task for task in (calls, downloads, uploads, pages, slow_streams)
}

if __name__ == "__main__":
    try:
        print(json.dumps(asyncio.run(TASKS[sys.argv[1]](**json.loads(sys.argv[2])))))
    except WrongError as error:
        sys.exit(f"wrong: {error}")
