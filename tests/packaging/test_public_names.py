"""The public names of the package: adding, renaming or dropping one has to be meant."""

from __future__ import annotations

import inspect

import pytest

import musicrt
from musicrt.runtime import errors
from musicrt.runtime.model import load
from musicrt.runtime.models.mucodec.facade import MuCodec
from musicrt.runtime.models.music2latent.facade import EncoderDecoder
from musicrt.runtime.models.semanticodec.facade import SemantiCodec
from musicrt.runtime.models.vidmuse.facade import VidMuse
from musicrt.runtime.models.vidmuse.frames import Clip

NAMES = [
    "EMBEDDED",
    "AudioError",
    "BackendError",
    "Bundle",
    "BundleError",
    "BusyError",
    "Cancelled",
    "CheckpointError",
    "Clip",
    "ConfigError",
    "DeadlineError",
    "Encoded",
    "EncodedError",
    "EncoderDecoder",
    "EngineError",
    "FakeSession",
    "InputError",
    "MuCodec",
    "MusicRTError",
    "OutputError",
    "Record",
    "RequestEvent",
    "SemantiCodec",
    "Service",
    "StageRun",
    "StageTime",
    "VerificationError",
    "VidMuse",
    "VideoError",
    "__version__",
    "load",
    "load_encoded",
    "observe_stages",
    "read_record",
    "save_encoded",
]


def test_names_are_pinned() -> None:
    assert musicrt.__all__ == NAMES
    assert dir(musicrt) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_leads_to_a_thing_of_that_name(name: str) -> None:
    thing = getattr(musicrt, name)
    if inspect.isclass(thing) or inspect.isfunction(thing):
        assert thing.__name__ == name
        assert thing.__module__.startswith("musicrt.runtime.")
        assert thing.__doc__


def test_names_are_the_things_themselves() -> None:
    assert musicrt.load is load
    assert musicrt.EncoderDecoder is EncoderDecoder
    assert musicrt.SemantiCodec is SemantiCodec
    assert musicrt.MuCodec is MuCodec
    assert musicrt.VidMuse is VidMuse
    assert musicrt.Clip is Clip
    assert (musicrt.EMBEDDED / "manifest.json").is_file()
    assert musicrt.__version__.count(".") == 2


def test_every_error_is_public() -> None:
    raised = {name for name, kind in vars(errors).items() if inspect.isclass(kind)}
    assert raised == {name for name in NAMES if inspect.isclass(getattr(musicrt, name)) and issubclass(getattr(musicrt, name), Exception)}


def test_star_import_gives_just_these() -> None:
    namespace: dict[str, object] = {}
    exec("from musicrt import *", namespace)
    assert set(namespace) - {"__builtins__"} == set(NAMES)


def test_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="module 'musicrt' has no attribute 'lode'"):
        musicrt.lode  # noqa: B018
