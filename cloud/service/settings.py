"""Everything that can be configured, as environment variables `POCKETUNE_…` or fields.

In: the environment, read once at start-up. Out: one frozen `Settings` that is passed explicitly.
With nothing set it is the embedded default: SQLite and a blob folder under `data_dir`, plain
loopback, one worker inside the server. The table in docs/service.md is generated from this class.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Settings(BaseSettings):
    """Configuration of a server or worker; unknown fields are refused."""

    model_config = SettingsConfigDict(
        env_prefix="POCKETUNE_", frozen=True, extra="forbid", use_attribute_docstrings=True
    )

    data_dir: Path = Path("pocketune-data")
    """Where the embedded default keeps database, blobs, keys and scratch folders."""
    database_url: str = ""
    """SQLAlchemy URL; empty: SQLite in `data_dir`. PostgreSQL: `postgresql+psycopg://…`."""
    blobs_url: str = ""
    """`file:///…` or `s3://bucket/prefix`; empty: a folder in `data_dir`."""
    keys_url: str = ""
    """Where wrapped user keys are kept, apart from the database; empty: a folder in `data_dir`,
    or `…-keys` beside the blobs on S3. Must keep no old versions: erasure destroys a key here."""
    s3_endpoint_url: str = ""
    """Endpoint of an S3-compatible store; empty: Amazon's."""
    root_key_file: Path | None = None
    """32 random bytes from which tenant keys are derived; empty: made in `data_dir`, mode 0600."""
    server_key_file: Path | None = None
    """32 random bytes from which come the key that signs receipts of erasure and the salt of the
    audit log; the same on all hosts; empty: made in `data_dir`, mode 0600."""
    encrypt: bool = True
    """Encrypt users' data at rest. Off is for tests only."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=50051, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    tls_cert_file: Path | None = None
    """PEM chain of the server; with `tls_key_file` the server speaks TLS only."""
    tls_key_file: Path | None = None
    """PEM key of the server."""
    tls_client_ca_file: Path | None = None
    """PEM authorities of client certificates; set: clients must show one (mTLS)."""
    api_keys_file: Path | None = None
    """JSON list of `{"id", "tenant", "sha256"}`; keys themselves are never stored."""
    jwt_key_file: Path | None = None
    """PEM public key, or JWKS as a file, that verifies bearer tokens."""
    jwt_jwks_url: str = ""
    """HTTPS address of a JWKS that verifies bearer tokens."""
    jwt_audience: str = "pocketune"
    """Required `aud` of bearer tokens."""
    jwt_issuer: str = ""
    """Required `iss` of bearer tokens; empty: not checked."""
    jwt_tenant_claim: str = "tenant"
    """Claim that names the tenant."""
    insecure: bool = False
    """Allow a public address without TLS or without credentials (behind a proxy that does both)."""

    max_message_bytes: Count = 4 * 1024 * 1024
    """Largest message that is taken."""
    max_call_s: Positive = 60
    """Deadline of unary calls, also where the client set none."""
    max_stream_s: Positive = 3600
    """Deadline of streaming calls."""
    stall_s: Positive = 60
    """A client that sends nothing in mid-stream for this long is cut off."""
    drain_s: Positive = 20
    """How long running calls may go on after SIGTERM."""

    log_format: Literal["auto", "json", "console"] = "auto"
    """`json`: a line for each event; `console`: for people; `auto`: by whether it is a terminal."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe events that are logged; `warning` leaves out the line for each call."""
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """Port of the Prometheus metrics, plain HTTP under `/metrics`; 0: none."""
    metrics_host: str = "127.0.0.1"
    """Address of the metrics; they name methods and counts, never a tenant or user."""
    traces_url: str = ""
    """OTLP/gRPC collector of traces, `http(s)://host:4317`; needs `pip install pocketune[otel]`."""

    worker: bool = True
    """Run one worker inside the server (the embedded default)."""
    queues: tuple[str, ...] = ("cpu", "gpu", "erase")
    """Queues that a worker takes jobs from; on a GPU host `["gpu"]`, elsewhere the others."""
    training_queue: Literal["cpu", "gpu"] = "cpu"
    """Where jobs with a teacher or a training go; `gpu` where workers with a GPU wait for them."""
    jobs_at_once: Count = 1
    """Jobs that one worker runs at a time; all that are trained together count as one."""
    tenant_jobs_at_once: Count = 100
    """Jobs of one tenant that all workers have at a time, at work or waiting inside of one."""
    train_together: Count = 8
    """Trainings of one tenant over one base that run in one process. A worker takes so many jobs of
    a tenant ahead, which no other worker can take then; 1: each is trained alone, none is taken
    ahead."""
    threads: int = Field(default=0, ge=0)
    """CPU threads of a heavy step; 0: the cores divided by `jobs_at_once`."""
    stage_tries: Count = 3
    """Tries of a stage that fails for a passing reason."""
    outage_s: Positive = 900
    """How long a stage waits for a database or blob store that is away, beside its tries."""
    job_attempts: Count = 5
    """Workers that may die over one job before it is given up."""
    worker_timeout_s: Positive = 15
    """A worker that has not been heard of for this long is taken for dead."""
    checkpoint_s: Positive = 30
    """How often the state of a long step is kept in the blob store, for another host to go on."""
    scratch_dir: Path | None = None
    """Where running jobs keep their files, readable, while they run; empty: in `data_dir`."""
    cache_gib: float = Field(default=100, ge=0)
    """Size of the copies of base models and BaseBundles that a host keeps in `data_dir`; beyond it
    the least recently used go, but none that is in use; 0: any."""

    base_sources: dict[str, str] = Field(default_factory=dict[str, str])
    """JSON of names to Hugging Face folders or hub ids that bases may be made from."""
    teachers: dict[str, str] = Field(default_factory=dict[str, str])
    """JSON of names to teachers, `hf:…` or `openai:<base-url>#<model>`."""
    recipes: tuple[str, ...] = ("executorch-xnnpack-8da4w", "executorch-xnnpack-fp32")
    """Recipes that callers may ask for."""
    context_length: int = Field(default=0, ge=0)
    """Positions of the phone's KV cache; 0: the model's own, up to 2,048."""
    lowered_rank: int = Field(default=8, ge=1, le=256)
    """LoRA rank that bases are lowered for; adapters may have a lower one."""

    tenant_calls_per_s: float = Field(default=0, ge=0)
    """Calls of one tenant to one server a second; 0: any number."""
    tenant_open_operations: Count = 1000
    """Operations of one tenant that may wait or run."""
    tenant_gib: float = Field(default=0, ge=0)
    """Size of a tenant's datasets, adapters and bundles from which no operation begins; 0: any."""

    sweep_s: Positive = 600
    """Seconds between two sweeps for what is kept too long or belongs to nobody."""
    remember_days: Positive = 7
    """Days that finished operations and answers to a `request_id` are kept."""

    @model_validator(mode="after")
    def _is_safe(self) -> Settings:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_cert_file and tls_key_file are given together or not at all")
        if self.tls_client_ca_file and not self.tls_cert_file:
            raise ValueError("tls_client_ca_file needs tls_cert_file and tls_key_file")
        if not self.insecure and not self.is_loopback:
            if not self.tls_cert_file:
                raise ValueError(
                    f"{self.host} is no loopback address: set tls_cert_file, or insecure"
                )
            if not self.has_credentials:
                raise ValueError(f"{self.host} is no loopback address: set api_keys_file or jwt_…")
        return self

    @property
    def jobs_held(self) -> int:
        """Jobs of one tenant that a worker takes: those at work, and who may be trained with."""
        return self.jobs_at_once + self.train_together - 1

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def has_credentials(self) -> bool:
        """Whether callers must say who they are; without, all of them are the tenant `local`."""
        return bool(self.api_keys_file or self.jwt_key_file or self.jwt_jwks_url)

    @property
    def resolved_database_url(self) -> str:
        """The database's URL, with the default filled in."""
        return self.database_url or f"sqlite:///{self.data_dir.absolute() / 'pocketune.db'}"

    @property
    def resolved_blobs_url(self) -> str:
        """The blob store's URL, with the default filled in."""
        return self.blobs_url or f"file://{self.data_dir.absolute() / 'blobs'}"

    @property
    def resolved_scratch_dir(self) -> Path:
        """Folder of the running jobs, with the default filled in."""
        return (self.scratch_dir or self.data_dir / "scratch").absolute()

    @property
    def resolved_keys_url(self) -> str:
        """The key store's URL, with the default filled in."""
        if self.keys_url or self.blobs_url.startswith("s3:"):
            return self.keys_url or self.blobs_url.rstrip("/") + "-keys"
        return f"file://{self.data_dir.absolute() / 'keys'}"
