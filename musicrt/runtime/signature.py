"""Signatures of bundles: manifest.sig beside manifest.json, Ed25519 over its bytes (needs the extra `sign`).

The manifest holds the SHA-256 of every other file, so that one signature stands for the whole bundle. Keys are PEM files as OpenSSL writes
them, and the signature is 64 bytes, which it can check as well:

    openssl genpkey -algorithm ed25519 -out key.pem && openssl pkey -in key.pem -pubout -out key.pub
    openssl pkeyutl -verify -rawin -pubin -inkey key.pub -in manifest.json -sigfile manifest.sig
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from musicrt.runtime.errors import BundleError, InputError
from musicrt.runtime.files import new_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE = "manifest.sig"
_LENGTH = 64  # bytes
_LARGEST_KEY = 1 << 16  # bytes of a PEM file


def sign_manifest(manifest: Path, key: Path) -> Path:
    """Write a signature beside a manifest. key: a private one as PEM, without a password. Raises InputError, OutputError."""
    signer, target = _read_key(key, "private"), manifest.with_name(SIGNATURE)
    with new_file(target) as temporary:
        temporary.write_bytes(signer.sign(manifest.read_bytes()))
    return target


def check_signature(path: Path, manifest: bytes, key: Path) -> None:
    """Hold the bytes of a manifest against the signature in the bundle at `path` and a public key in a PEM file.

    Raises BundleError for a bundle that is not signed, or not with that key, or was changed afterwards; InputError for no such key.
    """
    trusted, file = _read_key(key, "public"), path / SIGNATURE
    from cryptography.exceptions import InvalidSignature

    if not file.is_file():
        raise BundleError(f"{path} is not signed, expected {SIGNATURE} beside its manifest; sign it with: musicrt sign {path} --key KEY")
    try:
        with file.open("rb") as stream:
            trusted.verify(stream.read(_LENGTH + 1), manifest)
    except OSError as error:
        raise BundleError(f"{file} can't be read ({error.strerror or error}); copy the bundle again") from None
    except InvalidSignature:
        raise BundleError(
            f"{path} is not what was signed with the key of {key}; do not use this bundle, or sign it again if you changed it"
        ) from None


@overload
def _read_key(path: Path, kind: Literal["private"]) -> Ed25519PrivateKey: ...
@overload
def _read_key(path: Path, kind: Literal["public"]) -> Ed25519PublicKey: ...
def _read_key(path: Path, kind: str) -> Ed25519PrivateKey | Ed25519PublicKey:
    """Raises InputError."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
    except ModuleNotFoundError as error:
        raise InputError(f"signatures need {error.name}, which is not installed; pip install 'musicrt[sign]'") from None
    try:
        if not path.is_file():
            raise ValueError("there is no such file")
        with path.open("rb") as stream:
            text = stream.read(_LARGEST_KEY)
        found = load_pem_private_key(text, password=None) if kind == "private" else load_pem_public_key(text)
        if not isinstance(found, Ed25519PrivateKey | Ed25519PublicKey):
            raise ValueError("it is for another algorithm")
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:  # TypeError: it has a password
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{path} holds no {kind} key that can be used ({reason}); expected Ed25519 as PEM, without a password") from None
    return found
