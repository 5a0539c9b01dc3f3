"""Keep what was trained as a checkpoint in the official layout, in half precision: `python -m tools.nano.keep STATE DATA` (needs torch).

Writes `tools/nano/checkpoint/`: the averaged weights, hyper-parameters, and the loss curve.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from musicrt.runtime.files import new_file
from musicrt.runtime.models.music2latent.config import Config
from musicrt.runtime.models.music2latent.network.unet import UNet
from tools.nano.crops import held_out_crops
from tools.nano.losses import Front
from tools.nano.train import FRAMES

CHECKPOINT = Path(__file__).parent / "checkpoint"


def keep(state: dict[str, Any], audio: Tensor, folder: Path) -> None:
    """state: what the trainer saved; audio [n, samples]: to bring the latents to a deviation of about one."""
    halves = {name: value.half().contiguous() for name, value in state["average"].items()}
    if not all(value.isfinite().all() for value in halves.values()):
        raise SystemExit("some weights are beyond half precision; train with more weight decay")
    config = Config.from_mapping(state["config"])
    network = UNet(config)
    network.load_state_dict({name: value.float() for name, value in halves.items()})
    with torch.no_grad():
        latents, _ = network.encoder(Front(config).analyse(audio))
    settings = {**state["config"], "sigma_rescale": round(float(latents.std()), 4)}
    folder.mkdir(parents=True, exist_ok=True)
    with new_file(folder / "music2latent.safetensors") as part:
        save_file(halves, part)
    (folder / "config.json").write_text(json.dumps(settings, indent=1) + "\n")
    curve = {"steps": state["step"], "seconds": round(state["seconds"]), "seed": state["seed"], "curve": state["curve"]}
    text = json.dumps(curve).replace('{"step"', '\n{"step"')
    (folder / "training.json").write_text(text + "\n")
    count = sum(value.numel() for value in halves.values())
    print(f"{count} values, {2 * count / 1e6:.2f} MB in half precision; deviation of latents {settings['sigma_rescale']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("state", type=Path)
    parser.add_argument("data", type=Path)
    given = parser.parse_args()
    samples = (FRAMES + 3) * 512
    keep(torch.load(given.state, weights_only=True), held_out_crops(given.data / "held-out", samples), CHECKPOINT)


if __name__ == "__main__":
    main()
