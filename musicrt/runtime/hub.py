"""Where a checkpoint comes from: a local path in the official layout, or a repository of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from musicrt.runtime.errors import CheckpointError
from musicrt.runtime.spec import CheckpointSpec

Source = Path | Mapping[str, Path]
"""A checkpoint's folder, or the file where there is only one, or the place of each file by official name."""

_TORCH_FILES = (".pt", ".pth", ".ckpt", ".bin")
_HUB_MODEL, _OLD_HUB_MODEL = "model.safetensors", "pytorch_model.bin"
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def locate_checkpoint(checkpoint: CheckpointSpec, source: str | Path | None) -> Path:
    """The local folder or file of a checkpoint; a hub id (or None: the official one) is downloaded into the hub's cache.

    Raises CheckpointError: nothing there, or the download failed.
    """
    if source is None:
        return download_checkpoint(checkpoint, checkpoint.hub_repository)
    path = Path(source).expanduser()
    a_file = path.suffix in {Path(name).suffix for name in checkpoint.files}  # a mistyped path is no hub id
    if path.exists() or isinstance(source, Path) or a_file or not _HUB_ID.fullmatch(source):
        return path
    return download_checkpoint(checkpoint, source)


def find_files(checkpoint: CheckpointSpec, source: Source) -> dict[str, Path]:
    """Where each of a checkpoint's files is, by official name.

    In a folder a file has its official path, or lies right inside under the last part of that; a torch file may as well be a
    safetensors file of that name. Companions are there if they are found. Raises CheckpointError.
    """
    names = checkpoint.files
    if isinstance(source, Mapping):
        if missing := [name for name in names if name not in source]:
            raise CheckpointError(f"got no place for {', '.join(missing)}; name all of {', '.join(names)} ({checkpoint.url})")
        return {name: source[name] for name in (*names, *checkpoint.companions) if name in source}
    if source.is_file() and len(names) == 1:
        return {names[0]: source}
    if not source.is_dir():
        what = "is a file" if source.is_file() else "does not exist"
        raise CheckpointError(f"{source} {what}; expected a folder with {', '.join(names)} ({checkpoint.url})")
    found = {name: place for name in names for place in file_places(source, name) if place.is_file()}
    missing = [name for name in names if name not in found]
    if missing:
        raise CheckpointError(f"{source} lacks {', '.join(missing)}; download from {checkpoint.url}")
    return found | _find_companions(checkpoint, source)


def _find_companions(checkpoint: CheckpointSpec, folder: Path) -> dict[str, Path]:
    """Where the companions are that can be found, in the folder or in the hub's cache."""
    found: dict[str, Path] = {}
    for name, repository in checkpoint.companions.items():
        own = [place for place in file_places(folder, name) if place.is_file()]
        if place := own[-1] if own else _find_cached(repository, name):
            found[name] = place
    return found


def _find_cached(repository: str, name: str) -> Path | None:
    """A file that was downloaded from a repository before."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    cached = [try_to_load_from_cache(repository, str(place)) for place in file_places(Path(), Path(name).name)]
    places = [Path(place) for place in cached if isinstance(place, str)]
    return places[-1] if places else None


def download_checkpoint(checkpoint: CheckpointSpec, repository: str, cache: str | Path | None = None) -> Path:
    """Fetch a checkpoint's files with huggingface_hub, which keeps them in its cache, or in the folder `cache`. Raises CheckpointError.

    Companions go into its cache.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError:
        raise CheckpointError(
            f"{repository} has to be downloaded, which needs: pip install 'musicrt[hub]'; or give a local folder"
        ) from None
    # What the HTTP library raises for a lost connection is no OSError; which library it is depends on the hub's version.
    http_error: type[BaseException] = HfHubHTTPError.__bases__[0]
    try:
        asked = repository
        wanted = [str(place) for name in checkpoint.files for place in file_places(Path(), name)]
        folder = Path(snapshot_download(asked, allow_patterns=wanted, cache_dir=cache))
        for name, asked in checkpoint.companions.items():
            snapshot_download(asked, allow_patterns=[Path(name).name])
        return folder
    except (http_error, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{asked} can't be downloaded ({reason}); download it by hand and give its folder") from error


def file_places(folder: Path, name: str) -> list[Path]:
    """Where an official file may be in a folder; the last one that is there counts."""
    places = [folder / Path(name).name, folder / name]
    if Path(name).suffix in _TORCH_FILES:
        places = [*(place.with_suffix(".safetensors") for place in places), *places]
    if Path(name).name == _HUB_MODEL:
        places = [*(place.with_name(_OLD_HUB_MODEL) for place in places), *places]
    return places
