"""Hyper-parameters of MuQ, which MuCodec listens with, nested and named as officially (SPEC section 3)."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from musicrt.runtime.hyperparameters import Depth, Finite, Group, Positive, Width


class MuqConfig(Group):
    """What MuQ says of itself (`cfg.model` of its file)."""

    unused = frozenset(
        {
            "_name", "num_codebooks", "codebook_dim", "codebook_size", "mask_hop", "mask_prob", "stat_path", "model_path",
            "w2v2_config_path", "use_rvq_target", "use_vq_target", "rvq_ckpt_path", "recon_loss_ratio", "rvq_n_codebooks",
            "rvq_multi_layer_num",
        }
    )  # fmt: skip
    label_rate: Literal[25] = 25
    features: tuple[Literal["melspec_2048"]] = ("melspec_2048",)
    hop_length: Literal[240] = 240
    n_mels: Literal[128] = 128
    conv_dim: Width = 512
    encoder_dim: Width = 1024
    encoder_depth: Depth = 12
    is_flash: Literal[False] = False


class ConformerConfig(Group):
    """MuQ's conformer, a `Wav2Vec2Conformer` (SPEC section 3.4)."""

    unused = frozenset(
        {
            "activation_dropout", "adapter_kernel_size", "adapter_stride", "apply_spec_augment", "architectures", "attention_dropout",
            "bos_token_id", "classifier_proj_size", "codevector_dim", "conformer_conv_dropout", "contrastive_logits_temperature",
            "conv_bias", "conv_dim", "conv_kernel", "conv_stride", "ctc_loss_reduction", "ctc_zero_infinity", "diversity_loss_weight",
            "do_stable_layer_norm", "eos_token_id", "feat_extract_activation", "feat_extract_dropout", "feat_extract_norm",
            "feat_proj_dropout", "feat_quantizer_dropout", "final_dropout", "gradient_checkpointing", "hidden_dropout",
            "hidden_dropout_prob", "initializer_range", "layerdrop", "mask_feature_length", "mask_feature_min_masks", "mask_feature_prob",
            "mask_time_length", "mask_time_min_masks", "mask_time_prob", "max_source_positions", "model_type", "num_adapter_layers",
            "num_codevector_groups", "num_codevectors_per_group", "num_conv_pos_embedding_groups", "num_conv_pos_embeddings",
            "num_feat_extract_layers", "num_negatives", "output_hidden_size", "pad_token_id", "proj_codevector_dim", "tdnn_dilation",
            "tdnn_dim", "tdnn_kernel", "torch_dtype", "transformers_version", "use_weighted_layer_sum", "vocab_size", "xvector_output_dim",
        }
    )  # fmt: skip
    hidden_size: Width = 1024
    intermediate_size: Width = 4096
    num_attention_heads: Width = 16
    num_hidden_layers: Depth = 12
    conv_depthwise_kernel_size: Width = 31
    layer_norm_eps: Positive = 1e-5
    hidden_act: Literal["swish"] = "swish"
    position_embeddings_type: Literal["rotary"] = "rotary"
    rotary_embedding_base: Literal[10000] = 10000
    add_adapter: Literal[False] = False

    @model_validator(mode="after")
    def _check(self) -> ConformerConfig:
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} does not divide hidden_size={self.hidden_size} into even heads"
            )
        if self.conv_depthwise_kernel_size % 2 == 0:
            raise ValueError(f"conv_depthwise_kernel_size={self.conv_depthwise_kernel_size}, expected an odd number")
        return self


class MelStatistics(Group):
    """What MuQ's mel spectrogram is normalised with, in dB (SPEC section 3.2)."""

    melspec_2048_mean: Finite = 6.768444971712967
    melspec_2048_std: Positive = 18.417922652295623
