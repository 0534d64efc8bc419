"""Tiny decoders with random weights, in every form that gear-export reads."""

import warnings

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LAYERS, HEADS, KV_HEADS, HEAD_DIM = 2, 4, 2, 16
VOCABULARY, CONTEXT = 128, 256
TINY = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
SPREAD = 4.0
"""Factor on the weights of queries and keys: attention of a fresh model is almost uniform."""


def llama(**changes):
    torch.manual_seed(0)
    # rope_theta is not the default: transformers has lost it on the way before
    rope = {"rope_type": "default", "rope_theta": 500.0}
    network = LlamaForCausalLM(LlamaConfig(**{**TINY, "rope_parameters": rope, **changes}))
    with torch.no_grad():
        for layer in network.model.layers:
            layer.self_attn.q_proj.weight *= SPREAD
            layer.self_attn.k_proj.weight *= SPREAD
    return network.eval()


def save_tokenizer(folder):
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"t{n}": n for n in range(3, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, "<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def save_checkpoint(network, folder):
    network.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


class WithCache(torch.nn.Module):
    """A decoder whose cache is flat tensors: what a user's own export script looks like."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, input_ids, attention_mask, position_ids, *past):
        cache = DynamicCache(config=self.network.config)
        for layer in range(LAYERS):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        outputs = self.network(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        layers = outputs.past_key_values.layers
        return outputs.logits, *(item for layer in layers for item in (layer.keys, layer.values))


def save_dynamo(network, path, *, opset):
    """torch.onnx.export with the cache as inputs and outputs."""
    batch, new, past = 2, 3, 5
    caches = [torch.randn(batch, KV_HEADS, past, HEAD_DIM) for _ in range(2 * LAYERS)]
    names = [f"{layer}.{side}" for layer in range(LAYERS) for side in ("key", "value")]
    dynamic = torch.export.Dim.DYNAMIC
    rows = {0: dynamic, 1: dynamic}
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(
            WithCache(network).eval(),
            (
                torch.zeros(batch, new, dtype=torch.int64),
                torch.ones(batch, past + new, dtype=torch.int64),
                torch.arange(past, past + new).repeat(batch, 1),
                *caches,
            ),
            path,
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=(rows, rows, rows, tuple({0: dynamic, 2: dynamic} for _ in caches)),
            input_names=["input_ids", "attention_mask", "position_ids"]
            + [f"past_key_values.{name}" for name in names],
            output_names=["logits", *(f"present.{name}" for name in names)],
            verbose=False,
        )
    return path


def save_genai(checkpoint, folder, *, precision="fp32", provider="cpu"):
    """onnxruntime-genai's builder: GroupQueryAttention with packed QKV and its own rotation."""
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    arguments = (None, str(checkpoint), str(folder), precision, provider, str(folder / "cache"))
    create_model(*arguments, **parse_extra_options(*arguments, []))
    return folder / "model.onnx"
