"""Greedy agreement, passkeys and question sets, on models that are tables."""

import pytest
import torch

from gear_trt.errors import ErrorCode, GearError
from gear_trt.eval import greedy, passkey, questions
from tests.eval.models import Letters


class Reciter:
    """Says what it is told to, one token after the other, whatever it has read."""

    cache_bytes = None

    def __init__(self, prompt_tokens, *texts):
        self.prompt_tokens, self.texts = prompt_tokens, texts

    def reset(self):
        self.read = 0

    def step(self, tokens_BS):
        self.read += tokens_BS.shape[1]
        logits = torch.zeros(*tokens_BS.shape, 128)
        for row, text in enumerate(self.texts):
            place = self.read - self.prompt_tokens
            logits[row, -1, text[place] if 0 <= place < len(text) else 0] = 1
        return logits


class Bytes(Letters):
    """Decodes what it encodes."""

    def encode(self, text, **_):
        return [ord(letter) for letter in text]

    def decode(self, ids):
        return "".join(map(chr, ids))


def test_agreement_ends_at_the_first_token_that_differs():
    prompts = torch.zeros(3, 40, dtype=torch.int64)
    exact = greedy.continued(Reciter(40, [5, 6, 7, 8], [5, 6, 7, 8], [9] * 4), prompts, 4)
    assert exact[0].tolist() == [5, 6, 7, 8]
    other = greedy.continued(Reciter(40, [5, 6, 1, 8], [1, 6, 7, 8], [9] * 4), prompts, 4)
    row = greedy.compare("other", prompts, exact, other, model="table", text="none")
    assert (row.agreement, row.identical, row.prompts, row.prompt_tokens) == (2, 1, 3, 40)


def test_passkey_prompts_have_the_length_and_hide_the_key_at_its_depth():
    tokenizer = Bytes()
    depths = (0, 0.5, 1)
    keys, prompts = passkey.make_prompts(tokenizer, 700, depths)
    assert prompts.shape == (3, 700)
    assert len(set(keys)) == 3
    for depth, key, ids in zip(depths, keys, prompts.tolist(), strict=True):
        text = tokenizer.decode(ids)
        assert text.count(key) == 2
        assert text.endswith("The pass key is")
        start = len(passkey.TASK)
        room = 700 - start - len(passkey.NEEDLE.format(key=key)) - len(passkey.QUESTION)
        assert text.index("\nThe pass key is") == start + round(depth * room)
    assert passkey.make_prompts(tokenizer, 700, depths)[0] == keys, "the same again"


def test_a_passkey_is_right_where_the_answer_begins_with_it():
    keys, prompts = passkey.make_prompts(Bytes(), 400, (0.5, 0.5))
    said = [f" {keys[0]}. Y", f" x{keys[1]}."]
    rows = passkey.retrieve(
        "table",
        "cache",
        Reciter(400, *(Bytes().encode(text) for text in said)),
        Bytes(),
        prompts_BT=prompts,
        keys=keys,
        depths=(0.5, 0.5),
    )
    assert [row.is_right for row in rows] == [True, False]
    assert [row.answer for row in rows] == [text[:8] for text in said]


def test_a_context_shorter_than_the_question_is_refused():
    with pytest.raises(GearError) as caught:
        passkey.make_prompts(Bytes(), 50, (0.5,))
    assert caught.value.code is ErrorCode.BAD_REQUEST


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("5 + 4 = 9.\nThe answer is 9.", 9),
        ("The answer is $1,234.50 a day", 1234.5),
        ("The answer is 3 of 7", 7),  # the last number, as published
        ("The answer is 3. The answer is -4", -4),
        ("so 12 and 13", 13),
        ("The answer is none", None),
        ("", None),
    ],
)
def test_the_answer_is_the_last_number_after_the_marker(text, answer):
    assert questions.extract_answer(text) == answer


def test_a_question_is_asked_after_the_examples_and_answered_up_to_the_next(tmp_path):
    file = tmp_path / "set.jsonl"
    file.write_text('{"question": "Six?", "answer": "It is 2 * 3.\\n#### 1,006"}\n' * 2)
    (question,) = questions.read_questions(file, 1)
    assert question == questions.Question("Six?", 1006)
    prompt = "Q\n\nQuestion: Six?\nLet's think step by step\n"
    said = "The answer is 1006.\n\nQuestion: 8?"
    decoder = Reciter(len(prompt), Bytes().encode(said))
    (row,) = questions.ask(
        "table", "cache", decoder, Bytes(), [question], examples="Q\n", max_new_tokens=100
    )
    assert row.text == "The answer is 1006."
    assert row.is_right
    (cut,) = questions.ask(
        "table", "cache", decoder, Bytes(), [question], examples="Q", max_new_tokens=15
    )
    assert cut.text == said[:15]
    assert cut.answer == 1


@pytest.mark.parametrize("line", ["no json", "{}", '{"question": "?", "answer": "none"}', "[]"])
def test_lines_that_are_no_questions(tmp_path, line):
    file = tmp_path / "set.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(GearError, match="line 1") as caught:
        questions.read_questions(file, 5)
    assert caught.value.code is ErrorCode.BAD_REQUEST
