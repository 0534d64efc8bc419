"""Tiny decoders of the common families, with random weights."""

import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
    Starcoder2Config,
)

VOCABULARY, CONTEXT, WINDOW = 112, 96, 24
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,
}
"""The spread of weights is ten times the usual one: attention of a fresh model is almost uniform,
and a wrong mask would hardly show."""
GROUPED = {**COMMON, "num_key_value_heads": 2, "intermediate_size": 96}
WIDE = {**COMMON, "intermediate_size": 96}
ROPE = {"rope_type": "default", "rope_theta": 500.0}
"""Not the default theta: transformers has lost it on the way before."""
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "short_factor": [1.0 + 0.1 * n for n in range(8)],
    "long_factor": [1.0 + 0.5 * n for n in range(8)],
    "original_max_position_embeddings": CONTEXT,
}
"""The text of the tests is within the original context, where the short factors hold."""

CONFIGS = {
    "Llama 2": lambda: LlamaConfig(**WIDE, rope_parameters=ROPE),
    "Llama 3": lambda: LlamaConfig(**GROUPED, rope_parameters=LLAMA3_ROPE),
    "Mistral": lambda: MistralConfig(**GROUPED, sliding_window=WINDOW, rope_parameters=ROPE),
    "Mixtral": lambda: MixtralConfig(
        **GROUPED, num_local_experts=4, num_experts_per_tok=2, rope_parameters=ROPE
    ),
    "Qwen2": lambda: Qwen2Config(**GROUPED, rope_parameters=ROPE),
    "Qwen3": lambda: Qwen3Config(**GROUPED, head_dim=32, rope_parameters=ROPE),
    "Gemma 2": lambda: Gemma2Config(
        **{**GROUPED, "num_attention_heads": 2, "num_key_value_heads": 1},
        head_dim=256,
        sliding_window=WINDOW,
        query_pre_attn_scalar=64,
        attn_logit_softcapping=5.0,
    ),
    "Gemma 3": lambda: Gemma3TextConfig(
        **{**GROUPED, "num_attention_heads": 2, "num_key_value_heads": 1},
        head_dim=256,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "Phi-3": lambda: Phi3Config(
        **{**GROUPED, "max_position_embeddings": 4 * CONTEXT},
        rope_parameters=LONG_ROPE,
        original_max_position_embeddings=CONTEXT,
    ),
    "Phi-2": lambda: PhiConfig(**WIDE, partial_rotary_factor=0.5),
    "GPT-NeoX": lambda: GPTNeoXConfig(
        **WIDE, rope_parameters={**ROPE, "partial_rotary_factor": 0.25}
    ),
    "StarCoder2": lambda: Starcoder2Config(**GROUPED, sliding_window=WINDOW, rope_parameters=ROPE),
    "OLMo 2": lambda: Olmo2Config(**GROUPED, rope_parameters=ROPE),
    "GPT-2": lambda: GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_positions=CONTEXT,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.2,
    ),
    "OPT": lambda: OPTConfig(**{**COMMON, "word_embed_proj_dim": 64}, ffn_dim=96),
    "Falcon": lambda: FalconConfig(**COMMON, multi_query=True, alibi=False, rope_parameters=ROPE),
    "BLOOM": lambda: BloomConfig(
        vocab_size=VOCABULARY, hidden_size=64, n_layer=2, n_head=4, initializer_range=0.2
    ),
    "SmolLM3": lambda: SmolLM3Config(**GROUPED, no_rope_layers=[1, 0], rope_parameters=ROPE),
    "Granite": lambda: GraniteConfig(**GROUPED, attention_multiplier=0.3, rope_parameters=ROPE),
    "gpt-oss": lambda: GptOssConfig(
        **GROUPED,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"],
    ),
}


def make(family, **changes):
    """Return a family's tiny model, always with the same weights."""
    torch.manual_seed(0)
    config = CONFIGS[family]()
    config.update(changes)
    network = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.dim() == 1 and not name.endswith("bias"):
                weight += 0.1 * torch.randn_like(weight)  # norms that are not all 1
            elif name.endswith("bias") or "sinks" in name:
                weight.normal_(0, 0.2)
    return network
