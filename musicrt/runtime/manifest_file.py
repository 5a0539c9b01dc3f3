"""The manifest of a bundle on disk: written whole or not at all, and read as what it is, input from elsewhere."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from musicrt.runtime.errors import BundleError, VerificationError
from musicrt.runtime.files import new_file
from musicrt.runtime.limits import check_limit
from musicrt.runtime.manifest import FORMAT, VERSION, Manifest, parse_json
from musicrt.runtime.signature import check_signature

MANIFEST = "manifest.json"


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Put a manifest in the place of that of the bundle at `path`. Raises OutputError, VerificationError as `manifest_text`."""
    text = manifest_text(manifest)
    with new_file(path / MANIFEST) as file:
        file.write_text(text)


def manifest_text(manifest: Manifest) -> str:
    """What is written of a manifest. Raises VerificationError if it could not be read again, as with numbers that are not finite."""
    text = manifest.model_dump_json(indent=1) + "\n"
    try:
        Manifest.model_validate(parse_json(text.encode()))
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise VerificationError(f"{where} is no finite number: something in the network overflows; nothing was written") from None
    except ValueError as error:
        raise VerificationError(f"the manifest could not be read again ({error}); nothing was written") from None
    return text


def read_manifest(path: Path, trusted_key: Path | None = None) -> Manifest:
    """The validated manifest of the bundle at `path`, signed with a key if one is given. Raises BundleError; InputError for a bad key."""
    file = path / MANIFEST
    try:
        if not path.exists():
            raise BundleError(f"{path} does not exist; expected a bundle folder (make one with: musicrt export)")
        if not path.is_dir():
            raise BundleError(f"{path} is a file, expected a bundle folder (make one with: musicrt export)")
        if not file.is_file():
            raise BundleError(f"{path} has no {MANIFEST}, so it is not a bundle (make one with: musicrt export)")
        if not file.resolve().is_relative_to(path.resolve()):
            raise BundleError(f"{file} leads out of the bundle; do not use it, or copy the files themselves")
        check_limit("manifest_bytes", file.stat().st_size, f"{file} has {file.stat().st_size} bytes", BundleError)
        text = file.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} can't be read ({error.strerror or error}); expected a bundle folder") from None
    if trusted_key is not None:
        check_signature(path, text, trusted_key)
    try:
        content = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{file} is not JSON ({error}); copy or export the bundle again") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise BundleError(f"{file} is not the manifest of a musicrt bundle; make one with: musicrt export")
    if content.get("version") != VERSION:
        raise BundleError(f"{path} has bundle format {content.get('version')!r}, this musicrt reads format {VERSION}; export it again")
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{file} is damaged at {where!r}: {first['msg']}; copy or export the bundle again") from None
