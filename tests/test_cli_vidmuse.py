"""The command line with VidMuse: `musicrt generate` on files and folders, and its codec."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from musicrt.runtime.audio import read_audio
from musicrt.runtime.audio_writer import write_audio
from musicrt.runtime.model import Model
from musicrt.runtime.models.vidmuse.pipeline import Pipeline
from musicrt.runtime.video import Video
from tests.command import CPU, call, fails
from tests.conftest import ForSystem
from tests.reference import signals
from tests.runtime.video_files import av, make_video

SHORT = ("--duration", "0.5", "--seed", "3", *CPU)


@pytest.fixture(scope="module")
def bundle(tiny_bundles: ForSystem) -> Path:
    pytest.importorskip("onnxruntime")
    return tiny_bundles("vidmuse")


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_video(tmp_path / "clip.mp4", 30)


def test_music_of_a_video(bundle: Path, clip: Path) -> None:
    raw, finished = clip.with_name("raw.wav"), clip.with_name("music.flac")
    options = ("--top-k", "50", "--guidance", "2", "--no-loudness")
    tokens, decoded = clip.with_name("raw.safetensors"), clip.with_name("decoded.wav")
    said = call("generate", bundle, clip, "-o", raw, "--tokens", tokens, *options, *SHORT)
    assert said.out == f"{raw}: 0.50 s at 32000 Hz\n"
    call("decode", bundle, tokens, decoded, *CPU)
    np.testing.assert_array_equal(read_audio(decoded)[0], read_audio(raw)[0])
    with Pipeline(Model.open(bundle, backend="onnxruntime-cpu")) as pipeline:
        expected = pipeline.generate(clip, duration=0.5, seed=3, top_k=50, guidance=2.0)
    audio, rate = read_audio(raw)
    assert rate == 32000
    np.testing.assert_allclose(audio, expected, atol=2**-20)
    call("generate", bundle, clip, "-o", finished, "--top-k", "50", "--guidance", "2", *SHORT)
    louder = read_audio(finished)[0]
    gain = np.arctanh(louder[np.abs(louder) > 0.1]) / audio[np.abs(louder) > 0.1]
    assert gain.std() < 1e-3 * gain.mean()
    assert gain.mean() > 1.1 or gain.mean() < 0.9


def test_copy_of_a_video_with_music(bundle: Path, clip: Path) -> None:
    copy = clip.with_name("copy.mp4")
    call("generate", bundle, clip, "-o", copy, "--seed", "3", *CPU)
    with av.open(str(copy)) as container:
        assert len(container.streams.audio) == 1
    made = Video(copy)
    assert abs(made.duration - 1) < 0.1  # the music is as long as whole seconds, and the shorter of both counts
    pictures = [list(Video(path).read(range(5))) for path in (clip, copy)]
    np.testing.assert_array_equal(*np.stack(pictures))


def test_folder_of_videos(bundle: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("b.mp4", "a.mkv", "c.mp4")):
        make_video(tmp_path / name, 26 + number)
    (tmp_path / "notes.txt").touch()
    out = tmp_path / "out"
    said = call("generate", bundle, tmp_path, "--out", out, "--seed", "3", *CPU)
    assert said.out == f"{out}: music for 3 videos\n"
    names = ["a_output.mkv", "a_output.wav", "b_output.mp4", "b_output.wav", "c_output.mp4", "c_output.wav"]
    assert sorted(path.name for path in out.iterdir()) == names
    (out / "b_output.wav").unlink()
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    said = call("generate", bundle, tmp_path, "--out", out, "--seed", "3", *CPU)
    assert said.out == f"{out}: music for 1 video\n"
    changed = [path.name for path in sorted(out.iterdir()) if before.get(path) != path.stat().st_mtime_ns]
    assert changed == ["b_output.mp4", "b_output.wav"]
    assert call("generate", bundle, tmp_path, "--out", out, *CPU).out == f"{out}: music for 0 videos\n"


def test_codec_on_the_command_line(bundle: Path, tmp_path: Path) -> None:
    song, tokens, back = tmp_path / "song.wav", tmp_path / "song.safetensors", tmp_path / "back.wav"
    write_audio(song, signals.audio("vidmuse-cli", 0.5, 44100, 2), 44100)
    assert "tokens [1, 25, 4]" in call("encode", bundle, song, tokens, *CPU).out
    assert call("decode", bundle, tokens, back, *CPU).out == f"{back}: 0.50 s at 32000 Hz\n"
    call("roundtrip", bundle, song, tmp_path / "again.wav", *CPU)
    np.testing.assert_array_equal(read_audio(back)[0], read_audio(tmp_path / "again.wav")[0])
    fails(3, "roundtrip", bundle, song, back, "--seed", "1", *CPU, says=("vidmuse has no option --seed",))


def test_systems_without_generation_name_those_that_have_it(clip: Path) -> None:
    fails(3, "generate", "embedded", clip, "-o", "a.wav", *CPU, says=("music2latent makes no music for videos", "vidmuse"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--top-k", "-1"], "got top_k -1"),
        (["--top-k", "2049"], "got top_k 2049, expected a whole number from 1 to 2048"),
        (["--temperature", "-1"], "got temperature -1.0"),
        (["--duration", "0"], "got a duration of 0.0 s"),
        (["--extend-stride", "30"], "got extend_stride 30.0"),
        (["--prompt", "none.wav"], "none.wav: no such file"),
        (["--seed", "-1"], "got seed -1"),
        (["--max-batch-size", "0"], "got max_batch_size 0"),
    ],
)
def test_wrong_option_leaves_nothing(bundle: Path, clip: Path, options: list[str], says: str) -> None:
    fails(3, "generate", bundle, clip, "-o", clip.with_name("a.wav"), *options, *CPU, says=(says,))
    assert list(clip.parent.iterdir()) == [clip]


def test_wrong_videos_and_targets(bundle: Path, clip: Path) -> None:
    song = clip.with_name("song.wav")
    write_audio(song, np.zeros((1, 3200), np.float32), 32000)
    fails(3, "generate", bundle, song, "-o", clip.with_name("a.wav"), *CPU, says=(song, "expected a video"))
    fails(3, "generate", bundle, clip.with_name("none.mp4"), "-o", clip.with_name("a.wav"), *CPU, says=("none.mp4",))
    fails(3, "generate", bundle, clip, "-o", clip, *CPU, says=("as the video and as the file to write",))
    fails(3, "generate", bundle, clip, "-o", clip.with_name("a.txt"), *CPU, says=("'.txt'",))
    fails(3, "generate", bundle, clip.parent, "-o", clip.with_name("a"), "--tokens", "t", *CPU, says=("--tokens t with a folder",))
    assert {path.name for path in clip.parent.iterdir()} == {"clip.mp4", "song.wav"}
