"""MusicRT: neural music codecs and video-to-music in production, from official checkpoints to a lean runtime.

Importing this package is light: a name loads what it needs when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from musicrt.runtime.bundle import EMBEDDED, Bundle
    from musicrt.runtime.encoded import Encoded, load_encoded, save_encoded
    from musicrt.runtime.errors import (
        AudioError,
        BackendError,
        BundleError,
        BusyError,
        Cancelled,
        CheckpointError,
        ConfigError,
        DeadlineError,
        EncodedError,
        EngineError,
        InputError,
        MusicRTError,
        OutputError,
        VerificationError,
        VideoError,
    )
    from musicrt.runtime.fake_session import FakeSession
    from musicrt.runtime.model import load
    from musicrt.runtime.models.mucodec.facade import MuCodec
    from musicrt.runtime.models.music2latent.facade import EncoderDecoder
    from musicrt.runtime.models.semanticodec.facade import SemantiCodec
    from musicrt.runtime.models.vidmuse.facade import Clip, VidMuse
    from musicrt.runtime.observation import StageRun, StageTime, observe_stages
    from musicrt.runtime.record import Record
    from musicrt.runtime.record_reader import read_record
    from musicrt.runtime.serving.request import RequestEvent
    from musicrt.runtime.serving.service import Service

__version__ = "0.1.0"

_HOMES = {
    "EMBEDDED": "bundle",
    "Bundle": "bundle",
    "Encoded": "encoded",
    "load_encoded": "encoded",
    "save_encoded": "encoded",
    "load": "model",
    "StageRun": "observation",
    "StageTime": "observation",
    "observe_stages": "observation",
    "Record": "record",
    "read_record": "record_reader",
    "RequestEvent": "serving.request",
    "Service": "serving.service",
    "FakeSession": "fake_session",
    "EncoderDecoder": "models.music2latent.facade",
    "MuCodec": "models.mucodec.facade",
    "SemantiCodec": "models.semanticodec.facade",
    "Clip": "models.vidmuse.facade",
    "VidMuse": "models.vidmuse.facade",
    **dict.fromkeys(
        (
            "AudioError",
            "BackendError",
            "BundleError",
            "BusyError",
            "Cancelled",
            "CheckpointError",
            "ConfigError",
            "DeadlineError",
            "EncodedError",
            "EngineError",
            "InputError",
            "MusicRTError",
            "OutputError",
            "VerificationError",
            "VideoError",
        ),
        "errors",
    ),
}

__all__ = [
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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"musicrt.runtime.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
