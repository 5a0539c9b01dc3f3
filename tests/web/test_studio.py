"""What the page does with a bundle, without a page: settings, jobs, pictures."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from musicrt.cli.options import Flag
from musicrt.runtime.audio import read_audio
from musicrt.runtime.audio_writer import write_audio
from musicrt.runtime.bundle import EMBEDDED
from musicrt.runtime.encoded import load_encoded
from musicrt.runtime.errors import AudioError, Cancelled, InputError, VideoError
from musicrt.runtime.registry import system_module, system_names
from musicrt.web.settings import Setting, own_options, read_settings
from musicrt.web.spectrogram import FRAME, draw_spectrograms, spectrogram
from musicrt.web.studio import Result, Studio, open_studios
from tests.conftest import ForSystem, refused
from tests.runtime.audio_files import noise, save

pytest.importorskip("onnxruntime")
pytest.importorskip("matplotlib")

RATE = 44_100


@pytest.fixture(scope="module")
def studio() -> Iterator[Studio]:
    with open_studios([EMBEDDED], "onnxruntime-cpu", 1) as (studio,):
        yield studio


@pytest.fixture
def song(tmp_path: Path) -> Path:
    return save(tmp_path / "song.wav", noise(2, 15_000))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "out"
    path.mkdir()
    return path


def values_of(studio: Studio, **given: object) -> list[object]:
    """What the widgets hold when some were changed and the others left alone."""
    return [given.pop(setting.name, setting.default) for setting in studio.settings]


def run(studio: Studio, source: Path | None, folder: Path, **given: object) -> Result:
    return studio.run(source, values_of(studio, **given), folder, lambda *_: None)


def test_result_is_that_of_the_codec(studio: Studio, song: Path, folder: Path) -> None:
    said: list[tuple[int, int, str]] = []
    result = studio.run(song, values_of(studio, seed="7"), folder, lambda *words: said.append(words))
    assert studio.codec.roundtrip_file(song, song.with_name("expected.wav"), {}, {"seed": 7}) == 15_000
    np.testing.assert_array_equal(read_audio(result.audio)[0], read_audio(song.with_name("expected.wav"))[0])
    assert [path.name for path in result.files] == ["song_decoded.wav", "song.safetensors"]
    encoded = load_encoded(result.files[1])
    assert (encoded.samples, encoded.source_rate) == (15_000, RATE)
    assert f"latents {list(encoded.values.shape)}, {encoded.bit_rate / 1000:.3g} kbps" in result.facts
    assert result.facts.startswith("0.34 s at 44100 Hz in ")
    assert [what for *_, what in said] == ["beginning"] + ["encoding"] * 2 + ["decoding"] * 2 + ["drawing pictures"]
    assert said[-2][0] == said[-2][1]
    assert result.picture.read_bytes().startswith(b"\x89PNG")
    assert result.video is None


def test_errors_name_files_as_their_user_does(studio: Studio, song: Path, folder: Path) -> None:
    broken = song.with_name("broken.wav")
    broken.write_text("no audio")
    with refused(AudioError, "can't read broken.wav: Format not recognised"):
        run(studio, broken, folder)
    with refused(InputError, "got no file, expected an audio file"):
        run(studio, None, folder)
    with refused(InputError, "got 0 denoising steps, expected"):
        run(studio, song, folder, steps=0)
    with refused(InputError, "got steps 1.5, expected a whole number"):
        run(studio, song, folder, steps=1.5)
    with pytest.raises(AudioError) as caught:
        run(studio, broken, folder)
    assert str(song.parent) not in str(caught.value)
    assert not [path for path in folder.iterdir() if path.suffix == ".wav"]


def test_jobs_of_a_bundle_wait_for_each_other(studio: Studio, song: Path, folder: Path) -> None:
    running, most = 0, 0

    def work(name: str) -> None:
        nonlocal running, most
        begun = False

        def report(done: int, total: int, what: str) -> None:
            nonlocal running, most, begun
            running += not begun
            begun = True
            most = max(most, running)
            running -= what == "decoding" and done == total

        (folder / name).mkdir()
        studio.run(song, values_of(studio), folder / name, report)

    threads = [threading.Thread(target=work, args=[name]) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, running) == (1, 0)
    assert len(list(folder.glob("*/song_decoded.wav"))) == 3


@pytest.mark.parametrize("moment", ["beginning", "encoding", "decoding", "drawing pictures"])
def test_a_job_is_stopped_at_any_report(studio: Studio, song: Path, folder: Path, moment: str) -> None:
    def report(_done: int, _total: int, what: str) -> None:
        if what == moment:
            raise Cancelled("enough")

    with refused(Cancelled, "enough"):
        studio.run(song, values_of(studio), folder, report)
    assert not (folder / "spectrograms.png").exists()
    assert (folder / "song_decoded.wav").exists() == (moment == "drawing pictures")
    run(studio, song, folder)


def test_music_for_a_video(tiny_bundles: ForSystem, folder: Path, tmp_path: Path) -> None:
    from tests.runtime.video_files import av, make_video

    clip = make_video(tmp_path / "clip.mp4", 30)
    with open_studios([tiny_bundles("vidmuse")], "onnxruntime-cpu", 1) as (studio,):
        result = run(studio, clip, folder, seed="3", duration="0.5", loudness=False)
        expected = tmp_path / "expected.wav"
        assert studio.codec.generate_file(clip, expected, seed=3, duration=0.5, loudness=False) == 16_000  # type: ignore[attr-defined]
        broken = tmp_path / "broken.mp4"
        broken.write_text("no video")
        with refused(VideoError, "broken.mp4"):
            run(studio, broken, folder)
        with refused(InputError, "got duration 'long', expected a number"):
            run(studio, clip, folder, duration="long")
        assert studio.codec.decode_file(result.files[2], tmp_path / "decoded.wav") == 16_000
    np.testing.assert_array_equal(read_audio(result.audio)[0], read_audio(expected)[0])
    np.testing.assert_array_equal(read_audio(tmp_path / "decoded.wav")[0], read_audio(expected)[0])
    assert [path.name for path in result.files] == ["clip_music.wav", "clip_with_music.mp4", "clip.safetensors"]
    assert "; tokens [1, 25, 4], " in result.facts
    assert result.video == folder / "clip_with_music.mp4"
    with av.open(str(result.video)) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio"]


def test_bundles_are_given_once() -> None:
    with refused(InputError, "expected each bundle once"), open_studios([EMBEDDED, EMBEDDED / "." / "stages" / ".."]):
        pass


@pytest.mark.parametrize("system", system_names())
def test_every_system_has_settings(system: str, tiny_bundles: ForSystem) -> None:
    kind = system_module(system, "pipeline").Pipeline
    with open_studios([tiny_bundles(system)], "onnxruntime-cpu", 1) as (studio,):
        assert studio.wants_video == hasattr(kind, "generate_stream")
        assert "seed" in [setting.name for setting in studio.settings]
        assert read_settings(studio.settings, values_of(studio)) == {}  # what is left alone is left to the system
        defaults = {setting.name: setting.default for setting in studio.settings}
        assert {**studio.codec.model.spec.defaults, **defaults} == {**defaults, **studio.codec.model.spec.defaults}


@pytest.mark.parametrize(
    ("kind", "default", "value", "read"),
    [
        (int, 50, 50, None),
        (int, 50, 20.0, 20),
        (int, 50, None, None),
        (int, None, " 7 ", 7),
        (int, None, "", None),
        (float, 2.0, 3, 3.0),
        (float, None, "0.5", 0.5),
        (bool, True, True, None),
        (bool, True, False, False),
        (Path, None, "/a/b.wav", "/a/b.wav"),
    ],
)
def test_reading_of_a_setting(kind: type, default: object, value: object, read: object) -> None:
    got = Setting("top_k", Flag("--top-k", kind, ""), default).read(value)
    assert (got, type(got)) == (read, type(read))


@pytest.mark.parametrize("text", ["one", "nan", "inf", "1.5"])
def test_wrong_number(text: str) -> None:
    with refused(InputError, "got top k", text, "expected a"):
        Setting("top_k", Flag("--top-k", int, ""), None).read(text)


def test_options_of_a_method() -> None:
    def method(path: str, *, steps: int = 1, on_progress: None = None) -> None: ...

    assert own_options(method, {"steps": 2, "seed": 3, "path": "", "on_progress": None}) == {"steps": 2}


# Pictures


def sine(frequency: float, seconds: float, level: float = 1.0) -> NDArray[np.float32]:
    return (level * np.sin(2 * np.pi * frequency * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)[None]


def test_levels_and_frequencies(tmp_path: Path) -> None:
    bin_width = RATE / FRAME
    write_audio(tmp_path / "a.wav", np.concatenate([sine(100 * bin_width, 1), sine(300 * bin_width, 1, 0.1)], axis=1), RATE)
    levels = spectrogram(tmp_path / "a.wav")
    middle = levels.shape[1] // 2
    assert levels.shape[0] == FRAME // 2 + 1
    assert {int(row) for row in levels[:, : middle - 4].argmax(0)} == {100}
    assert {int(row) for row in levels[:, middle + 4 :].argmax(0)} == {300}
    assert abs(levels[100, middle // 2]) < 0.02
    assert abs(levels[300, -2] + 20) < 0.02


@pytest.mark.parametrize(("samples", "columns"), [(0, 1), (100, 1), (FRAME, 1), (FRAME + 512, 2), (2_000_000, 999)])
def test_number_of_columns_is_bounded(tmp_path: Path, samples: int, columns: int) -> None:
    write_audio(tmp_path / "a.wav", np.zeros((1, samples), np.float32), RATE)
    levels = spectrogram(tmp_path / "a.wav")
    assert levels.shape[1] == columns
    assert levels.max() < -150


def test_picture_shows_every_file(tmp_path: Path) -> None:
    from PIL import Image

    for name, rate in (("a", 44_100), ("b", 16_000)):
        write_audio(tmp_path / f"{name}.wav", sine(1000, 0.2), rate)
    heights = []
    for names in ("a", "ab"):
        draw_spectrograms({name: tmp_path / f"{name}.wav" for name in names}, tmp_path / "a.png")
        with Image.open(tmp_path / "a.png") as image:
            heights.append(image.height)
    assert heights[1] - heights[0] == round(2.2 * 90)
