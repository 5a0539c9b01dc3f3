"""One target for each reader of foreign bytes: it takes any, and may raise nothing but what its callers expect."""

from __future__ import annotations

import contextlib
import io
import json
import os
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from musicrt.runtime.audio import probe_audio, stream_audio
from musicrt.runtime.audio_writer import AudioWriter
from musicrt.runtime.bundle import EMBEDDED, Bundle
from musicrt.runtime.encoded import Encoded, load_encoded, save_encoded
from musicrt.runtime.errors import MusicRTError
from musicrt.runtime.graph_file import OPERATORS, check_graph
from musicrt.runtime.limits import VARIABLE
from musicrt.runtime.manifest_file import MANIFEST
from musicrt.runtime.record import LONGEST, Record, find_record
from musicrt.runtime.record_reader import read_record

LIMITS = "audio_seconds=600,video_seconds=600,video_frames=1000,video_pixels=1e6,encoded_values=1e6"
"""Those that a run of a fuzzer sets, so that no input takes long."""


@dataclass(frozen=True)
class Target:
    """run: feeds a reader in a folder of its own, and raises what is a finding. seeds: valid inputs that are changed."""

    run: Callable[[bytes, Path], None]
    seeds: Callable[[], Sequence[bytes]]


def run_target(name: str, data: bytes) -> None:
    """Feed one input to a target, under `LIMITS`."""
    with _environment(VARIABLE, LIMITS), tempfile.TemporaryDirectory(prefix="musicrt-fuzz-") as folder, _refusals():
        TARGETS[name].run(data, Path(folder))


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Lets errors of ours pass, which are one line that can be printed, whatever the input said."""
    said = ""
    try:
        yield
    except MusicRTError as error:
        said = str(error)
    assert said.isprintable()


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def _read_manifest(data: bytes, folder: Path) -> None:
    (folder / "stages").symlink_to(EMBEDDED / "stages")  # leads out of the bundle, which is the last thing that is looked at
    (folder / MANIFEST).write_bytes(data)
    Bundle.open(folder)


def _manifests() -> list[bytes]:
    """The embedded one, cut down to what is short enough to be changed with effect."""
    content = json.loads((EMBEDDED / MANIFEST).read_bytes())
    for stage in content["stages"].values():
        for output in stage["probe"]["outputs"].values():
            output.update(values=output["values"][:1])
    plan = {
        "key": "0" * 64,
        "engine": "tensorrt",
        "version": "10",
        "targets": [],
        "precision": "float16",
        "flavour": "trt",
        "stripped": False,
    }
    file = content["weights"]
    more = {**plan, "file": file, "report": file, "profiles": [{"bucket": "b", "axes": {"batch": [1, 1, 1]}}]}
    calibration = {"inputs": "", "inputs_sha256": "0" * 64, "tools": {}, "pins": {"encoder": ["x"]}, "quality": {"audio": 1.0}}
    full = {**content, "engines": {"a": {"encoder": more}}, "calibrations": {"gpu-fp16": calibration}, "more_weights": {"trt": file}}
    return [json.dumps(one, separators=(",", ":")).encode() for one in (content, full)]


def _read_encoded(data: bytes, folder: Path) -> None:
    (folder / "a.tok").write_bytes(data)
    encoded = load_encoded(folder / "a.tok")
    assert encoded.seconds >= 0
    assert encoded.bit_rate >= 0
    assert encoded.values.size <= 1_000_000


def _encoded() -> list[bytes]:
    fixed: dict[str, Any] = {"system": "semanticodec", "variant": "v", "identity": "0" * 64, "sample_rate": 16000, "source_rate": 44100}
    codes = np.arange(28, dtype=np.int64).reshape(1, 14, 2)
    latents = np.linspace(-1, 1, 48, dtype=np.float32).reshape(2, 8, 3)
    pieces = [
        Encoded(values=codes, kind="tokens", bits=(14, 6), samples=9000, **fixed),
        Encoded(values=latents, kind="latents", samples=4000, **fixed),
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        contents = []
        for piece in pieces:
            save_encoded(path, piece)
            contents.append(path.read_bytes())
    return contents


def _read_header(data: bytes, folder: Path) -> None:
    """The same with the length that fits, which bytes that are changed blindly seldom have. Data: the header, a zero byte, the values."""
    header, _, values = data.partition(b"\0")
    _read_encoded(struct.pack("<Q", len(header)) + header + values, folder)


def _headers() -> list[bytes]:
    lengths = [(content, 8 + int.from_bytes(content[:8], "little")) for content in _encoded()]
    return [content[8:end] + b"\0" + content[end:] for content, end in lengths]


def _read_record(data: bytes, folder: Path) -> None:
    del folder
    record = find_record(data.decode("utf-8", "replace"))
    assert record is None or (find_record(record.line) == record and len(record.line) <= LONGEST)


def _records() -> list[bytes]:
    facts: dict[str, Any] = {"version": "0.1.0", "system": "s", "variant": "v", "backend": "b", "precision": "float32", "runtime": "r"}
    encoding = Record(way="encode", identity="0" * 64, options={"fit": "length", "window": 5.0}, input="1" * 64, **facts)
    decoding = Record(way="decode", threads=2, options={"seed": 7, "antialias": True}, source=encoding, **facts)
    return [record.line.encode() for record in (encoding, decoding)]


def _read_audio(data: bytes, folder: Path) -> None:
    path = folder / "a.wav"  # which is read as what it is, whatever it is called
    path.write_bytes(data)
    with _refusals():
        read_record(path)
    info = probe_audio(path)
    assert 1 <= info.channels <= 64
    for block in stream_audio(path):
        assert np.isfinite(block).all()


def _audio(*formats: tuple[str, str]) -> list[bytes]:
    wave = np.sin(np.arange(600) / 9).astype(np.float32)[:, None].repeat(2, 1) / 2
    contents = []
    for form, subtype in formats:
        file = io.BytesIO()
        soundfile.write(file, wave, 16000, subtype, format=form)
        contents.append(file.getvalue())
    return contents


def _waves() -> list[bytes]:
    """Those of libsndfile, and a W64 file with a record, which is ours."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.w64"
        with AudioWriter(path, 16000, 1, record=find_record(_records()[0].decode())) as writer:
            writer.write(np.zeros((1, 50), np.float32))
        return [*_audio(("WAV", "PCM_16"), ("WAV", "FLOAT"), ("AIFF", "PCM_24"), ("RF64", "PCM_16"), ("W64", "ULAW")), path.read_bytes()]


