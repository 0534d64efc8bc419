"""Let transformers generate over the compressed cache; nothing is exported.

Run: python samples/02_transformers_generate.py MODEL_FOLDER ["a text to continue"]
"""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer

from gear_trt.torch import GearCache

DEFAULT_TEXT = "The sky is blue because"


def main(folder: str, text: str = DEFAULT_TEXT) -> None:
    """Continue a text and say what its cache takes.

    Args:
        folder: A Hugging Face folder of a decoder model.
        text: What to continue.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="gear")
    cache = GearCache(model.config, "k4v4")
    model.generate(
        **tokenizer(text, return_tensors="pt"),
        past_key_values=cache,
        max_new_tokens=100,
        do_sample=False,
        streamer=TextStreamer(tokenizer),
    )
    print(f"\n{cache.lengths[0]} tokens")
    print(f"cache: {cache.nbytes / 1e6:.2f} MB, in FP16 {cache.fp16_bytes / 1e6:.2f} MB")
    print(f"compression: {cache.compression_ratio:.2f}x")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])
