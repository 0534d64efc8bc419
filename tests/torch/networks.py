"""Tiny decoders with random weights: one per way of attending that the op supports."""

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

TINY = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
SPREAD = 6.0
"""Factor on the weights of queries and keys: attention of a fresh model is almost uniform."""

FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": 50}),
    "gemma2": (
        Gemma2ForCausalLM,
        Gemma2Config,
        {"sliding_window": 50, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 16},
    ),
    "gpt-oss": (GptOssForCausalLM, GptOssConfig, {"num_local_experts": 2}),
}
SUPPORTED = ("llama", "qwen3", "mistral", "gemma2")


def network(family, **changes):
    """Return a model whose attention is transformers' own, eager."""
    kind, config, settings = FAMILIES[family]
    torch.manual_seed(0)
    model = kind._from_config(
        config(**{**TINY, **settings, **changes}), attn_implementation="eager"
    )
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight *= SPREAD
            layer.self_attn.k_proj.weight *= SPREAD
    return model.eval()


def tokens(batch, length, seed=1):
    return torch.randint(3, 128, (batch, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def steps(model, cache, ids, parts, mask=None):
    """Logits of all tokens, passed in parts of these lengths."""
    logits, start = [], 0
    for part in parts:
        end = start + part
        positions = None
        if mask is not None:
            positions = (mask.cumsum(1) - 1).clamp(min=0)[:, start:end]
        logits.append(
            model(
                ids[:, start:end],
                attention_mask=None if mask is None else mask[:, :end],
                position_ids=positions,
                past_key_values=cache,
            ).logits
        )
        start = end
    return torch.cat(logits, dim=1)