def _read_video(data: bytes, folder: Path) -> None:
    from musicrt.runtime.muxing import mux_audio
    from musicrt.runtime.video import Video

    path = folder / "a.mp4"
    path.write_bytes(data)
    video = Video(path)
    assert video.duration > 0
    for picture in video.read(sorted({0, video.frames // 2, video.frames - 1})):
        assert picture.dtype == np.uint8
    mux_audio(video, folder / "b.mkv", [np.zeros((1, 800), np.float32)], 8000, 1)


def _videos() -> list[bytes]:
    import av

    contents = []
    with tempfile.TemporaryDirectory() as folder:
        for suffix, codec in ((".mp4", "libx264"), (".mkv", "libx264"), (".webm", "libvpx"), (".mpg", "mpeg2video"), (".avi", "mpeg4")):
            path = Path(folder) / f"a{suffix}"
            with av.open(str(path), "w") as container:
                stream: Any = container.add_stream(codec, rate=25)
                stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
                for shade in range(0, 250, 50):
                    picture = av.VideoFrame.from_ndarray(np.full((32, 32, 3), shade, np.uint8), "rgb24")
                    container.mux(stream.encode(picture))
                container.mux(stream.encode(None))
            contents.append(path.read_bytes())
    return contents


WEIGHTS = "weights.safetensors"


def _read_weights(data: bytes, folder: Path) -> None:
    """A file of weights for a network of a bundle, and of a checkpoint; where it begins with a header, that gets the length that fits."""
    import torch

    from musicrt.runtime.backends.torch_weights import put_weights
    from musicrt.runtime.checkpoint import load_weights, read_safetensors

    path = folder / WEIGHTS
    header, _, values = data.partition(b"\0")
    path.write_bytes(struct.pack("<Q", len(header)) + header + values if data.startswith(b"{") else data)
    for load in (put_weights, lambda network, path: load_weights(network, read_safetensors(path), dead=lambda _: False)):
        with torch.device("meta"):
            network = torch.nn.Linear(3, 2)
        with _refusals():
            load(network, path)
            assert {tensor.dtype for tensor in network.parameters()} == {torch.float32}
            assert network(torch.zeros(1, 3)).shape == (1, 2)


def _weights() -> list[bytes]:
    from safetensors.numpy import save

    whole = {"weight": np.ones((2, 3), np.float32), "bias": np.zeros(2, np.float32)}
    contents = [save(whole), save({name: array.astype(np.float16) for name, array in whole.items()} | {"more": np.zeros((0, 4), np.int64)})]
    lengths = [(content, 8 + int.from_bytes(content[:8], "little")) for content in contents]
    return [*contents, *(content[8:end].rstrip() + b"\0" + content[end:] for content, end in lengths)]


def _read_graph(data: bytes, folder: Path) -> None:
    """What passes is read by onnx as well, and may hold nothing then that had to be refused."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    (folder / WEIGHTS).write_bytes(bytes(16))
    (folder / "a.onnx").write_bytes(data)
    check_graph(folder / "a.onnx", [WEIGHTS])
    with contextlib.suppress(DecodeError):
        _hold_graph(onnx.load_model_from_string(data).graph)


def _hold_graph(graph: Any) -> None:
    sparse = [tensor for one in graph.sparse_initializer for tensor in (one.values, one.indices)]
    _hold_tensors([*graph.initializer, *sparse])
    for node in graph.node:
        assert node.domain in ("", "ai.onnx") or node.op_type in OPERATORS[node.domain]
        for attribute in node.attribute:
            sparse = [tensor for one in (attribute.sparse_tensor, *attribute.sparse_tensors) for tensor in (one.values, one.indices)]
            _hold_tensors([attribute.t, *attribute.tensors, *sparse])
            for inner in (attribute.g, *attribute.graphs):
                if inner.ByteSize():
                    _hold_graph(inner)


def _hold_tensors(tensors: Sequence[Any]) -> None:
    for tensor in tensors:
        for entry in tensor.external_data:
            assert entry.key != "location" or entry.value == WEIGHTS
            assert entry.key not in ("offset", "length") or 0 <= int(entry.value) <= 16


def _graphs() -> list[bytes]:
    import onnx

    weight = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[2], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", WEIGHTS), ("offset", "8"), ("length", "8")):
        weight.external_data.add(key=key, value=value)
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in "xy"]
    node = onnx.helper.make_node("MatMulNBits", ["x", "w"], ["y"], domain="com.microsoft")
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:], [weight])
    branch = onnx.helper.make_node("If", ["c"], ["z"], then_branch=graph, else_branch=graph)
    outer = onnx.helper.make_graph([branch], "g", values[:1], values[1:], [weight])
    models = [onnx.helper.make_model(one, opset_imports=[onnx.helper.make_opsetid("", 20)]) for one in (graph, outer)]
    return [model.SerializeToString() for model in models]


def _read_options(data: bytes, folder: Path) -> None:
    """Options of a command, separated by zero bytes; nothing is run."""
    import typer

    from musicrt.cli.app import app

    del folder
    words = data.decode("utf-8", "replace").split("\0")
    usage_error = typer.BadParameter.__bases__[0]  # which typer gives no name of its own; main() ends with 2 for it
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(usage_error, typer.Exit):
        group: Any = typer.main.get_command(app)
        command = group.commands.get(words[0])
        if command is not None:
            command.make_context(words[0], words[1:])


def _options() -> list[bytes]:
    lines = (
        "decode b a.tok a.wav --steps 5 --guidance 2.0 --seed 7 --backend auto --threads 2 --precision int8 --sampler ddim",
        "generate b v.mp4 -o o.wav --top-k 250 --top-p 0.5 --temperature 1e3 --duration 5 --no-antialias",
        "calibrate b --target cpu-int8 --inputs synthetic --ranges minmax --force --seconds 2 --json",
        "verify b --trusted-key k --flavour trt",
        "web b --port 80 --host 0.0.0.0",
    )
    return [line.replace(" ", "\0").encode() for line in lines]


_PACKED = (("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"))
TARGETS = {
    "manifest": Target(_read_manifest, _manifests),
    "encoded": Target(_read_encoded, _encoded),
    "header": Target(_read_header, _headers),
    "record": Target(_read_record, _records),
    "wave": Target(_read_audio, _waves),
    "packed": Target(_read_audio, lambda: _audio(*_PACKED)),
    "video": Target(_read_video, _videos),
    "weights": Target(_read_weights, _weights),
    "graph": Target(_read_graph, _graphs),
    "options": Target(_read_options, _options),
}
