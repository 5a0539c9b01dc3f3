"""Pieces rendered by FluidSynth with a General MIDI sound font of the system: many pieces in one MIDI file, cut apart afterwards."""

from __future__ import annotations

import struct
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tools.nano.pieces import Piece
from tools.nano.tones import RATE, Audio, normalise

SOUND_FONT = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")
"""Of Debian's package fluid-soundfont-gm, under the MIT licence."""
TICKS = 500
"""A second, at the file's tempo of half a second for 250 ticks."""
GAP = 1.5


def render(pieces: Sequence[Piece], *, room: float, level: float) -> list[Audio]:
    """Mono sounds of the pieces, float32 [seconds * RATE], peak 0.9; room, level: of the reverberation, from 0 to 1.

    Raises FileNotFoundError without FluidSynth or the sound font, CalledProcessError where it fails.
    """
    if not SOUND_FONT.is_file():
        raise FileNotFoundError(f"{SOUND_FONT} is missing; install fluidsynth and fluid-soundfont-gm")
    with tempfile.TemporaryDirectory() as folder:
        midi, raw = Path(folder, "pieces.mid"), Path(folder, "pieces.raw")
        midi.write_bytes(write_midi(pieces))
        settings = [f"synth.reverb.room-size={room}", f"synth.reverb.level={level}", "synth.chorus.active=0", "synth.polyphony=96"]
        options = [option for setting in settings for option in ("-o", setting)]
        command = ["fluidsynth", "-ni", "-q", "-g", "0.5", "-r", str(RATE), *options, "-O", "s16", "-T", "raw", "-F"]
        subprocess.run([*command, str(raw), str(SOUND_FONT), str(midi)], check=True, capture_output=True)
        stereo = np.fromfile(raw, np.int16).reshape(-1, 2)
    mono = stereo.astype(np.float32).mean(1) / 32768
    sounds, at = [], 0.0
    for piece in pieces:
        sounds.append(normalise(mono[round(at * RATE) :][: round(piece.seconds * RATE)]))
        at += piece.seconds + GAP
    return sounds


def write_midi(pieces: Sequence[Piece]) -> bytes:
    """A MIDI file of one track: the pieces one after the other, each with its own instruments."""
    events: list[tuple[int, int, bytes]] = []
    at = 0.0
    for piece in pieces:
        for channel, part in enumerate(piece.parts):
            place = 9 if part.role == "drums" else channel
            if part.role != "drums":
                events.append((round(at * TICKS), 0, bytes((0xC0 | place, part.program))))
            for note in part.notes:
                velocity = int(np.clip(127 * note.velocity, 1, 127))
                start, end = at + note.start, at + note.start + max(note.length, 0.05)
                events.append((round(start * TICKS), 2, bytes((0x90 | place, note.pitch, velocity))))
                events.append((round(end * TICKS), 1, bytes((0x80 | place, note.pitch, 0))))
        at += piece.seconds + GAP
    events.append((round(at * TICKS), 3, b"\xff\x2f\x00"))
    events.sort(key=lambda event: event[:2])
    track, now = bytearray(b"\x00\xff\x51\x03" + (500000).to_bytes(3, "big")), 0
    for tick, _, message in events:
        track += _variable(tick - now) + message
        now = tick
    header = struct.pack(">4sIHHH", b"MThd", 6, 0, 1, TICKS // 2)
    return header + struct.pack(">4sI", b"MTrk", len(track)) + bytes(track)


def _variable(value: int) -> bytes:
    """MIDI's numbers of variable length: seven bits a byte, the highest first."""
    digits = [value & 0x7F]
    while value := value >> 7:
        digits.append(value & 0x7F | 0x80)
    return bytes(reversed(digits))
