"""The sounds that the nano codec is trained and measured on."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable

import numpy as np
import pytest

from musicrt.calibration.metrics import onsets, pitches
from tools.nano import fluid, sounds, tones
from tools.nano.dataset import EVALUATION, HEARD, own_held_out, training
from tools.nano.pieces import HELD_OUT, MELODIC, Note, Part, Piece, compose
from tools.nano.tones import RATE, Timbre

A4 = Note(0.0, 0.5, 69, 1.0)
PLAIN = Timbre("additive", slope=1.0, decay=1.0, attack=0.01, vibrato=0.0, ratio=1.0, index=1.0)


def test_pieces_are_functions_of_their_seeds() -> None:
    pieces = [compose(seed, 6.0, programs=HEARD) for seed in (1, 1, 2)]
    assert pieces[0] == pieces[1] != pieces[2]


@pytest.mark.parametrize("seed", range(20))
def test_notes_lie_in_the_piece_and_in_midi(seed: int) -> None:
    piece = compose(seed, 5.0, programs=MELODIC)
    assert piece.parts
    notes = [note for part in piece.parts for note in part.notes]
    assert min(note.start for note in notes) >= 0
    assert max(note.start + note.length for note in notes) <= 5.0 + 1e-9
    assert all(20 <= note.pitch <= 108 and 0 < note.velocity <= 1 for note in notes)


def test_held_out_instruments_are_not_heard() -> None:
    assert not set(HEARD) & set(HELD_OUT)
    used = {part.program for seed in range(60) for part in compose(seed, 2.0, programs=HEARD).parts if part.role != "drums"}
    assert used <= set(HEARD)
    assert len(used) > 25
    assert EVALUATION > 4 * 1000


@pytest.mark.parametrize("kind", [*tones.KINDS, tones.HELD_OUT_KIND])
def test_instruments_play_the_pitch(kind: str) -> None:
    timbre = Timbre(kind, slope=1.0, decay=1.0, attack=0.01, vibrato=0.0, ratio=1.0, index=1.0)
    found = pitches(tones.play(A4, timbre), RATE)[10:45]
    assert np.nanmedian(found) == pytest.approx(69.0, abs=0.3)


def test_rendered_notes_begin_where_they_are_written() -> None:
    piece = Piece(2.0, [Part("melody", 0, [Note(start, 0.3, 60 + i, 1.0) for i, start in enumerate((0.2, 0.8, 1.4))])])
    audio = tones.render(piece, 3)
    assert audio.dtype == np.float32
    assert len(audio) == 2 * RATE
    assert np.abs(audio).max() == pytest.approx(0.9)
    np.testing.assert_allclose(onsets(audio, RATE)[:3], (0.2, 0.8, 1.4), atol=0.04)


@pytest.mark.parametrize("make", [sounds.make_noise, sounds.speak])
def test_other_sounds(make: Callable[[int, float], tones.Audio]) -> None:
    audio = make(1, 1.5)
    assert audio.shape == (round(1.5 * RATE),)
    assert np.abs(audio).max() == pytest.approx(0.9)
    assert (audio == make(1, 1.5)).all()
    assert not (audio == make(2, 1.5)).all()


def test_own_held_out_sounds() -> None:
    made = dict(own_held_out(1, seconds=1.0))
    assert list(made) == ["own-pieces.0", "own-melodies.0"]


def test_midi_file() -> None:
    piece = Piece(1.0, [Part("melody", 40, [A4]), Part("drums", 0, [Note(0.5, 0.1, 36, 0.5)])])
    content = fluid.write_midi([piece, piece])
    assert content[:4] == b"MThd"
    (length,) = struct.unpack(">I", content[18:22])
    assert len(content) == 22 + length
    assert content.count(bytes((0x90, 69, 127))) == content.count(bytes((0x80, 69, 0))) == 2
    assert content.count(bytes((0x99, 36, 63))) == content.count(bytes((0xC0, 40))) == 2
    assert content.endswith(b"\xff\x2f\x00")


@pytest.mark.skipif(shutil.which("fluidsynth") is None or not fluid.SOUND_FONT.is_file(), reason="needs fluidsynth and its sound font")
def test_fluidsynth_renders_pieces_apart() -> None:
    piece = Piece(1.0, [Part("melody", 73, [Note(0.3, 0.5, 69, 1.0)])])
    first, second = fluid.render([piece, piece], room=0.2, level=0.1)
    assert len(first) == len(second) == RATE
    assert np.nanmedian(pitches(first, RATE)[40:75]) == pytest.approx(69.0, abs=0.3)
    assert onsets(second, RATE)[0] == pytest.approx(0.3, abs=0.06)


def test_training_without_a_sound_font_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fluid, "SOUND_FONT", fluid.SOUND_FONT.with_name("none.sf2"))
    with pytest.raises(FileNotFoundError, match="install fluidsynth and fluid-soundfont-gm"):
        next(training(0))
