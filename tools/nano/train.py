"""Train the nano codec: `python -m tools.nano.train DATA STATE --steps N` (needs torch; goes on from STATE if it is there).

One-step reconstruction: what the network makes of noise at the highest sigma and of the latents is held against the truth.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from musicrt.runtime.files import new_file
from musicrt.runtime.models.music2latent.config import Config
from musicrt.runtime.models.music2latent.network.blocks import ResBlock
from musicrt.runtime.models.music2latent.network.unet import UNet
from tools.nano.crops import Crops, held_out_crops
from tools.nano.losses import Front, spectral_loss, waveform_loss
from tools.nano.muon import Muon

CONFIG: dict[str, Any] = {
    "base_channels": 8,
    "multipliers_list": [1, 2, 4],
    "layers_list": [1, 1, 1],
    "attention_list": [0, 0, 1],
    "layers_list_encoder": [1, 1, 1],
    "attention_list_encoder": [0, 0, 0],
    "freq_downsample_list": [0, 0],
    "bottleneck_base_channels": 128,
    "num_bottleneck_layers": 2,
    "bottleneck_channels": 64,
    "cond_channels": 32,
}
"""Hyper-parameters that differ from the released network's; its front-end stays as it is.

Three levels that leave 256 frequencies: the dense layers around the latents see where a partial lies, which little training is enough for.
"""
FRAMES, WARM, DECAY, RATE = 64, 30, 0.998, 0.015
REPORT, SAVE, LOOK = 25, 50, 100


class Trainer:
    """The network, its moving average and the optimiser, with everything that is needed to go on later."""

    def __init__(self, seed: int, worker: int = 0, workers: int = 1) -> None:
        torch.manual_seed(seed)
        self.worker, self.workers = worker, workers
        self.config = Config.from_mapping(CONFIG)
        self.seed, self.step, self.seconds = seed, 0, 0.0
        self.network = start(UNet(self.config)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = {name: value.clone() for name, value in self.network.state_dict().items()}
        # Not the latents' own projection: large steps drive their tanh to its ends.
        parameters = [weight for weight in self.network.parameters() if weight is not self.network.encoder.conv_out.weight]
        wide = [weight for weight in parameters if weight.dim() > 1 and min(weight.flatten(1).shape) >= 4]
        others = [weight for weight in self.network.parameters() if all(weight is not other for other in wide)]
        self.optimisers = (Muon(wide, RATE), torch.optim.AdamW(others, RATE / 10, betas=(0.9, 0.98), weight_decay=0.0))
        self.front = Front(self.config)
        self.curve: list[dict[str, float]] = []

    def learn(self, audio: Tensor, rate: float) -> dict[str, float]:
        """One step on audio [B, (T + 3) * hop]; its losses."""
        rng = torch.Generator().manual_seed(self.seed * 1_000_003 + self.step + 1_000_000_007 * self.worker)
        losses = self.measure(audio, rng)
        self.network.zero_grad()
        losses["total"].backward()  # type: ignore[no-untyped-call]
        if self.workers > 1:
            share_gradients(self.network, self.workers)
        for optimiser, share in zip(self.optimisers, (1.0, 0.1), strict=True):
            optimiser.param_groups[0]["lr"] = share * rate
            optimiser.step()
        self.step += 1
        keep = min(DECAY, (1 + self.step) / (10 + self.step))
        for name, value in self.network.state_dict().items():
            self.average[name].lerp_(value, 1.0 - keep)
        return {name: float(value.detach()) for name, value in losses.items()}

    def measure(self, audio: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        truth = self.front.analyse(audio)
        guess = self.reconstruct(truth, rng)
        phase, size = spectral_loss(guess, truth)
        inner = slice(3 * self.config.hop, -3 * self.config.hop)  # without the edges, which fade
        wave = waveform_loss(self.front.synthesise(guess)[:, inner], audio[:, inner])
        return {"total": 0.3 * phase + 2.0 * size + wave, "complex": phase, "magnitude": size, "waveform": wave}

    def reconstruct(self, truth: Tensor, rng: torch.Generator) -> Tensor:
        """Encode, and decode in one step from noise."""
        noise = self.config.sigma_max * torch.randn(truth.shape, generator=rng)
        latents, _ = self.network.encoder(truth.contiguous(memory_format=torch.channels_last))
        guess: Tensor = self.network(latents, noise, torch.full((len(truth),), self.config.sigma_max))
        return guess

    def look(self, audio: Tensor) -> dict[str, float]:
        """The losses of the averaged weights on held-out audio."""
        kept = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.network.load_state_dict(self.average)
        with torch.no_grad():
            losses = self.measure(audio, torch.Generator().manual_seed(0))
        self.network.load_state_dict(kept)
        return {f"held-out {name}": float(value) for name, value in losses.items()}

    def save(self, path: Path) -> None:
        weights = {"network": self.network.state_dict(), "average": self.average}
        numbers = {"step": self.step, "seconds": self.seconds, "seed": self.seed, "config": CONFIG, "curve": self.curve}
        with new_file(path) as part:
            torch.save({**weights, "optimisers": [one.state_dict() for one in self.optimisers], **numbers}, part)
        with new_file(path.with_suffix(".json")) as part:
            part.write_text(json.dumps(numbers, indent=0) + "\n")

    def restore(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        if state["config"] != CONFIG:
            raise SystemExit(f"{path} was trained with other hyper-parameters; name another file, or put the old ones back")
        self.network.load_state_dict(state["network"])
        for optimiser, kept in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
        self.average, self.step, self.seconds = state["average"], state["step"], state["seconds"]
        self.seed, self.curve = state["seed"], state["curve"]


def share_gradients(network: UNet, workers: int) -> None:
    """Give every worker the mean of all gradients."""
    gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    for gradient, mean in zip(gradients, torch.split(flat, [gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient) / workers)


def start(network: UNet) -> UNet:
    """Start every residual block as nothing but its residual, and the output small."""
    for module in network.modules():
        if isinstance(module, ResBlock):
            torch.nn.init.zeros_(module.conv2.weight)
    with torch.no_grad():
        network.conv_out.weight *= 0.3
    return network


def learning_rate(step: int, steps: int, cool: int, peak: float) -> float:
    """Up over the first steps, level, and down over the last `cool`."""
    return peak * min(1.0, (step + 1) / WARM, max(steps - step, 1) / max(cool, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="what tools.nano.dataset wrote")
    parser.add_argument("state", type=Path, help="a .pt file; the loss curve lies beside it")
    parser.add_argument("--steps", type=int, required=True, help="where to stop, counted from the very beginning")
    parser.add_argument("--cool", type=int, default=0, help="the last steps, over which the learning rate goes down")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rate", type=float, default=RATE, help="Muon's; Adam, for vectors, has a tenth of it")
    parser.add_argument("--seed", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1, help="more are slower where other work runs")
    parser.add_argument("--workers", type=int, default=1, help="processes that share each step; --batch is that of one")
    parser.add_argument("--one-batch", action="store_true", help="always the same crops: shows whether the objective works at all")
    given = parser.parse_args()
    if given.workers > 1:
        with tempfile.TemporaryDirectory() as folder:
            spawn(work, (given, f"file://{folder}/meeting"), given.workers)  # type: ignore[no-untyped-call]
    else:
        work(0, given)


def work(worker: int, given: argparse.Namespace, meeting: str = "") -> None:
    """One of the processes; the first reports and saves."""
    torch.set_num_threads(given.threads)
    if meeting:
        torch.distributed.init_process_group("gloo", init_method=meeting, rank=worker, world_size=given.workers)
    trainer = Trainer(given.seed, worker, given.workers)
    if given.state.exists():
        trainer.restore(given.state)
    samples = (FRAMES + 3) * trainer.config.hop
    crops = Crops(sorted(given.data.glob("training*")), trainer.seed, samples, worker)
    held_out = held_out_crops(given.data / "held-out", samples)
    while trainer.step < given.steps:
        before = time.perf_counter()
        audio = crops.draw(0 if given.one_batch else trainer.step, given.batch)
        losses = trainer.learn(audio, learning_rate(trainer.step, given.steps, given.cool, given.rate))
        trainer.seconds += time.perf_counter() - before
        if worker:
            continue
        if trainer.step % LOOK == 0:
            losses |= trainer.look(held_out)
        if trainer.step % REPORT == 0:
            batch = given.batch * given.workers
            trainer.curve.append({"step": trainer.step, "batch": batch, **{name: round(value, 4) for name, value in losses.items()}})
            print(f"{trainer.seconds:.0f} s", trainer.curve[-1], flush=True)
        if trainer.step % SAVE == 0 or trainer.step == given.steps:
            trainer.save(given.state)


if __name__ == "__main__":
    main()
