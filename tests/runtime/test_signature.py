"""Signed bundles: what a load that asks for a key takes, and what it refuses."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import musicrt
from musicrt.runtime.bundle import EMBEDDED, Bundle
from musicrt.runtime.errors import BundleError, InputError
from musicrt.runtime.manifest_file import MANIFEST
from musicrt.runtime.signature import SIGNATURE, sign_manifest
from musicrt.runtime.verify import verify_bundle
from tests.command import call, fails
from tests.conftest import refused

pytest.importorskip("cryptography")
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat, PublicFormat


def write_keys(folder: Path, name: str = "key") -> tuple[Path, Path]:
    """A new pair: the private and the public file."""
    key = ed25519.Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture
def signed(tmp_path: Path) -> tuple[Path, Path]:
    """A signed copy of the embedded bundle, and the public key."""
    bundle = Path(shutil.copytree(EMBEDDED, tmp_path / "bundle"))
    private, public = write_keys(tmp_path)
    assert sign_manifest(bundle / MANIFEST, private) == bundle / SIGNATURE
    return bundle, public


def test_signed_bundle_loads(signed: tuple[Path, Path]) -> None:
    bundle, key = signed
    assert Bundle.open(bundle, trusted_key=str(key)).identity == Bundle.open(EMBEDDED).identity
    with musicrt.load(bundle, trusted_key=key) as codec:
        assert codec.model.identity == Bundle.open(EMBEDDED).identity
    assert all(check.ok for check in verify_bundle(bundle, trusted_key=key))
    assert (bundle / SIGNATURE).stat().st_size == 64


def flip(path: Path, place: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "not signed": (lambda bundle: (bundle / SIGNATURE).unlink(), "is not signed"),
    "folder": (lambda bundle: (bundle / SIGNATURE).rename(bundle / "a").with_name(SIGNATURE).mkdir(), "is not signed"),
    "other signature": (lambda bundle: flip(bundle / SIGNATURE), "is not what was signed"),
    "empty signature": (lambda bundle: (bundle / SIGNATURE).write_bytes(b""), "is not what was signed"),
    "longer signature": (
        lambda bundle: (bundle / SIGNATURE).write_bytes((bundle / SIGNATURE).read_bytes() + b"x"),
        "is not what was signed",
    ),
    "white space": (lambda bundle: (bundle / MANIFEST).write_bytes((bundle / MANIFEST).read_bytes() + b"\n"), "is not what was signed"),
    "weights": (lambda bundle: flip(bundle / "stages/weights.safetensors"), "SHA-256"),
    "graph": (lambda bundle: flip(bundle / "stages/encoder.onnx"), "SHA-256"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_bundle_that_is_not_as_signed_is_refused(signed: tuple[Path, Path], name: str) -> None:
    change, words = CHANGES[name]
    bundle, key = signed
    change(bundle)
    with refused(BundleError, bundle, words):
        musicrt.load(bundle, trusted_key=key)


def test_other_key_is_refused(signed: tuple[Path, Path], tmp_path: Path) -> None:
    _, other = write_keys(tmp_path, "other")
    with refused(BundleError, signed[0], other, "is not what was signed"):
        musicrt.load(signed[0], trusted_key=other)


def test_files_that_are_no_keys_are_refused(signed: tuple[Path, Path], tmp_path: Path) -> None:
    bundle, public = signed
    foreign = rsa.generate_private_key(65537, 1024)
    (tmp_path / "rsa.pub").write_bytes(foreign.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    (tmp_path / "text.pub").write_text("no key")
    for path in (tmp_path / "none.pub", tmp_path, tmp_path / "rsa.pub", tmp_path / "text.pub", tmp_path / "key.pem"):
        with refused(InputError, path, "no public key", "Ed25519"):
            Bundle.open(bundle, trusted_key=path)
    locked = ed25519.Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    (tmp_path / "locked.pem").write_bytes(locked)
    for path in (public, tmp_path / "locked.pem"):
        with refused(InputError, path, "no private key", "without a password"):
            sign_manifest(bundle / MANIFEST, path)


def test_command_signs_and_verifies(tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(EMBEDDED, tmp_path / "bundle"))
    private, public = write_keys(tmp_path)
    fails(4, "verify", bundle, "--trusted-key", public, says=("is not signed", "musicrt sign"))
    assert str(bundle / SIGNATURE) in call("sign", bundle, "--key", private).out
    assert "ok" in call("verify", bundle, "--trusted-key", public).out
    flip(bundle / "stages/encoder.onnx")
    fails(4, "verify", bundle, "--trusted-key", public, says=("SHA-256",))
    fails(4, "sign", bundle, "--key", private, says=("SHA-256",))  # what is damaged is not signed


def test_openssl_agrees(signed: tuple[Path, Path]) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    bundle, key = signed
    command = [openssl, "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", str(key), "-in", str(bundle / MANIFEST)]
    done = subprocess.run([*command, "-sigfile", str(bundle / SIGNATURE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
