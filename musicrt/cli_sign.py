"""The command `musicrt sign`, and the option that asks for its signature."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from musicrt.cli_output import say
from musicrt.runtime.bundle import MANIFEST, Bundle
from musicrt.runtime.signature import sign_manifest

TrustedKeyOption = Annotated[
    Path | None, typer.Option(help="The public key (PEM, Ed25519) that the bundle has to be signed with; needs the extra `sign`.")
]


def sign(
    bundle: Annotated[Path, typer.Argument(help="A bundle folder.")],
    key: Annotated[Path, typer.Option(help="The private key: Ed25519 as PEM, without a password (openssl genpkey -algorithm ed25519).")],
) -> None:
    """Sign a bundle: its manifest, and with that the hash of every file (needs the extra `sign`)."""
    Bundle.open(bundle, check="hashes")  # what is damaged is not to be signed
    say(f"{sign_manifest(bundle / MANIFEST, key)} written; ask for it with: musicrt verify {bundle} --trusted-key PUBLIC_KEY")
