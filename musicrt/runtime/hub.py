"""Where a checkpoint comes from: a local path in the official layout, or a repository of the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from musicrt.runtime.errors import CheckpointError
from musicrt.runtime.spec import System

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def locate_checkpoint(system: System, source: str | Path | None) -> Path:
    """The local folder or file of a checkpoint; a hub id (or None: the official one) is downloaded into the hub's cache.

    Raises CheckpointError: nothing there, or the download failed.
    """
    if source is None:
        return download_checkpoint(system, system.checkpoint.hub_repository)
    path = Path(source).expanduser()
    a_file = path.suffix in {Path(name).suffix for name in system.checkpoint.files}  # a mistyped path is no hub id
    if path.exists() or isinstance(source, Path) or a_file or not _HUB_ID.fullmatch(source):
        return path
    return download_checkpoint(system, source)


def download_checkpoint(system: System, repository: str) -> Path:
    """Fetch a system's checkpoint files with huggingface_hub, which keeps them in its cache. Raises CheckpointError."""
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
        return Path(snapshot_download(repository, allow_patterns=list(system.checkpoint.files)))
    except (http_error, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{repository} can't be downloaded ({reason}); download it by hand and give its folder") from error
