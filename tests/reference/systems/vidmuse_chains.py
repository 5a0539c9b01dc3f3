"""Runs the recorded cases of VidMuse that are more than a stage: the choice of tokens, the delay pattern, and whole calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from musicrt.runtime.loops.autoregressive import TokenSequence
from musicrt.runtime.loops.delays import DelayPattern, Tokens
from musicrt.runtime.loops.sampling import Float, Sampling, pick, race
from musicrt.runtime.model import Model
from musicrt.runtime.models.vidmuse.composer import Composer
from musicrt.runtime.models.vidmuse.conditioner import Keys, rename
from musicrt.runtime.models.vidmuse.config import HOP, Config
from musicrt.runtime.models.vidmuse.frames import Clip
from musicrt.runtime.models.vidmuse.noise import InjectedNumbers, Numbers
from musicrt.runtime.models.vidmuse.options import GenerateOptions, Settings
from musicrt.runtime.models.vidmuse.pipeline import Pipeline
from tests.reference.case import Case
from tests.reference.signals import Array
from tests.reference.systems.base import CodecRunner, Outputs
from tests.reference.systems.vidmuse_media import read_clip

_DEFAULTS: Mapping[str, Any] = {
    "use_sampling": True,
    "top_k": 250,
    "top_p": 0.0,
    "temperature": 1.0,
    "cfg_coef": 3.0,
    "extend_stride": 29.5,
    "duration": 30.0,
}


class ChainRunner(CodecRunner[Pipeline]):
    """See `CodecRunner`; a subclass has the cases of single stages."""

    @property
    def chains(self) -> Mapping[str, Callable[[Case], Outputs]]:
        """What computes the cases of each stage, by the names of CASES.md."""
        return {
            "sample": self.sample,
            "pattern": self.pattern,
            "lm-generate": self.lm_generate,
            "generate": self.generate,
            "generate-official-rng": self.generate_official_rng,
            "video-to-audio": self.video_to_audio,
        }

    def sample(self, case: Case) -> Outputs:
        logits, uniforms = case.inputs["logits"], _uniforms(case)
        rows = logits.reshape(-1, logits.shape[-1])
        tokens = _sampling(case).choose(rows, lambda call, weights: pick(weights, uniforms[call]), 0)
        return {"tokens": tokens.reshape(logits.shape[:-1])}

    def pattern(self, case: Case) -> Outputs:
        codes, partial = case.inputs["codes"], case.inputs["partial"]
        pattern = DelayPattern(tuple(case.info["options"]["delays"]), case.info["options"]["special_token"])
        timesteps = codes.shape[2]
        sequence, mask = pattern.build(codes), pattern.mask(timesteps)
        return {
            "sequence": sequence,
            "mask": mask,
            "sequence_valid_only": sequence[:, :, : 1 + timesteps],
            "mask_valid_only": mask[:, : 1 + timesteps],
            "partial_sequence": pattern.build(partial),
            "reverted": pattern.revert(sequence),
        }

    def lm_generate(self, case: Case) -> Outputs:
        """The condition is given, both halves with as many tokens. Row by row, because the null half of each might be another."""
        condition, uniforms = case.inputs["video_emb"], _uniforms(case)
        batch, timesteps = len(condition) // 2, int(_option(case, "duration") * 50)
        rows = [_TracedComposer(self.codec.model, self.codec.config) for _ in range(batch)]
        codebooks = self.codec.config.codebooks
        prompt = case.inputs.get("prompt", np.zeros((batch, codebooks, 0), np.int64))
        settings = Settings(_sampling(case), _option(case, "cfg_coef"))
        tokens = []
        for row, composer in enumerate(rows):
            sequence = TokenSequence(composer.pattern, prompt[row : row + 1], timesteps)
            keys = [composer.conditioner.keys(condition[place : place + 1]) for place in (row, batch + row)]
            numbers = InjectedNumbers([one[row * codebooks : (row + 1) * codebooks] for one in uniforms], len(uniforms), codebooks)
            for _ in composer.write_window(sequence, keys[0], rename(keys[1]), settings, numbers):
                pass
            tokens.append(sequence.codes())
        together = _TracedComposer(self.codec.model, self.codec.config)
        together.first_logits = np.concatenate([one.first_logits for one in rows])
        together.margins = [np.concatenate(margins) for margins in zip(*(one.margins for one in rows), strict=True)]
        return self._outputs(np.concatenate(tokens), together, batch)

    def generate(self, case: Case) -> Outputs:
        pairs = zip(case.inputs["local"], case.inputs["global"], strict=True)
        clips = [Clip.from_tensors(local, around) for local, around in pairs]
        return self._generate(case, clips, _uniforms(case), case.inputs.get("prompt"))

    def generate_official_rng(self, case: Case) -> Outputs:
        """Only the numbers of the tokens that may be chosen are recorded."""
        inputs = case.inputs
        clips = [Clip.from_tensors(*pair) for pair in zip(inputs["local"], inputs["global"], strict=True)]
        return self._generate(case, clips, _Race(inputs["draws"], inputs["draw_ids"]))

    def video_to_audio(self, case: Case) -> Outputs:
        clip = read_clip(case)
        return {"trace/local_ids": clip.local_ids(), **self._generate(case, [clip], _uniforms(case))}

    def _generate(self, case: Case, clips: Sequence[Clip], noise: Numbers | Sequence[Array], prompt: Tokens | None = None) -> Outputs:
        codec = Pipeline(self.codec.model)
        composer = codec.composer = _TracedComposer(codec.model, codec.config)
        sampling = _sampling(case)
        options: GenerateOptions = {
            "duration": _option(case, "duration"),
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "temperature": sampling.temperature,
            "guidance": _option(case, "cfg_coef"),
            "extend_stride": _option(case, "extend_stride"),
            "prompt": prompt,
        }
        if not sampling.is_greedy:
            options["noise"] = noise
        tokens = np.concatenate(codec.generate_token_batch(clips, max_batch_size=len(clips), **options))
        return self._outputs(tokens, composer, len(clips))

    def _outputs(self, tokens: Tokens, composer: _TracedComposer, batch: int) -> Outputs:
        audio = self.codec.decode(tokens)
        if audio.shape[1] != HOP * tokens.shape[2]:
            raise ArithmeticError(f"{tokens.shape[2]} codes gave {audio.shape[1]} samples")
        first = composer.first_logits.reshape(batch, -1, composer.first_logits.shape[-1])
        margins = np.stack(composer.margins).reshape(len(composer.margins), batch, -1)
        return {"tokens": tokens, "audio": audio[:, None], "trace/first_step_logits": first, "trace/margins": margins}


class _TracedComposer(Composer):
    """Keeps how clear each choice was, and the first logits."""

    def __init__(self, model: Model, config: Config) -> None:
        super().__init__(model, config)
        self.margins: list[Array] = []
        self.first_logits = np.zeros((0, 0), np.float32)

    def write_window(
        self, sequence: TokenSequence, keys: Keys, null_keys: Keys, settings: Settings, numbers: Numbers, call: int = 0
    ) -> Iterator[int]:
        """With the choice on the host, also where the language model runs on a GPU: here every choice is seen."""
        return super().write_window(sequence, keys, null_keys, settings, OnHost(numbers), call)

    def choose(self, logits: Float, settings: Settings, numbers: Numbers, call: int) -> Tokens:
        if not self.margins:
            self.first_logits = logits.copy()
        self.margins.append(self._margin(logits, settings, numbers.inner if isinstance(numbers, OnHost) else numbers, call))
        return super().choose(logits, settings, numbers, call)

    def _margin(self, logits: Float, settings: Settings, numbers: Numbers, call: int) -> Array:
        if settings.sampling.is_greedy:
            best = np.partition(logits, -2, axis=1)
            return best[:, -1] - best[:, -2]
        weights, _ = settings.sampling.weigh(logits)
        if isinstance(numbers, _Race):
            best = np.partition(weights / numbers.arrivals(call, weights.shape[1]), -2, axis=1)
            return 1 - best[:, -2] / best[:, -1]
        if not isinstance(numbers, InjectedNumbers):
            raise TypeError(f"got {type(numbers).__name__}, expected recorded numbers")
        sums = np.cumsum(weights, axis=1, dtype=np.float64)
        margin: Array = np.abs(sums / sums[:, -1:] - numbers.of(call)[:, None]).min(axis=1)
        return margin


class OnHost:
    """Numbers that do not say how they are drawn."""

    def __init__(self, inner: Numbers) -> None:
        self.inner = inner

    def begin(self) -> None:
        self.inner.begin()

    def draw(self, call: int, weights: Float) -> Tokens:
        return self.inner.draw(call, weights)


class _Race:
    """Recorded exponential numbers, float32 [draws, rows, n], of the tokens `ids`; the others are not chosen."""

    def __init__(self, draws: Array, ids: Array) -> None:
        self._draws, self._ids = draws, ids

    def begin(self) -> None:
        return

    def arrivals(self, call: int, card: int) -> Float:
        """Of all tokens."""
        arrivals = np.full((self._draws.shape[1], card), np.inf, np.float32)
        np.put_along_axis(arrivals, self._ids[call], self._draws[call], axis=1)
        return arrivals

    def draw(self, call: int, weights: Float) -> Tokens:
        return race(weights, self.arrivals(call, weights.shape[1]))


def _sampling(case: Case) -> Sampling:
    greedy = not _option(case, "use_sampling")
    return Sampling(_option(case, "top_k"), _option(case, "top_p"), 0.0 if greedy else _option(case, "temperature"))


def _option(case: Case, name: str) -> Any:
    value = case.info["options"].get(name)
    return _DEFAULTS[name] if value is None and name in _DEFAULTS else value


def _uniforms(case: Case) -> list[Array]:
    return [(noise.astype(np.float64) + 1) / 2 for noise in case.noise]
