"""Load an engine folder, stream an answer, look at the compressed cache.

Run: python samples/01_quickstart_decode.py ENGINE_FOLDER ["your question"]
"""

import sys

import gear_trt

DEFAULT_QUESTION = "Explain in three sentences why the sky is blue."


def main(folder: str, question: str = DEFAULT_QUESTION) -> None:
    """Answer one question and say what its cache takes.

    Args:
        folder: An engine folder that `gear-export` wrote.
        question: What to ask.
    """
    with gear_trt.load(folder) as engine:
        for chunk in engine.stream(question, max_new_tokens=200):
            print(chunk.text, end="", flush=True)

        cache = engine.cache
        print(f"\n\n{int(cache.lengths[0])} tokens at {chunk.tokens_per_second:.1f} tokens/s")
        print(f"cache: {cache.nbytes / 1e6:.2f} MB, in FP16 {cache.fp16_bytes / 1e6:.2f} MB")
        print(f"compression: {cache.compression_ratio:.2f}x")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])
