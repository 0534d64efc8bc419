"""Engine folders made in a second: toy model, byte tokenizer, manifest."""

from dataclasses import dataclass

import numpy as np
import onnx
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gear_trt.runtime.engine import Engine
from gear_trt.runtime.manifest import MODEL_FILE, Manifest, ModelFacts
from gear_trt.runtime.memory import HostMemory
from gear_trt.runtime.model import Model
from gear_trt.spec import layout_hash
from tests.graphs import ToyModel

MAX_CONTEXT = 400
SPECIAL = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
END = 256
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endfor %}<|assistant|>"
)


def write_engine(folder, toy=None, *, tokenizer=True):
    """Write an engine folder of a toy model and return it."""
    toy = toy or ToyModel()
    folder.mkdir(parents=True)
    onnx.save(toy.build(), folder / MODEL_FILE)
    manifest_of(toy).write(folder)
    if tokenizer:
        byte_tokenizer().save_pretrained(folder)
    return folder


def with_infinite_keys(folder):
    """Write an engine folder whose layer 1 makes keys that are infinite."""
    return _with_infinity(write_engine(folder), "key.1.weight", (slice(None), 40))


def with_infinite_token(folder, token, toy=None):
    """Write an engine folder whose keys and values are infinite where a certain token is."""
    return _with_infinity(write_engine(folder, toy), "embedding", token)


def _with_infinity(folder, name, where):
    model = onnx.load(folder / MODEL_FILE)
    weight = next(item for item in model.graph.initializer if item.name == name)
    values = onnx.numpy_helper.to_array(weight).copy()
    values[where] = np.inf
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, folder / MODEL_FILE)
    return folder


def manifest_of(toy):
    return Manifest(
        layout_hash=layout_hash(),
        versions={"gear_trt": "0.1.0"},
        model=ModelFacts(
            source="toy",
            architecture="toy",
            vocab_size=toy.vocab_size,
            max_context=MAX_CONTEXT,
            eos_token_ids=(END,),
            pad_token_id=0,
        ),
        layers=tuple(map(toy.facts_of, range(toy.num_layers))),
    )


def byte_tokenizer():
    """One token per UTF-8 byte; the token of a byte is not the byte's value."""
    vocabulary = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=SPECIAL[0],
        additional_special_tokens=list(SPECIAL),
        chat_template=CHAT_TEMPLATE,
    )


@dataclass
class ScriptedBackend:
    """A backend without a model: after `prompt_tokens` it continues with `answer`, then ends."""

    answer: list[int]
    prompt_tokens: int
    runs: int = 0
    memory = HostMemory()

    def bind(self, cache):
        self.cache = cache
        return self

    def run(self, tokens_BS, new_lengths):
        self.runs += 1
        logits_BSV = np.zeros((*tokens_BS.shape, END + len(SPECIAL)), np.float32)
        last = int(self.cache.lengths[0] + new_lengths[0]) - self.prompt_tokens
        token = self.answer[last] if 0 <= last < len(self.answer) else END
        logits_BSV[0, new_lengths[0] - 1, token] = 9.0
        return logits_BSV


def scripted_engine(folder, answer, *, prompt, max_tokens=MAX_CONTEXT):
    """An engine over an existing folder whose answers to `prompt` are written down."""
    tokenizer = byte_tokenizer()
    backend = ScriptedBackend(tokenizer(answer).input_ids, len(tokenizer(prompt).input_ids))
    return Engine(Model(folder, Manifest.read(folder), backend), max_tokens=max_tokens)
