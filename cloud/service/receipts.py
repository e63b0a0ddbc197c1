"""Receipts of erasures, signed with Ed25519 (RFC 8032).

In: a receipt without signature, or one that somebody shows. Out: it signed, or whether it holds.
The signature is over the message serialized deterministically with `signature` empty.
"""

from __future__ import annotations

import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloud.service.crypto import derive
from protos.v1.users_pb2 import ErasureReceipt


class Signer:
    """Signs. key: the server's, see `audit.server_key`."""

    def __init__(self, key: bytes) -> None:
        seed = derive(key, b"pocketune receipts")
        self._private = Ed25519PrivateKey.from_private_bytes(seed)
        self.public_key = self._private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        """32 bytes, for whoever verifies."""

    def sign(self, receipt: ErasureReceipt) -> ErasureReceipt:
        """The same receipt with `key_id` and `signature`."""
        signed = ErasureReceipt()
        signed.CopyFrom(receipt)
        signed.key_id = key_id(self.public_key)
        signed.signature = self._private.sign(_signed_bytes(signed))
        return signed


def verify(receipt: ErasureReceipt, public_key: bytes) -> bool:
    """Whether the server with this key (32 bytes) has signed exactly this."""
    if receipt.key_id != key_id(public_key):
        return False
    try:
        key = Ed25519PublicKey.from_public_bytes(public_key)
        key.verify(receipt.signature, _signed_bytes(receipt))
    except (InvalidSignature, ValueError):
        return False
    return True


def key_id(public_key: bytes) -> str:
    """sha256 of a public key, 64 hex characters."""
    return hashlib.sha256(public_key).hexdigest()


def pem(public_key: bytes) -> str:
    """A public key as a SubjectPublicKeyInfo (RFC 8410), as openssl reads it."""
    key = Ed25519PublicKey.from_public_bytes(public_key)
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")


def _signed_bytes(receipt: ErasureReceipt) -> bytes:
    bare = ErasureReceipt()
    bare.CopyFrom(receipt)
    bare.ClearField("signature")
    return bare.SerializeToString(deterministic=True)
