"""Runs the recorded cases of Music2Latent: stages through sessions, whole calls through the pipeline and the drop-in class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from musicrt.runtime.errors import InputError
from musicrt.runtime.loops.consistency import precondition
from musicrt.runtime.models.music2latent.config import Config
from musicrt.runtime.models.music2latent.facade import EncoderDecoder
from musicrt.runtime.models.music2latent.noise import InjectedNoise
from musicrt.runtime.models.music2latent.pipeline import Pipeline
from musicrt.runtime.models.music2latent.spectrum import Spectrum
from tests.reference.case import Case
from tests.reference.fill import Layout
from tests.reference.signals import Array
from tests.reference.systems.base import CodecRunner, Outputs


class Runner(CodecRunner[Pipeline]):
    """See `CodecRunner`."""

    def __init__(self, checkpoint: Path, layout: Layout, backend: str, workspace: Path) -> None:
        super().__init__(Pipeline, "music2latent", layout["config"], checkpoint, backend, workspace)
        self.config = Config.from_mapping(self.values)
        self.spectrum = Spectrum(self.config)

    @property
    def stages(self) -> Mapping[str, Callable[[Case], Outputs]]:
        return {
            "frontend": self.frontend,
            "encoder": self.encoder,
            "pyramid": self.pyramid,
            "schedule": self.schedule,
            "conditioning": self.conditioning,
            "unet": self.unet,
            "sampler": self.sampler,
            "synthesis": self.synthesis,
            "frontend-synthesis": self.frontend_synthesis,
            "encode": self.encode,
            "encode-features": self.encode,
            "decode": self.decode,
            "decode-seeded": self.decode_seeded,
            "roundtrip": self.roundtrip,
            "lengths": self.lengths,
        }

    def frontend(self, case: Case) -> Outputs:
        audio = case.inputs["audio"]
        spectrum = self.spectrum.analyse(audio)
        _check_graph(self.run_stage("frontend", waveform=_whole_hops(audio, self.config.hop))["representation"], spectrum)
        return {"representation": spectrum}

    def encoder(self, case: Case) -> Outputs:
        outputs = self.run_stage("encoder", representation=case.inputs["representation"])
        return {"latents_raw": outputs["latents"], "features": outputs["features"]}

    def pyramid(self, case: Case) -> Outputs:
        return self.run_stage("pyramid", latents=case.inputs["latents_raw"])

    def schedule(self, case: Case) -> Outputs:
        return {"sigmas": np.array(self.rules.sampler.schedule(case.info["options"]["diffusion_steps"]).sigmas)}

    def conditioning(self, case: Case) -> Outputs:
        sigma = case.inputs["sigma"]
        factors = np.array([self._precondition(value) for value in sigma], np.float32).T
        outputs = self.run_stage("conditioning", sigma=sigma)
        return {**outputs, "c_skip": factors[0], "c_out": factors[1], "c_in": factors[2]}

    def unet(self, case: Case) -> Outputs:
        """Once by way of pyramid and denoiser, once in the one-step graph; the worse of the two would fail."""
        latents, x, sigma = (case.inputs[name] for name in ("latents_raw", "x", "sigma"))
        c_skip, c_out, c_in = np.array([self._precondition(value) for value in sigma], np.float32).T[..., None, None, None]
        tables = self.run_stage("conditioning", sigma=sigma)
        feeds = {"x": c_in * x, **{name: tables[name] for name in ("scale_inp", "scale_out", "shift")}}
        maps = {name: value for name, value in self.run_stage("pyramid", latents=latents).items() if name.startswith("contribution")}
        output = self.run_stage("denoiser", **feeds, **maps)["output"]
        _check_graph(self.run_stage("decoder", latents=latents, **feeds)["output"], output)
        return {"output": c_skip * x + c_out * output}

    def sampler(self, case: Case) -> Outputs:
        noise = iter(case.noise)
        sample = self.codec.sampler.prepare(case.info["options"]["diffusion_steps"])
        return {"representation": sample.run(case.inputs["latents_raw"], lambda _: next(noise), lambda: None)}

    def synthesis(self, case: Case) -> Outputs:
        representation = case.inputs["representation"]
        waveform = self.spectrum.synthesise(representation)
        _check_graph(self.run_stage("synthesis", representation=representation)["waveform"], waveform)
        return {"waveform": waveform}

    def frontend_synthesis(self, case: Case) -> Outputs:
        return {"waveform": self.spectrum.synthesise(self.spectrum.analyse(case.inputs["audio"]))}

    def encode(self, case: Case) -> Outputs:
        encoded = EncoderDecoder(device="cpu", codec=self.codec).encode(self._official_input(case), **case.info["options"])
        return {"features" if case.info["options"]["extract_features"] else "latents": encoded.numpy()}

    def decode(self, case: Case) -> Outputs:
        return {"waveform": self._decode(case.inputs["latents"], case.noise, case.info["options"])}

    def decode_seeded(self, case: Case) -> Outputs:
        inputs = case.inputs
        draws = [inputs[f"draw{i}"] for i in range(sum(name.startswith("draw") for name in inputs))]
        options = {name: value for name, value in case.info["options"].items() if name != "seed"}
        return {"waveform": self._decode(inputs["latents"], draws, options)}

    def roundtrip(self, case: Case) -> Outputs:
        options = case.info["options"]
        latents = EncoderDecoder(device="cpu", codec=self.codec).encode(self._official_input(case), **options["encode"]).numpy()
        return {"latents": latents, "waveform": self._decode(latents, case.noise, options["decode"])}

    def lengths(self, case: Case) -> Outputs:
        """Latents and decoded samples of each length, from the pipeline's own rules; error 1 where it refuses."""
        rows = []
        for samples in case.inputs["samples"].tolist():
            try:
                latents = self.rules.latent_length(samples, "crop")
            except InputError:
                rows.append([samples, 0, 0, 0, 1])
            else:
                rows.append([samples, latents, latents * self.config.frames_per_latent, self.rules.decoded_length(latents), 0])
        return {"table": np.array(rows, np.int64)}

    def _decode(self, latents: Array, noise: list[Array], options: dict[str, Any]) -> Array:
        renamed = {("steps" if name == "denoising_steps" else name): value for name, value in options.items()}
        return self.codec.decode(latents, noise=InjectedNoise(noise), **renamed)

    def _official_input(self, case: Case) -> Any:
        """The input as the official call got it: array, tensor or file."""
        import soundfile
        import torch

        audio, source = case.inputs["audio"], case.info.get("source", {}).get("audio", {})
        if source.get("as") == "tensor":
            return torch.from_numpy(audio)
        if source.get("as") == "file":
            path = self.workspace / f"{case.path.stem}.{source['format'].lower()}"
            soundfile.write(path, audio.T, source["sample_rate"], subtype=source["subtype"])
            return str(path)
        return audio

    def _precondition(self, sigma: float) -> tuple[float, float, float]:
        return precondition(float(sigma), self.config.sigma_min, self.config.sigma_data)


def _whole_hops(audio: Array, hop: int) -> Array:
    return np.ascontiguousarray(audio[:, : audio.shape[1] // hop * hop])


def _check_graph(graph: Array, expected: Array) -> None:
    """The other form of a stage (a graph for the host's FFT, one graph for two) must agree with the one that is compared."""
    error = float(np.linalg.norm(graph - expected) / max(float(np.linalg.norm(expected)), 1e-30))
    if not error < 2e-5:
        raise ArithmeticError(f"the two forms of the stage differ by {error:.1e} (relative L2)")
