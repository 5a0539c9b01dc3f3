"""Runs the recorded cases of MuCodec that are more than a stage: through the pipeline and its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from musicrt.runtime.errors import InputError
from musicrt.runtime.loops.diffusion import Draw, OnStep
from musicrt.runtime.models.mucodec.config import VAE_CHANNELS
from musicrt.runtime.models.mucodec.downmix import JOINT_PEAK, halve_rate, limit, sinc_kernel
from musicrt.runtime.models.mucodec.lengths import SHARED, WINDOW
from musicrt.runtime.models.mucodec.pipeline import Pipeline
from musicrt.runtime.models.mucodec.sampler import Codes, Float, Sample, Sampler
from musicrt.runtime.models.mucodec.synthesis import Synthesis
from tests.reference.case import Case
from tests.reference.signals import Array
from tests.reference.systems.base import CodecRunner, Outputs

_SECONDS = 40.96  # of a window
_FILLER = (WINDOW - SHARED) // 2  # frames of the draws that have no effect


class ChainRunner(CodecRunner[Pipeline]):
    """See `CodecRunner`; a subclass has the cases of single stages."""

    @property
    def chains(self) -> Mapping[str, Callable[[Case], Outputs]]:
        """What computes the cases of each stage, by the names of CASES.md."""
        return {
            "limit-joint": self.limit_joint,
            "limit-channel": self.limit_channel,
            "resample-encoder": self.resample_encoder,
            "fetch-codes": self.fetch_codes,
            "sound2code": self.sound2code,
            "inference-codes": self.inference_codes,
            "decode-to-waveform": self.decode_to_waveform,
            "windows": self.windows,
            "code2sound": self.code2sound,
            "sound2sound": self.sound2sound,
            "compose": self.compose,
        }

    def limit_joint(self, case: Case) -> Outputs:
        audio = case.inputs["audio"]
        return {"limited": limit(audio, np.abs(audio).max(axis=(1, 2), keepdims=True), case.info["options"]["threshold"])}

    def limit_channel(self, case: Case) -> Outputs:
        audio = case.inputs["audio"]
        return {"limited": limit(audio, np.abs(audio).max(axis=1, keepdims=True), case.info["options"]["threshold"])}

    def resample_encoder(self, case: Case) -> Outputs:
        return {"resampled": halve_rate(case.inputs["audio"]), "trace/kernel": sinc_kernel()[None, None]}

    def fetch_codes(self, case: Case) -> Outputs:
        self.check_layer(case)
        mel = self.codec.windows.analyse(case.inputs["audio"])
        features = self.codec.windows.features(mel)
        return {"codes": self.run_stage("quantizer", hidden=features)["codes"], "features": features.transpose(0, 2, 1)}

    def sound2code(self, case: Case) -> Outputs:
        return {"codes": self._sound2code(case)}

    def inference_codes(self, case: Case) -> Outputs:
        return {"latents": self._sample(case, case.inputs["codes"], case.inputs["true_latents"])}

    def decode_to_waveform(self, case: Case) -> Outputs:
        return {"waveform": np.stack([self.codec.synthesis.waveform(mel) for mel in case.inputs["mel"][:, 0]])}

    def windows(self, case: Case) -> Outputs:
        """With given results in place of sampler and decoders."""
        _check_duration(case, "duration")
        codec, inputs = self.rules, case.inputs
        sampler = codec.sampler = _GivenSampler(codec, inputs["window_latents"])
        codec.synthesis = _GivenSynthesis(codec, inputs["window_waves"])
        waveform = codec.decode(inputs["codes"], steps=case.info["options"]["num_steps"], seed=0)
        contexts = {f"trace/incontext_latents{i}": known for i, known in enumerate(sampler.known) if i}
        lengths = np.array([known.shape[2] for known in sampler.known])
        return {"waveform": waveform, "code_windows": np.stack(sampler.codes), "incontext_lengths": lengths, **contexts}

    def code2sound(self, case: Case) -> Outputs:
        """The official call ignores its `guidance_scale`."""
        _check_duration(case, "duration")
        return self._decode(case, case.inputs["codes"], _option(case, "num_steps", 20), _unbatched(case.inputs.get("prompt")))

    def sound2sound(self, case: Case) -> Outputs:
        _check_duration(case, "min_duration")
        codes, prompt = self._sound2code(case), _unbatched(case.inputs.get("prompt"))
        return {"codes": codes, **self._decode(case, _settle(case, codes), _option(case, "steps", 50), prompt)}

    def compose(self, case: Case) -> Outputs:
        self.check_layer(case)
        audio = case.inputs["audio"]
        mel = self.codec.windows.analyse(limit(audio, np.abs(audio).max(keepdims=True), JOINT_PEAK)[None])
        codes = np.stack(self.codec.windows.encode(list(mel)))
        latents = self._sample(case, _settle(case, codes))
        mels = np.stack([self.codec.synthesis.mel(half) for half in np.split(latents, [VAE_CHANNELS], axis=1)])
        waveform = np.stack([self.codec.synthesis.waveform(one) for one in mels])
        return {"codes": codes, "latents": latents, "mel": mels[:, None], "waveform": waveform}

    def check_layer(self, case: Case) -> None:
        """Raises InputError: a case of another hidden state than that which the network was made for."""
        layer, layers = case.info["options"]["layer"], self.rules.config.layers
        if layer != layers:
            raise InputError(f"got a case of layer {layer}, the checkpoint's network is made for {layers}; set layer_num to {layer + 1}")

    def _sound2code(self, case: Case) -> Array:
        """Codes of the first codebook, which is what the official call keeps."""
        return self.codec.encode(_unbatched(case.inputs["audio"]))[:, :1]

    def _sample(self, case: Case, codes: Array, true_latents: Array | None = None) -> Array:
        """The official `inference_codes`."""
        options, (noise,) = case.info["options"], case.noise
        count = options["incontext_length"] if options["scenario"] == "other_seg" else 0
        known = (np.zeros_like(noise) if true_latents is None else true_latents)[:, :, :count]
        condition = self.codec.sampler.condition(codes, max(options["latent_length"], count))
        sample = self.codec.sampler.prepare(_option(case, "num_steps", 20), _option(case, "guidance_scale", 2.0))
        return sample.run(condition, known, lambda _: noise, lambda: None)

    def _decode(self, case: Case, codes: Array, steps: int, prompt: Array | None = None) -> Outputs:
        codec = Pipeline(self.codec.model)
        sampler = codec.sampler = _TracedSampler(codec.model)
        synthesis = codec.synthesis = _TracedSynthesis(codec.model, codec.config)
        noise = [one for one in case.noise[1:] if one.shape[2] != _FILLER]
        outputs = {"waveform": codec.decode(codes, steps=steps, prompt=prompt, noise=noise)}
        outputs |= {f"trace/latents{i}": latents for i, latents in enumerate(sampler.latents)}
        pairs = zip(synthesis.mels[::2], synthesis.mels[1::2], strict=True)
        return outputs | {f"trace/mel{i}": np.stack(pair)[:, None] for i, pair in enumerate(pairs)}


class _GivenSampler(Sampler):
    """Gives the results that it has, and keeps what it is asked for."""

    def __init__(self, codec: Pipeline, latents: Array) -> None:
        super().__init__(codec.model)
        self.codes: list[Codes] = []
        self.known: list[Float] = []
        self._latents = iter(latents)

    def prepare(self, steps: int, guidance: float) -> Sample:
        del guidance

        def run(condition: Float, known: Float, noise: Draw, on_step: OnStep) -> Float:
            del condition, noise, on_step
            self.known.append(known)
            latents: Float = next(self._latents)
            return latents

        return Sample(run, steps)

    def condition(self, codes: Codes, kept: int | None = None) -> Float:
        del kept
        self.codes.append(codes)
        return np.zeros(0, np.float32)


class _GivenSynthesis(Synthesis):
    def __init__(self, codec: Pipeline, waves: Array) -> None:
        super().__init__(codec.model, codec.config)
        self._waves = iter(waves)

    def render(self, latents: Float, samples: int) -> Float:
        del latents
        wave: Float = next(self._waves)[:, :samples]
        return wave


class _TracedSampler(Sampler):
    """Keeps the latents of every window."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.latents: list[Float] = []

    def prepare(self, steps: int, guidance: float) -> Sample:
        sample = super().prepare(steps, guidance)

        def run(condition: Float, known: Float, noise: Draw, on_step: OnStep) -> Float:
            self.latents.append(sample.run(condition, known, noise, on_step))
            return self.latents[-1]

        return Sample(run, sample.steps)


