"""What outputs were made with: it is in the files, and makes them again, bit for bit."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import musicrt
from musicrt.runtime.audio import probe_audio, read_audio
from musicrt.runtime.audio_writer import SUFFIXES, AudioWriter
from musicrt.runtime.encoded import Encoded, load_encoded, save_encoded
from musicrt.runtime.errors import EncodedError, InputError
from musicrt.runtime.files import sha256_of
from musicrt.runtime.model import load
from musicrt.runtime.record import LONGEST, Record, add_record, describe_options, find_record
from musicrt.runtime.record_reader import read_record
from tests.conftest import ForSystem, refused
from tests.runtime.audio_files import save, sine

INNER = Record(
    way="encode",
    version="0.1.0",
    system="music2latent",
    variant="full",
    identity="0" * 64,
    backend="onnxruntime-cpu",
    precision="float32",
    runtime="onnxruntime 1.31, 2 threads",
    threads=2,
    options={"chunking": "official", "max_batch_size": 4},
    input="1" * 64,
)
RECORD = INNER.model_copy(update={"way": "decode", "options": {"seed": 2**64 - 1, "guidance": 1.5, "loudness": False}, "source": INNER})


@pytest.fixture(scope="module")
def nano() -> Any:
    pytest.importorskip("onnxruntime")
    with load(threads=1, backend="onnxruntime-cpu") as codec:
        yield codec


def make_again(record: Record, bundle: Path, source: Path, target: Path) -> Path:
    """Another file by a record alone, from the bundle and the file that it names."""
    assert sha256_of(source) == record.input
    with load(bundle, backend=record.backend, precision=record.precision, threads=record.threads) as codec:
        assert codec.model.identity == record.identity
        assert codec.backend.description == record.runtime
        getattr(codec, f"{record.way}_file")(source, target, **record.options)
    return target


# Making it again


def test_encoded_and_decoded_files_are_made_again(nano: Any, tmp_path: Path) -> None:
    song, tokens, audio = save(tmp_path / "song.flac", sine(330, 44100, 0.4)), tmp_path / "a.st", tmp_path / "a.wav"
    nano.encode_file(song, tokens, chunking="official")
    encoding = read_record(tokens)
    assert encoding is not None
    assert encoding.options == {"chunking": "official"}
    again = make_again(encoding, musicrt.EMBEDDED, song, tmp_path / "again.st")
    assert again.read_bytes() == tokens.read_bytes()

    nano.decode_file(tokens, audio, steps=2)
    decoding = read_record(audio)
    assert decoding is not None
    assert decoding.source == encoding
    assert decoding.options.keys() == {"steps", "seed"}  # one that nobody gave
    assert make_again(decoding, musicrt.EMBEDDED, tokens, tmp_path / "again.wav").read_bytes() == audio.read_bytes()
    nano.decode_file(tokens, tmp_path / "other.wav", steps=2)
    assert not np.array_equal(read_audio(tmp_path / "other.wav")[0], read_audio(audio)[0])


def test_round_trips_are_made_again(nano: Any, tmp_path: Path) -> None:
    song, audio, tokens = save(tmp_path / "song.wav", sine(220, 44100, 0.3)), tmp_path / "a.wav", tmp_path / "a.st"
    nano.roundtrip_file(song, audio, {"chunking": "official"}, {"seed": np.int64(5)})
    record = read_record(audio)
    assert record is not None
    assert record.source is not None
    assert record.options == {"seed": 5}
    make_again(record.source, musicrt.EMBEDDED, song, tokens)
    nano.decode_file(tokens, tmp_path / "b.wav", **record.options)
    np.testing.assert_array_equal(read_audio(tmp_path / "b.wav")[0], read_audio(audio)[0])


def test_arrays_are_made_again(nano: Any) -> None:
    latents = np.linspace(-1, 1, 128, dtype=np.float32).reshape(1, 64, 2)
    record = nano.record("decode", steps=2)
    np.testing.assert_array_equal(nano.decode(latents, **record.options), nano.decode(latents, **record.options))
    assert nano.record("decode", seed=7).options == {"seed": 7}
    assert nano.record("encode", chunking="seamless").options == {"chunking": "seamless"}
    with refused(InputError, "seed"):
        nano.record("decode", seed=-1)
    with refused(InputError, "music2latent can't generate; it can encode, decode"):
        nano.record("generate")


def test_music_for_videos_is_made_again(tiny_bundles: ForSystem, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from tests.runtime.video_files import make_video

    bundle, video = tiny_bundles("vidmuse"), make_video(tmp_path / "v.mp4", 25, title="mine")
    copy, audio, tokens = tmp_path / "copy.mp4", tmp_path / "a.flac", tmp_path / "a.st"
    with load(bundle, threads=1, backend="onnxruntime-cpu") as model:
        model.generate_file(video, audio, tokens, duration=0.5, top_k=5, loudness=False)
        record = read_record(audio)
        assert record is not None
        assert record == load_encoded(tokens).record
        assert record.options == {"duration": 0.5, "top_k": 5, "loudness": False, "seed": record.options["seed"]}
        model.generate_file(video, copy, **record.options)
        model.decode_file(tokens, tmp_path / "decoded.wav")
    assert read_record(copy) == record
    decoded = read_record(tmp_path / "decoded.wav")
    assert decoded is not None
    assert decoded.source == record
    assert make_again(record, bundle, video, tmp_path / "again.flac").read_bytes() == audio.read_bytes()


def test_what_encode_source_gives_is_recorded_as_a_file_is(nano: Any, tmp_path: Path) -> None:
    song = save(tmp_path / "song.wav", sine(330, 44100, 0.3))
    save_encoded(tmp_path / "a.st", nano.encode_source(song, chunking="official"))
    nano.encode_file(song, tmp_path / "b.st", chunking="official")
    assert (tmp_path / "a.st").read_bytes() == (tmp_path / "b.st").read_bytes()
    record = read_record(tmp_path / "a.st")
    assert record is not None
    assert (record.options, record.input) == ({"chunking": "official"}, sha256_of(song))


def test_own_noise_is_recorded_and_no_seed_is_drawn(nano: Any) -> None:
    arrays = [np.arange(6, dtype=np.float32).reshape(2, 3)[:, ::2], np.ones((1, 2), np.float32)]
    expected = f"sha256:{hashlib.sha256(arrays[0].tobytes() + arrays[1].tobytes()).hexdigest()}"
    for given in (arrays, tuple(arrays)):
        assert nano.record("decode", noise=given, steps=2).options == {"noise": expected, "steps": 2}


# In files


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_audio_files_keep_it(tmp_path: Path, suffix: str) -> None:
    path, bare = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    sound = sine(440, 48000, 0.2)
    for target, record in ((path, RECORD), (bare, None)):
        with AudioWriter(target, 48000, 1, record=record) as writer:
            writer.write(sound)
    assert read_record(path) == RECORD
    assert read_record(bare) is None
    np.testing.assert_array_equal(read_audio(path)[0], read_audio(bare)[0])


@pytest.mark.parametrize("samples", [0, 1, 70_001])
def test_others_read_w64_files_with_a_comment(tmp_path: Path, samples: int) -> None:
    av = pytest.importorskip("av")
    path, sound = tmp_path / "a.w64", np.linspace(-1, 1, 2 * samples, dtype=np.float32).reshape(2, samples)
    with AudioWriter(path, 44100, 2, record=RECORD) as writer:
        for start in range(0, samples, 50_000):
            writer.write(sound[:, start : start + 50_000])
    assert int.from_bytes(path.read_bytes()[16:24], "little") == path.stat().st_size
    read, rate = soundfile.read(path, dtype="float32", always_2d=True)
    assert rate == 44100
    np.testing.assert_allclose(read.T, sound, atol=2**-23)
    if samples:  # FFmpeg opens no W64 file without, with a comment or none
        with av.open(str(path)) as container:
            assert container.metadata["comment"] == RECORD.line
            assert sum(frame.samples for frame in container.decode(audio=0)) == samples


def test_w64_files_of_others_have_no_record(tmp_path: Path) -> None:
    path, listed = tmp_path / "a.w64", tmp_path / "b.w64"
    soundfile.write(path, np.zeros((10, 1)), 8000, "PCM_24", format="W64")
    assert read_record(path) is None
    with AudioWriter(listed, 8000, 1, record=RECORD) as writer:
        writer.write(np.zeros((1, 10), np.float32))
    content = listed.read_bytes()
    assert content.count(b"ICMT") == 1
    listed.write_bytes(content.replace(b"ICMT", b"INAM"))
    assert read_record(listed) is None
    at = content.index(b"ICMT") + 4
    listed.write_bytes(content[:at] + b"\xff" * 4 + content[at + 4 :])  # a length beyond the list, which ends it
    assert read_record(listed) == RECORD


def test_the_longest_line_fits_into_a_wave_file(tmp_path: Path) -> None:
    fills = {f"option_{number}": "x" * 100 for number in range((LONGEST - len(RECORD.line)) // 120)}
    fitting = RECORD.model_copy(update={"options": {**RECORD.options, **fills}})
    fitting = fitting.model_copy(update={"runtime": fitting.runtime + "y" * (LONGEST - len(fitting.line))})
    longer = fitting.model_copy(update={"runtime": fitting.runtime + "y"})
    for record, expected in ((fitting, fitting), (longer, longer.model_copy(update={"source": None}))):
        with AudioWriter(tmp_path / "a.wav", 44100, 1, record=record) as writer:
            writer.write(np.zeros((1, 10), np.float32))
        assert len(record.line) <= LONGEST
        assert find_record(probe_audio(tmp_path / "a.wav").comment) == expected
    assert len(fitting.line) == LONGEST


def test_copies_of_videos_keep_the_comment_and_have_one_record(tmp_path: Path) -> None:
    from musicrt.runtime.muxing import mux_audio
    from tests.runtime.video_files import av, make_video

    source = make_video(tmp_path / "v.mkv", 25, title="mine")
    with av.open(str(source)) as given, av.open(str(tmp_path / "w.mkv"), "w") as container:
        stream = container.add_stream_from_template(given.streams.video[0])
        container.metadata["comment"] = "by me"
        for packet in given.demux(given.streams.video[0]):
            if packet.size:
                packet.stream = stream
                container.mux(packet)
    silence = [np.zeros((1, 8000), np.float32)]
    mux_audio(tmp_path / "w.mkv", tmp_path / "x.mkv", silence, 8000, 1, INNER)
    mux_audio(tmp_path / "x.mkv", tmp_path / "y.mp4", silence, 8000, 1, RECORD)
    assert musicrt.read_record(tmp_path / "y.mp4") == RECORD
    with av.open(str(tmp_path / "y.mp4")) as container:
        assert container.metadata["comment"].splitlines() == ["by me", RECORD.line]


def test_files_of_encoded_audio_are_the_same_each_time(tmp_path: Path) -> None:
    values = np.ones((1, 8, 3), np.float32)
    encoded = Encoded(values, "music2latent", "é", "latents", "0" * 64, 44100, 44100, 4000, record=RECORD)
    contents = set()
    for number in range(5):
        save_encoded(tmp_path / f"{number}", encoded)
        contents.add((tmp_path / f"{number}").read_bytes())
    assert len(contents) == 1
    assert dataclasses.replace(load_encoded(tmp_path / "0"), name=encoded.name).record == RECORD


# What it does not tell


def test_no_paths_and_names_are_in_it(nano: Any, tmp_path: Path) -> None:
    secret = tmp_path / "a private name.wav"
    nano.encode_file(save(secret, sine(440, 44100, 0.2)), tmp_path / "a.st")
    nano.decode_file(tmp_path / "a.st", tmp_path / "a.wav")
    comment = probe_audio(tmp_path / "a.wav").comment
    assert json.loads(comment)["source"]["input"] == sha256_of(secret)
    for word in ("private", str(tmp_path), str(musicrt.EMBEDDED), platform.node() or "-", str(Path.home())):
        assert word not in comment


def test_files_and_arrays_among_options_are_hashes(tmp_path: Path) -> None:
    (tmp_path / "p.wav").write_bytes(b"abc")
    array = np.arange(3, dtype=np.float32)
    hashed, missing = hashlib.sha256(b"abc").hexdigest(), tmp_path / "none.wav"
    given = {
        "prompt": str(tmp_path / "p.wav"),
        "other": tmp_path / "p.wav",
        "gone": missing,
        "codes": array,
        "eta": None,
        "noise": object(),
    }
    assert describe_options({**given, "fit": "window\n", "on_progress": print, "steps": np.int32(3), "bad": float("nan")}, ["prompt"]) == {
        "prompt": f"sha256:{hashed}",
        "other": f"sha256:{hashed}",
        "gone": "unreadable",
        "codes": f"sha256:{hashlib.sha256(array.tobytes()).hexdigest()}",
        "noise": "given as object",
        "fit": "window?",
        "steps": 3,
        "bad": "given as float",
    }


# What comes from elsewhere


def test_lines_survive() -> None:
    assert find_record(RECORD.line) == find_record(f"a\n{INNER.line}\n{RECORD.line}\nb") == RECORD
    assert RECORD.line.isascii()
    assert "\n" not in RECORD.line
    assert add_record("a\nb", RECORD) == f"a\nb\n{RECORD.line}"
    assert add_record(f"a\n{INNER.line}", RECORD) == f"a\n{RECORD.line}"
    assert find_record(add_record("", INNER)) == INNER


@pytest.mark.parametrize(
    "text", ["", "a comment", '{"a": 1}', INNER.line.replace("record 1", "record 2"), INNER.line.replace("record 1", "record 11")]
)
def test_other_texts_are_no_record(text: str) -> None:
    assert find_record(text) is None


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"full"', '"full\\u202e"'),
        ('"full"', '"full\\n"'),
        ('"full"', '"' + "x" * 201 + '"'),
        ('"encode"', '"delete"'),
        ("1" * 64, "../../etc"),
        ('"threads":2', '"threads":"many"'),
        ('"threads":2', '"threads":2,"threads":3'),
        ('"threads":2', '"threads":2,"host":"a"'),
        ("max_batch_size", "max\\u0000"),
        ('"official"', "1e999"),
        ('"official"', "[1]"),
        ('"official"', "[" * 900),
        ("}", ""),
        ("}", "}" + " " * LONGEST),
    ],
)
def test_damaged_records_are_refused(before: str, after: str, tmp_path: Path) -> None:
    line = INNER.line.replace(before, after)
    assert line != INNER.line
    with refused(InputError, "record"):
        find_record(line)
    with AudioWriter(tmp_path / "a.flac", 44100, 1) as writer:
        writer._file.comment = line
        writer.write(np.zeros((1, 10), np.float32))
    if "\x00" not in line:
        with refused(InputError, "record"):
            read_record(tmp_path / "a.flac")


def test_three_records_in_each_other_are_refused() -> None:
    content = {**json.loads(INNER.line), "source": json.loads(RECORD.line)}
    with refused(InputError, "more than two"):
        find_record(json.dumps(content, separators=(",", ":")))


def test_encoded_audio_with_a_damaged_record_is_refused(tmp_path: Path) -> None:
    values = np.ones((1, 8, 3), np.float32)
    save_encoded(tmp_path / "a", Encoded(values, "music2latent", "full", "latents", "0" * 64, 44100, 44100, 4000, record=INNER))
    with safe_open(tmp_path / "a", "np") as file:
        header = dict(file.metadata())
    save_file(load_file(tmp_path / "a"), tmp_path / "b", {**header, "record": header["record"].replace('"encode"', '"x"')})
    with refused(EncodedError, "b", "record", "encode the audio again"):
        load_encoded(tmp_path / "b")
