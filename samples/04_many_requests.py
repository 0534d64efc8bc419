"""Ask several questions about one text at the same time; the cache holds the text only once.

Run: python samples/04_many_requests.py ENGINE_FOLDER ["a question" ...]
"""

import sys
import time
from itertools import takewhile

from gear_trt.serving import GenerationOptions, Scheduler

TEXT = """\
The lighthouse of Sandholm was built in 1874 by Martha Lind, who had studied in Uppsala. It stands
on a cliff of red granite, 31 metres above the sea, and its light is seen from 40 kilometres away.
Until 1952 a family of five lived in the house beside it: the keeper wound the clockwork that turned
the lens every four hours, by day and by night, and his children carried the oil up 112 steps. Then
the island was joined to the mainland by a cable, and the lamp became electric. The last keeper,
Anton Berg, stayed on as a fisherman. He kept a diary of every ship that passed, in which he also
drew the birds that struck the glass in foggy nights. Today the diary lies in the museum of the
harbour, and the house beside the tower is a small hotel with six rooms.
"""
QUESTIONS = [
    "Who built the lighthouse?",
    "What is the cliff made of?",
    "What did the last keeper draw?",
    "How many rooms does the hotel have?",
]


def main(folder: str, *questions: str) -> None:
    """Print every answer, then what the requests shared.

    Args:
        folder: An engine folder that `gear-export` wrote.
        questions: What to ask about the text.
    """
    with Scheduler(folder, max_cache_bytes=200_000_000, max_batch=8) as scheduler:
        tokenizer = scheduler.model.tokenizer
        prompts = [tokenizer(f"{TEXT}\nQ: {question}\nA:").input_ids for question in questions]
        same = takewhile(lambda ids: len(set(ids)) == 1, zip(*prompts, strict=False))
        options = GenerationOptions(max_new_tokens=40, stop="\n")

        started = time.perf_counter()
        shared = len(list(same))
        tickets = [scheduler.submit(ids, options, shared_prefix=shared) for ids in prompts]
        for question, ticket in zip(questions, tickets, strict=True):
            print(f"{question}\n ", "".join(event.text for event in ticket).strip())
        seconds = time.perf_counter() - started

        stats = scheduler.stats()
        print(f"\n{stats.generated_tokens / seconds:.1f} tokens/s, all answers together")
        found = stats.shared_tokens
        print(f"{stats.prefill_tokens} prompt tokens computed, {found} found in the cache")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1], *(sys.argv[2:] or QUESTIONS))
