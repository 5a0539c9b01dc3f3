"""Runs the recorded cases of Music2Latent: stages through sessions, whole calls through the pipeline and the drop-in class."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from musicrt.export.bundle import export_bundle
from musicrt.runtime.errors import BackendError, InputError
from musicrt.runtime.loops.consistency import precondition
from musicrt.runtime.model import Model
from musicrt.runtime.models.music2latent.config import Config
from musicrt.runtime.models.music2latent.facade import EncoderDecoder
from musicrt.runtime.models.music2latent.noise import InjectedNoise
from musicrt.runtime.models.music2latent.pipeline import Pipeline
from musicrt.runtime.models.music2latent.spectrum import Spectrum
from musicrt.runtime.registry import build_spec
from musicrt.runtime.select import Choice
from musicrt.runtime.session import Session
from tests.reference.case import Case
from tests.reference.fill import Layout
from tests.reference.runner import UnknownStageError
from tests.reference.signals import Array

Outputs = dict[str, Array]


class Runner:
    """See `tests.reference.runner.SystemRunner`. torch-cpu loads the checkpoint itself; other backends run its bundle."""

    def __init__(self, checkpoint: Path, layout: Layout, backend: str, workspace: Path) -> None:
        self.checkpoint, self.backend, self.workspace = checkpoint, backend, workspace
        self.values: dict[str, Any] = layout["config"]
        self.config = Config.from_mapping(self.values)
        self.spectrum = Spectrum(self.config)
        self.stages: dict[str, Callable[[Case], Outputs]] = {
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

    @cached_property
    def codec(self) -> Pipeline:
        """The model under test; made when the first case needs weights."""
        if self.backend == "torch-cpu":
            return Pipeline(Model.open_checkpoint("music2latent", self.checkpoint, self.values))
        config = self.workspace / "config.json"
        config.write_text(json.dumps(self.values))
        bundle = export_bundle("music2latent", self.checkpoint, self.workspace / "bundle", config=config)
        return Pipeline(Model.open(bundle.path, backend=self.backend))

    @cached_property
    def rules(self) -> Pipeline:
        """A pipeline for what needs no weights: lengths and schedules."""

        def refuse(stage: str) -> Session:
            raise BackendError(f"stage {stage} was asked for where no weights are needed")

        return Pipeline(Model(build_spec("music2latent", self.values, "case"), refuse, Choice("none", "no weights")))

    def run(self, case: Case) -> Outputs:
        if case.stage not in self.stages:
            raise UnknownStageError(case.stage)
        return self.stages[case.stage](case)

    def close(self) -> None:
        if "codec" in self.__dict__:
            self.codec.close()

    def _stage(self, name: str, **feeds: Array) -> Outputs:
        return self.codec.model.session(name).run(feeds)

    def frontend(self, case: Case) -> Outputs:
        audio = case.inputs["audio"]
        spectrum = self.spectrum.analyse(audio)
        _check_graph(self._stage("frontend", waveform=_whole_hops(audio, self.config.hop))["representation"], spectrum)
        return {"representation": spectrum}

    def encoder(self, case: Case) -> Outputs:
        outputs = self._stage("encoder", representation=case.inputs["representation"])
        return {"latents_raw": outputs["latents"], "features": outputs["features"]}

    def pyramid(self, case: Case) -> Outputs:
        return self._stage("pyramid", latents=case.inputs["latents_raw"])

    def schedule(self, case: Case) -> Outputs:
        return {"sigmas": np.array(self.rules.sampler.schedule(case.info["options"]["diffusion_steps"]).sigmas)}

    def conditioning(self, case: Case) -> Outputs:
        sigma = case.inputs["sigma"]
        factors = np.array([self._precondition(value) for value in sigma], np.float32).T
        outputs = self._stage("conditioning", sigma=sigma)
        return {**outputs, "c_skip": factors[0], "c_out": factors[1], "c_in": factors[2]}

    def unet(self, case: Case) -> Outputs:
        """Once by way of pyramid and denoiser, once in the one-step graph; the worse of the two would fail."""
        latents, x, sigma = (case.inputs[name] for name in ("latents_raw", "x", "sigma"))
        c_skip, c_out, c_in = np.array([self._precondition(value) for value in sigma], np.float32).T[..., None, None, None]
        tables = self._stage("conditioning", sigma=sigma)
        feeds = {"x": c_in * x, **{name: tables[name] for name in ("scale_inp", "scale_out", "shift")}}
        maps = {name: value for name, value in self._stage("pyramid", latents=latents).items() if name.startswith("contribution")}
        output = self._stage("denoiser", **feeds, **maps)["output"]
        _check_graph(self._stage("decoder", latents=latents, **feeds)["output"], output)
        return {"output": c_skip * x + c_out * output}

    def sampler(self, case: Case) -> Outputs:
        noise = iter(case.noise)
        run = self.codec.sampler.prepare(case.info["options"]["diffusion_steps"])
        return {"representation": run(case.inputs["latents_raw"], lambda _: next(noise), lambda: None)}

    def synthesis(self, case: Case) -> Outputs:
        representation = case.inputs["representation"]
        waveform = self.spectrum.synthesise(representation)
        _check_graph(self._stage("synthesis", representation=representation)["waveform"], waveform)
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