class _TracedSynthesis(Synthesis):
    """Keeps the mel spectrograms of every window, left and right."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.mels: list[Float] = []

    def mel(self, latents: Float) -> Float:
        self.mels.append(super().mel(latents))
        return self.mels[-1]


def _unbatched(audio: Any) -> Any:
    """Audio without the axis of a batch of one, which the official calls may have."""
    return audio[0] if isinstance(audio, np.ndarray) and audio.ndim == 3 else audio


def _settle(case: Case, codes: Array) -> Array:
    """The recorded codes, if ours differ where the choice was a tie only: all that follows presumes the same ones (CASES.md)."""
    recorded = case.info["outputs"]["codes"]
    agrees = any(verdict.ok for verdict in case.compare({"codes": codes}) if verdict.output == "codes")
    return case.stored[recorded["key"]].astype(np.int64) if agrees and recorded["select"] == "whole" else codes


def _check_duration(case: Case, name: str) -> None:
    """Raises InputError: other windows than the default ones, which officially do not fit (SPEC section 4.1)."""
    if (seconds := _option(case, name, _SECONDS)) != _SECONDS:
        raise InputError(f"got a case with {name} {seconds}, expected {_SECONDS}: windows have one length")


def _option(case: Case, name: str, default: Any) -> Any:
    """An option of the official call; null is its default."""
    value = case.info["options"].get(name)
    return default if value is None else value
