"""Runs the recorded cases of SemantiCodec: stages through sessions, whole calls through the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from musicrt.runtime.loops import ddim
from musicrt.runtime.loops.ddim import DdimSchedule, uniform_timesteps
from musicrt.runtime.loops.diffusion import alphas_cumprod, guide
from musicrt.runtime.models.semanticodec.config import LATENT_SHAPE, POSITION_CHANNELS, SAMPLE_RATE, Config
from musicrt.runtime.models.semanticodec.lengths import (
    FADE,
    WINDOW_HOP,
    WINDOW_SAMPLES,
    decoded_samples,
    padding_cut,
    segment_count,
    target_token_len,
    token_count,
    token_windows,
)
from musicrt.runtime.models.semanticodec.noise import InjectedNoise
from musicrt.runtime.models.semanticodec.pipeline import Pipeline
from musicrt.runtime.source import SampleReader, open_source
from musicrt.runtime.windows import Window, inclusive_ramp, join_windows
from tests.reference.case import Case
from tests.reference.fill import Layout
from tests.reference.signals import Array
from tests.reference.systems.base import CodecRunner, Outputs


class Runner(CodecRunner[Pipeline]):
    """See `CodecRunner`."""

    def __init__(self, checkpoint: Path, layout: Layout, backend: str, workspace: Path) -> None:
        super().__init__(Pipeline, "semanticodec", {**layout.get("config", {}), **_codebook_of(layout)}, checkpoint, backend, workspace)
        self.config = Config.from_mapping(self.values)
        self.alphas = alphas_cumprod(self.config.decoder.linear_start, self.config.decoder.linear_end, self.config.decoder.timesteps)

    @property
    def stages(self) -> Mapping[str, Callable[[Case], Outputs]]:
        return {
            "token-count": self.token_count,
            "load-audio": self.load_audio,
            "encode-segment": self.encode_segment,
            "encode": self.encode,
            "token-windows": self.token_windows,
            "token-feature": self.token_feature,
            "positional": self.positional,
            "timestep-embedding": self.timestep_embedding,
            "ddim-step-counts": self.step_counts,
            "ddim-schedule": self.schedule,
            "unet": self.unet,
            "ddim-step": self.ddim_step,
            "vae-decode": self.vae_decode,
            "vocoder": self.vocoder,
            "generate": self.generate,
            "overlap-add": self.overlap_add,
            "trim": self.trim,
            "decode": self.decode,
            "round-trip": self.round_trip,
        }

    def token_count(self, case: Case) -> Outputs:
        samples = case.inputs["samples"].tolist()
        counts = [[token_count(count, 100 // rate) for rate in case.info["options"]["token_rate"]] for count in samples]
        return {"token_count": np.array(counts), "segments": np.array([segment_count(count) for count in samples])}

    def load_audio(self, case: Case) -> Outputs:
        source = open_source(self._file(case), SAMPLE_RATE, kernel="sinc")
        mel = self.rules.segments.analyse(source, 1, segment_count(source.samples))
        stacks = [100 // rate for rate in case.info["options"]["token_rate"]]
        return {
            "mel": np.concatenate(list(mel), axis=1),
            "trace/resampled": SampleReader(source).read(0, source.samples)[:1],
            "target_token_len": np.array([target_token_len(source.samples, stack) for stack in stacks]),
            "token_count": np.array([token_count(source.samples, stack) for stack in stacks]),
        }

    def encode_segment(self, case: Case) -> Outputs:
        mel = case.inputs["mel"]
        representation = self.run_stage("audiomae", mel=mel)["representation"]
        semantic = self.run_stage("semantic", representation=representation)
        cuts = np.array([padding_cut(one) for one in mel], np.float32)
        mask = np.stack([self.codec.segments.mask(one) for one in mel])
        residual = self.run_stage("residual", representation=representation, centroids=semantic["centroids"], mask=mask)["residual"]
        return {
            "tokens": np.stack(self.codec.segments.encode(list(mel))),
            "trace/padding_cut": cuts,
            "trace/representation": representation,
            "trace/residual": residual,
        }

    def encode(self, case: Case) -> Outputs:
        return {"tokens": self.codec.encode(self._file(case))}

    def token_windows(self, case: Case) -> Outputs:
        queries = zip(case.inputs["token_rate"].tolist(), case.inputs["token_count"].tolist(), strict=True)
        rows = [
            [row, start, stop - start] for row, (rate, count) in enumerate(queries) for start, stop in token_windows(count, 100 // rate)
        ]
        return {"windows": np.array(rows)}

    def token_feature(self, case: Case) -> Outputs:
        semantic, acoustic = np.ascontiguousarray(np.moveaxis(case.inputs["tokens"], -1, 0))
        return self.run_stage("embedding", semantic=semantic, acoustic=acoustic)

    def positional(self, case: Case) -> Outputs:
        from musicrt.runtime.models.semanticodec.stages import position_code

        assert case.info["options"]["embedding_dim"] == POSITION_CHANNELS
        return {"pe": position_code(case.info["options"]["seq_length"]).numpy()[None]}

    def timestep_embedding(self, case: Case) -> Outputs:
        import torch

        from musicrt.runtime.models.semanticodec.network.unet import embed_timestep

        return {"t_emb": embed_timestep(torch.from_numpy(case.inputs["t"]), case.info["options"]["dim"]).numpy()}

    def step_counts(self, case: Case) -> Outputs:
        """-1 where the official code fails; ours clamps the timestep there."""
        total = len(self.alphas)
        asked = [uniform_timesteps(steps, total) for steps in case.inputs["ddim_num_steps"].tolist()]
        return {"steps": np.array([-1 if timesteps[-1] >= total else len(timesteps) for timesteps in asked])}

    def schedule(self, case: Case) -> Outputs:
        schedule = DdimSchedule.build(case.info["options"]["ddim_num_steps"], case.info["options"]["ddim_eta"], self.alphas)
        names = {"timesteps": "timesteps", "a_t": "a_t", "a_prev": "a_prev", "sigma": "sigma", "sqrt_one_minus_a_t": "sqrt_one_minus_a_t"}
        return {name: getattr(schedule, field) for name, field in names.items()}

    def unet(self, case: Case) -> Outputs:
        v = self._evaluate(case.inputs["feature"], case.inputs["x"], case.inputs["t"])
        alone = self._evaluate(case.inputs["feature"], case.inputs["x"], case.inputs["t"], rows=1)
        if not np.linalg.norm(alone[0] - v[0]) < 1e-5 * np.linalg.norm(v[0]):
            raise ArithmeticError("one row of guidance differs from the first of two")
        return {"cond": v[0], "uncond": v[1]}

    def ddim_step(self, case: Case) -> Outputs:
        options = case.info["options"]
        scale, index = options["unconditional_guidance_scale"], options["index"]
        schedule = DdimSchedule.build(options["ddim_num_steps"], options["ddim_eta"], self.alphas)
        x = case.inputs["x"]
        t = np.full(len(x), schedule.timesteps[index])
        v = guide(self._evaluate(case.inputs["feature"], x, t, rows=1 if scale == 1 else 2), scale)
        clean = ddim.step(schedule, index, x, v, case.noise[0])
        return {"x_prev": x, "pred_x0": clean}

    def _evaluate(self, feature: Array, x: Array, t: Array, rows: int = 2) -> Array:
        context = self.codec.sampler.contexts(feature, rows)
        return self.run_stage("denoiser", **context, x=x, shift=self.run_stage("timesteps", timestep=t)["shift"])["v"]

    def vae_decode(self, case: Case) -> Outputs:
        return {"mel": self.run_stage("vae", latent=case.inputs["latent"])["mel"][:, None]}

    def vocoder(self, case: Case) -> Outputs:
        return {"waveform": self.run_stage("vocoder", mel=case.inputs["mel"][:, 0])["waveform"][:, None]}

    def generate(self, case: Case) -> Outputs:
        options = case.info["options"]
        guidance, eta = options["unconditional_guidance_scale"], options["ddim_eta"]
        sample = self.codec.sampler.prepare("ddim", options["ddim_steps"], guidance, eta)
        latent = sample.run(case.inputs["feature"], case.noise.__getitem__, lambda: None)
        mel = self.run_stage("vae", latent=latent)["mel"]
        waveform = np.stack([self.codec.decoder.synthesise(one) for one in latent])[:, None]
        return {"trace/latent": latent, "trace/mel": mel[:, None], "waveform": waveform}

    def overlap_add(self, case: Case) -> Outputs:
        windows = case.inputs["windows"][:, 0, 0]
        assert case.info["options"]["overlap_duration"] == FADE / SAMPLE_RATE
        starts = [i * WINDOW_HOP for i in range(len(windows))]
        plan = [Window(start, start + WINDOW_SAMPLES, fade=FADE if start else 0) for start in starts]
        joined = join_windows(zip(plan, windows[:, None], strict=True), plan[-1].stop, ramp=inclusive_ramp)
        return {"waveform": np.concatenate(list(joined), axis=-1)[None]}

    def trim(self, case: Case) -> Outputs:
        counts, rates = case.inputs["token_count"].tolist(), case.info["options"]["token_rate"]
        return {"samples": np.array([[decoded_samples(count, 100 // rate) for rate in rates] for count in counts])}

    def decode(self, case: Case) -> Outputs:
        return {"waveform": self._decode(case.inputs["tokens"], case)}

    def round_trip(self, case: Case) -> Outputs:
        tokens = self.codec.encode(self._file(case))
        return {"tokens": tokens, "waveform": self._decode(tokens, case)}

    def _decode(self, tokens: Array, case: Case) -> Array:
        options = case.info["options"]
        noise = InjectedNoise([one.reshape(1, *LATENT_SHAPE) for one in case.noise])
        return self.codec.decode(tokens, steps=options["ddim_sample_step"], guidance=options["cfg_scale"], noise=noise)

    def _file(self, case: Case) -> Path:
        """The input as a file, as the official call got it."""
        import soundfile

        path = self.workspace / f"{case.path.stem}.wav"
        soundfile.write(path, case.inputs["audio"].T, case.info["options"]["sample_rate"], subtype=case.info["options"]["subtype"])
        return path


def _codebook_of(layout: Layout) -> dict[str, Any]:
    """What the layout's file of the semantic codebook says: its vocabulary, by the name, and its rows (SPEC section 1)."""
    for name, file in layout.get("files", {}).items():
        if name.endswith(".npy"):
            ((rows, _), _dtype) = next(iter(file["tensors"].values()))
            return {"semantic_vocab_size": 2 * int(Path(name).stem.split("_")[1]), "semantic_codebook_rows": rows}
    return {}
