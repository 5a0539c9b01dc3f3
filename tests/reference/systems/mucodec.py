"""Runs the recorded cases of MuCodec's single stages; those of whole calls are in `mucodec_chains`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from musicrt.runtime.models.mucodec.mel import MuqMel, PromptMel
from musicrt.runtime.models.mucodec.pipeline import Pipeline
from musicrt.runtime.sinc import resample_sinc
from tests.reference.case import Case
from tests.reference.fill import Layout
from tests.reference.signals import Array
from tests.reference.systems.base import Outputs
from tests.reference.systems.mucodec_chains import ChainRunner


class Runner(ChainRunner):
    """See `CodecRunner`."""

    def __init__(self, checkpoint: Path, layout: Layout, backend: str, workspace: Path) -> None:
        super().__init__(Pipeline, "mucodec", layout.get("config", {}), checkpoint, backend, workspace)

    @property
    def stages(self) -> Mapping[str, Callable[[Case], Outputs]]:
        own: dict[str, Callable[[Case], Outputs]] = {
            "resample-file": self.resample_file,
            "muq-mel": self.muq_mel,
            "muq-hidden": self.muq_hidden,
            "quantize": self.quantize,
            "prompt-mel": self.prompt_mel,
            "vae-encode": self.vae_encode,
            "dequantize": self.dequantize,
            "condition": self.condition,
            "normfeat": self.normfeat,
            "normfeat-update": self.normfeat_update,
            "estimator": self.estimator,
            "vae-decode": self.vae_decode,
            "vocoder": self.vocoder,
        }
        return {**own, **self.chains}

    def resample_file(self, case: Case) -> Outputs:
        audio, options = case.inputs["audio"], case.info["options"]
        blocks = resample_sinc([audio], len(audio), options["orig_freq"], options["new_freq"])
        return {"resampled": np.concatenate(list(blocks), axis=1)}

    def muq_mel(self, case: Case) -> Outputs:
        statistics = self.rules.config.muq_stat
        mel = self._muq_mel().analyse(case.inputs["audio"])
        return {"mel": mel, "trace/mel_db": mel * statistics.melspec_2048_std + statistics.melspec_2048_mean}

    def muq_hidden(self, case: Case) -> Outputs:
        self.check_layer(case)
        return self.run_stage("muq", mel=self._muq_mel().analyse(case.inputs["audio"]))

    def quantize(self, case: Case) -> Outputs:
        codes = self.run_stage("quantizer", hidden=case.inputs["features"].transpose(0, 2, 1))["codes"]
        return {"codes": codes, **self.run_stage("dequantizer", codes=codes)}

    def prompt_mel(self, case: Case) -> Outputs:
        return {"mel": PromptMel().analyse(case.inputs["audio"])}

    def vae_encode(self, case: Case) -> Outputs:
        """Ours scales before it samples."""
        scaled = self.run_stage("vae-encoder", mel=case.inputs["mel"][:, 0])
        mean, deviation, scale = scaled["mean"], scaled["deviation"], self._scale()
        return {"mean": mean / scale, "logvar": 2.0 * np.log(deviation / scale), "latents": mean + deviation * case.noise[0]}

    def dequantize(self, case: Case) -> Outputs:
        return self.run_stage("dequantizer", codes=case.inputs["codes"])

    def condition(self, case: Case) -> Outputs:
        quantised = self.run_stage("dequantizer", codes=case.inputs["codes"])["quantised"]
        known = np.ones((len(quantised), quantised.shape[2] // 2), np.float32)
        return {"trace/quantised": quantised, **self.run_stage("condition", quantised=quantised, known=known)}

    def normfeat(self, case: Case) -> Outputs:
        return self.run_stage("normfeat", latents=case.inputs["latents"])

    def normfeat_update(self, case: Case) -> Outputs:
        """Ours keeps its statistics; so the official updates are made here, and the module is made anew with what they give."""
        import torch

        from musicrt.runtime.models.mucodec.network.quantizer import NormFeat
        from musicrt.runtime.models.mucodec.stages import Normalisation

        names = ("counts", "sum_x", "sum_x2")
        state = {name: case.inputs[name].copy() for name in names}
        outputs: Outputs = {}
        for which in ("first", "second"):
            latents = case.inputs[which]
            state["counts"] += len(latents)
            for name, power in (("sum_x", 1), ("sum_x2", 2)):
                state[name] += (latents**power).mean(axis=2).sum(axis=0)
            outputs.setdefault("trace/sum_x2_after_first", state["sum_x2"].copy())
            network = NormFeat()
            network.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
            module = Normalisation(network)
            with torch.inference_mode():
                projected = module(torch.from_numpy(latents))[0]
                outputs |= {f"projected_{which}": projected.numpy(), f"returned_{which}": module(projected)[1].numpy()}
        return {**outputs, **state}

    def estimator(self, case: Case) -> Outputs:
        x, incontext, condition = (np.ascontiguousarray(part) for part in np.split(case.inputs["sample"], 3, axis=1))
        context = self.run_stage("context", incontext=incontext, condition=condition)["context"]
        times = self.run_stage("timesteps", timestep=case.inputs["timestep"])
        velocity = self.run_stage("estimator", context=context[None], x=x, **times)["velocity"][0]
        if len(x) == 2 and all(np.array_equal(*pair) for pair in (x, case.inputs["timestep"])):
            one = {name: value[:1] for name, value in times.items()}
            rows = self.run_stage("estimator", context=context[:, None], x=x[:1], **one)["velocity"][:, 0]
            if not np.linalg.norm(rows - velocity) < 1e-5 * np.linalg.norm(velocity):
                raise ArithmeticError("two rows of guidance differ from a batch of two")
        return {"velocity": velocity, "trace/time_embedding": times["embedding"], "trace/modulation": times["modulation"]}

    def vae_decode(self, case: Case) -> Outputs:
        return {"mel": self.run_stage("vae", latents=case.inputs["latents"])["mel"][:, None]}

    def vocoder(self, case: Case) -> Outputs:
        mel = np.ascontiguousarray(case.inputs["mel"].transpose(0, 2, 1))
        return {"waveform": self.run_stage("vocoder", mel=mel)["waveform"][:, None]}

    def _muq_mel(self) -> MuqMel:
        statistics = self.rules.config.muq_stat
        return MuqMel(statistics.melspec_2048_mean, statistics.melspec_2048_std)

    def _scale(self) -> Array:
        """As it is in the checkpoint: a single float32."""
        from musicrt.runtime.checkpoint import read_checkpoint
        from musicrt.runtime.models.mucodec.spec import CHECKPOINT

        first = read_checkpoint(CHECKPOINT, self.checkpoint)[CHECKPOINT.files[0]]
        return np.asarray(first.get("state_dict", first)["scale_factor"])
