"""PyTorch's own compiler as a backend: a contender of benchmarks, which `musicrt.load` does not offer."""

from __future__ import annotations

import os
import shutil
from typing import cast

from musicrt.runtime.backends.torch import TorchCpu, TorchSession
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.precision import Precision


class TorchCompiled(TorchCpu):
    """The stages through `torch.compile` with its default settings; it compiles at the first call of each shape, which takes minutes."""

    name = "torch-compile"
    precisions: tuple[Precision, ...] = ("float32",)  # type: ignore[misc]

    @classmethod
    def obstacle(cls) -> str | None:
        if reason := super().obstacle():
            return reason
        compilers = [os.environ.get("CXX", ""), "g++", "clang++"]
        if not any(shutil.which(compiler) for compiler in compilers if compiler):
            return "torch.compile needs a C++ compiler, and there is no g++ or clang++ (apt-get install g++)"
        return None

    def open_session(self, bundle: Bundle, stage: str) -> TorchSession:
        """See `TorchCpu`."""
        import torch
        from torch import nn

        if self.threads:
            torch.set_num_threads(self.threads)
        module = torch.compile(self._stages(bundle)[stage])
        return TorchSession(bundle.spec.stage(stage), cast(nn.Module, module))
