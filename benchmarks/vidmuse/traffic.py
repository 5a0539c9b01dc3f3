"""What a step of the language model can't do without reading, in bytes."""

from __future__ import annotations

from dataclasses import dataclass

from musicrt.runtime.models.vidmuse.config import TOKENS_PER_FRAME, Config
from musicrt.runtime.precision import Int8

_FLOAT = 4
COUNTED = (
    "Counted are bytes that have to be read once per step: all weights of the language model but the keys' and values' of the condition, "
    "once for both rows of guidance, its embeddings left out; keys and values of all layers for the tokens of the condition and for those "
    "of one black frame; the caches of both rows as far as they are filled, the new column included. Not counted are activations and "
    "whatever is written."
)


@dataclass(frozen=True)
class Traffic:
    """Bytes of a step with guidance. weights: of the model; condition: keys and values of both halves; caches: of both."""

    weights: int
    condition: int
    caches: int

    @classmethod
    def of_step(cls, config: Config, tokens: int, columns: int, null_tokens: int = TOKENS_PER_FRAME, int8: Int8 | None = None) -> Traffic:
        """A step behind so many columns, with so many tokens of condition, and of condition where there is none; in FP32, or lowered."""
        width, hidden = config.width, config.width * config.lm.transformer_lm.hidden_scale
        matrices = 6 * width**2 + 2 * hidden * width  # 3 of self-attention and its projection, 1 of cross-attention and its projection
        weight, kept = (_FLOAT, _FLOAT) if int8 is None else (int8.bits / 8 + _FLOAT / int8.block, 1)
        weights = round(weight * (config.layers * matrices + config.codebooks * config.card * width))
        norms = _FLOAT * (config.layers * 6 * width + 2 * width)
        pair = 2 * config.layers * width * kept  # key and value of one place in all layers
        return cls(weights + norms, pair * (tokens + null_tokens), 2 * pair * (columns + 1))

    @property
    def total(self) -> int:
        return self.weights + self.condition + self.caches
