"""Tiny subjects: random weights, and a tokenizer of bytes."""

from gear_trt.eval.subject import NetworkSubject
from tests.torch.networks import network


class Letters:
    """A tokenizer that is its own vocabulary: one token per character."""

    eos_token_id = 1

    def encode(self, text, **_):
        return [3 + ord(letter) % 120 for letter in text]

    def decode(self, ids):
        return "".join(chr(32 + token % 90) for token in ids)


def subject(family="llama", **changes):
    return NetworkSubject("tiny", network(family, **changes))
