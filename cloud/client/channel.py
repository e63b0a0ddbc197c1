"""How the client reaches the server: address, TLS, credential, retries.

Retries are gRPC's own, through the service config: they cost no code here, work below the stubs,
and are the same for everybody who uses the channel. They are safe because every changing call has
a request id. Streams are retried until their first message only; what comes after a break is
`transfer.py`'s.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

from protos.errors import InputError

Credential = str | Callable[[], str]
"""An API key or token; or what gives one, for tokens that must be renewed."""
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
_SERVICES = (
    "pocketune.v1.UserService",
    "pocketune.v1.ProfileService",
    "pocketune.v1.AdapterService",
    "pocketune.v1.BundleService",
    "pocketune.v1.BaseService",
    "pocketune.v1.ParityService",
    "google.longrunning.Operations",
)
SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": service} for service in _SERVICES],
            "retryPolicy": {
                "maxAttempts": 5,  # gRPC takes no more
                "initialBackoff": "0.2s",
                "maxBackoff": "5s",
                "backoffMultiplier": 3,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    # While more than half of the calls fail, retries would only add to what brings a server down.
    "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.5},
}


@dataclass(frozen=True)
class Tls:
    """How to talk TLS.

    ca_file: PEM authorities of the server, None for those of the system. cert_file, key_file: the
    client's own certificate and key, for servers that ask for one (mTLS).
    """

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """As gRPC wants it.

        Raises:
            InputError: a file cannot be read, or one of certificate and key is missing.
        """
        if (self.cert_file is None) != (self.key_file is None):
            raise InputError("a client certificate and its key are given together or not at all")
        ca, key, cert = map(_read, (self.ca_file, self.key_file, self.cert_file))
        return grpc.ssl_channel_credentials(ca, key, cert)


def open_channel(address: str, tls: Tls | None, credential: Credential) -> grpc.aio.Channel:
    """A channel to `host:port`; it connects when it is first used.

    Raises:
        InputError: the credential would travel in clear text to another machine.
    """
    options = [
        ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5_000),
    ]
    if tls is not None:
        return grpc.aio.secure_channel(address, tls.credentials(), options)
    if credential and not _is_loopback(address):
        raise InputError(
            f"{address}: a credential is sent over TLS only, except to this machine; "
            "use TLS (--tls, --ca)"
        )
    return grpc.aio.insecure_channel(address, options)


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    if address.startswith("unix:") or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _read(path: Path | None) -> bytes | None:
    try:
        return path.read_bytes() if path else None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
