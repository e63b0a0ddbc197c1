"""The commands `keys …`: API keys of callers, the root key, the key that verifies receipts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from protos.errors import ArtifactError, InputError

if TYPE_CHECKING:
    from cloud.service.settings import Settings

_FILE = click.Path(path_type=Path, dir_okay=False)
_DEFAULT_KEYS = Path("api_keys.json")


def read_settings(**given: Any) -> Settings:
    """Settings from the environment, and what was given as an option over them.

    Raises:
        InputError: names every setting that is wrong.
    """
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from cloud.service.settings import Settings

    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, found['loc'])) or 'settings'}: {found['msg']}"
            for found in error.errors(include_input=False, include_url=False)
        ]
        raise InputError(f"{'; '.join(problems)} (options, or POCKETUNE_…)") from None
    except SettingsError as error:
        raise InputError(f"{error} (expected JSON)") from None


@click.group()
def keys() -> None:
    """API keys of callers, and the root key of the encryption."""


_keys_option = click.option(
    "--file", "path", type=_FILE, default=_DEFAULT_KEYS, show_default=True,
    help="The server's POCKETUNE_API_KEYS_FILE.",
)  # fmt: skip


@keys.command("create")
@click.argument("key_id")
@click.option("--tenant", required=True, help="Whose users and bundles the key opens.")
@_keys_option
def create_command(key_id: str, tenant: str, path: Path) -> None:
    """Make an API key and print it, once; the file keeps only its sha256.

    The server reads the file when it starts.

    \b
    Example:
      pocketune keys create backend --tenant acme --file api_keys.json
    """
    from cloud.service.key_file import add_key

    click.echo(add_key(path, tenant, key_id))


@keys.command("list")
@_keys_option
def list_command(path: Path) -> None:
    """List the ids and tenants of the keys.

    \b
    Example:
      pocketune keys list --file api_keys.json
    """
    from cloud.service.key_file import key_rows

    for row in key_rows(path):
        click.echo(f"{row['id']}\t{row['tenant']}")


@keys.command("revoke")
@click.argument("key_id")
@_keys_option
def revoke_command(key_id: str, path: Path) -> None:
    """Take a key out of the file; restart the servers to make it count.

    \b
    Example:
      pocketune keys revoke backend --file api_keys.json
    """
    from cloud.service.key_file import remove_key

    remove_key(path, key_id)


@keys.command("root")
@click.argument("path", type=_FILE)
def root_command(path: Path) -> None:
    """Make a root key for the encryption at rest, mode 0600; one that is there is kept.

    Every server and worker needs the same one. Without it nothing that is stored can be read.

    \b
    Example:
      pocketune keys root /etc/pocketune/root.key
    """
    from cloud.service.crypto import make_root_key

    make_root_key(path)
    click.echo(f"{path}; keep a copy in another place")


@keys.command("receipts")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="The server's.  [default: pocketune-data]",
)
@click.option("--json", "as_json", is_flag=True, help="With its id, and as PEM, for other tools.")
def receipts_command(data_dir: Path | None, as_json: bool) -> None:
    """Print the public key that verifies receipts of erasure, 64 hex characters.

    Run it where the server's settings and files are.

    \b
    Example:
      pocketune keys receipts
      pocketune keys receipts --json
    """
    from cloud.service.audit import existing_server_key
    from cloud.service.receipts import Signer, key_id, pem

    public = Signer(existing_server_key(read_settings(data_dir=data_dir))).public_key
    told = {"key_id": key_id(public), "public_key": public.hex(), "pem": pem(public)}
    click.echo(json.dumps(told) if as_json else told["public_key"])


@keys.command("verify")
@click.argument("receipt", type=_FILE)
@click.option("--public-key", required=True, help="What `keys receipts` printed.")
def verify_command(receipt: Path, public_key: str) -> None:
    """Check a receipt that `remote delete --receipt` has written; exit code 3: it does not hold.

    \b
    Example:
      pocketune keys verify ann-erased.json --public-key 5f2c…
    """
    from google.protobuf.json_format import Parse, ParseError

    from cloud.service.receipts import verify
    from protos.v1.users_pb2 import ErasureReceipt

    try:
        found = Parse(receipt.read_text("utf-8"), ErasureReceipt())
        key = bytes.fromhex(public_key)
    except (ParseError, ValueError) as error:
        raise InputError(f"{receipt} or --public-key: {error}") from None
    if not verify(found, key):
        raise ArtifactError(f"{receipt}: was altered, or signed with another key")
    click.echo(f"{found.user} was erased on {found.erase_time.ToDatetime():%Y-%m-%d %H:%M} UTC")
