"""The ways of running the model that the latency suite compares. Importing this needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders import Opened
from benchmarks.music2latent.workload import Float, Outputs, Workload, crop_audio, official_schedule
from benchmarks.plain import PlainGraphs
from musicrt.runtime.loops.consistency import combine, scale_input
from musicrt.runtime.models.music2latent.config import Config
from musicrt.runtime.models.music2latent.noise import Place, SeededNoise
from musicrt.runtime.models.music2latent.spectrum import Spectrum

_SEED = 7


class OnBackend(Opened):
    """A bundle on one backend, as a user runs it."""

    def encode(self, audio: Float) -> Float:
        """Audio float32 [1, n] -> latents [1, 64, L]."""
        latents: Float = self.codec.encode(audio)
        return latents

    def decode(self, latents: Float, steps: int, noise: Sequence[Float] | None = None) -> Float:
        """Latents [1, 64, L] -> audio [1, n]; without `noise` the codec's own, from a seed."""
        audio: Float = self.codec.decode(latents, steps=steps, seed=_SEED if noise is None else None, noise=noise)
        return audio

    def stages(self, work: Workload) -> dict[str, Callable[[], Outputs]]:
        """See `Contender`. Steps and evaluations run on bound buffers, as in the sampler."""
        model, spectrum, audio = self.codec.model, self.codec.spectrum, crop_audio(work.config, work.audio)
        noisy, raw = work.noisy(), work.raw_latents
        sigma = np.array([work.config.sigma_max], np.float32)
        tables = model.session("conditioning").run({"sigma": sigma}, ("scale_inp", "scale_out", "shift"))
        names = [tensor.name for tensor in model.session("pyramid").outputs if tensor.name.startswith("contribution")]
        contributions = model.session("pyramid").run({"latents": raw}, names)
        c_skip, c_out, c_in = official_schedule(work.config, 1).coefficients(0)

        def evaluation(stage: str, constant: Mapping[str, Float]) -> Callable[[], Outputs]:
            x, clean = np.zeros_like(noisy), np.zeros_like(noisy)
            run = model.session(stage).bind({**constant, **tables, "x": x}, {"output": clean})

            def call() -> Outputs:
                scale_input(noisy, c_in, x)
                run()
                return {"clean": combine(noisy, clean, c_skip, c_out)}

            return call

        def draw() -> Outputs:
            return {"noise": SeededNoise(_SEED).at([Place(0, 0)], noisy.shape[1:])(0)}

        return {
            "front-end": lambda: {"spectrum": spectrum.analyse(audio)},
            "encoder": lambda: model.session("encoder").run({"representation": work.spectrum}, ("latents",)),
            "noise": draw,
            "conditioning": lambda: model.session("conditioning").run({"sigma": sigma}, tuple(tables)),
            "pyramid": lambda: model.session("pyramid").run({"latents": raw}),
            "step": evaluation("denoiser", contributions),
            "evaluation": evaluation("decoder", {"latents": raw}),
            "synthesis": lambda: {"audio": spectrum.synthesise(work.spectrum)},
        }


class PlainOnnx:
    """What one line of `torch.onnx.export` for each part gives, in ONNX Runtime with its default options.

    The sampling loop is the official one with the pyramid computed once.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], threads: int | None) -> None:
        self.graphs = PlainGraphs(folder, threads)
        self.config = Config.from_mapping(config)
        self.spectrum = Spectrum(self.config)

    def encode(self, audio: Float) -> Float:
        """Audio float32 [1, n] -> latents [1, 64, L]."""
        return self._encode(self.spectrum.analyse(crop_audio(self.config, audio))) / np.float32(self.config.sigma_rescale)

    def decode(self, latents: Float, steps: int, noise: Sequence[Float] | None = None) -> Float:
        """Latents [1, 64, L] -> audio [1, n]; without `noise` numpy's generator."""
        config, schedule = self.config, official_schedule(self.config, steps)
        shape = (1, 2, config.bins, latents.shape[-1] * config.frames_per_latent)
        generator = np.random.default_rng()
        draws = (generator.standard_normal(shape, np.float32) for _ in range(steps)) if noise is None else iter(noise)
        maps = self._pyramid(latents * np.float32(config.sigma_rescale))
        x = next(draws) * np.float32(schedule.sigmas[0])
        clean = x
        for step in range(steps):
            if step:
                x = clean + np.float32(schedule.noise_scale(step - 1)) * next(draws)
            clean = self._step(maps, x, schedule.sigmas[step])
        return self.spectrum.synthesise(clean)

    def stages(self, work: Workload) -> dict[str, Callable[[], Outputs]]:
        """See `Contender`. The conditioning is a part of the step."""
        noisy, raw, audio = work.noisy(), work.raw_latents, crop_audio(work.config, work.audio)
        maps, generator = self._pyramid(raw), np.random.default_rng()
        return {
            "front-end": lambda: {"spectrum": self.spectrum.analyse(audio)},
            "encoder": lambda: {"latents": self._encode(work.spectrum)},
            "noise": lambda: {"noise": generator.standard_normal(noisy.shape, np.float32)},
            "pyramid": lambda: self._pyramid(raw),
            "step": lambda: {"clean": self._step(maps, noisy, work.config.sigma_max)},
            "evaluation": lambda: {"clean": self._step(self._pyramid(raw), noisy, work.config.sigma_max)},
            "synthesis": lambda: {"audio": self.spectrum.synthesise(work.spectrum)},
        }

    def _encode(self, spectrum: Float) -> Float:
        return self.graphs.run("encoder", {"spectrum": spectrum}, ["latents"])["latents"]

    def _pyramid(self, raw: Float) -> dict[str, Float]:
        return self.graphs.run("pyramid", {"latents": raw})

    def _step(self, maps: Mapping[str, Float], x: Float, sigma: float) -> Float:
        return self.graphs.run("step", {**maps, "x": x, "sigma": np.array([sigma], np.float32)})["clean"]
