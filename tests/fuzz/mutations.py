"""Small random damage to valid input: most of it survives, so that parsers get deep into it."""

import copy
import json
import random

INTERESTING_BYTES = (0x00, 0x01, 0x22, 0x2E, 0x2F, 0x7F, 0x80, 0xFF)
INTERESTING_INTEGERS = (0, 1, -1, 127, 128, 255, 2**15, 2**31 - 1, -(2**31), 2**32, 2**63 - 1)
INTERESTING_VALUES = (
    *INTERESTING_INTEGERS,
    *(None, True, False, 0.5, 1e308, float("nan"), "", "0", "../x", "/etc/passwd", "\x00", [], {}),
)


def damaged(rng: random.Random, data: bytes, *, most_edits: int = 6) -> bytes:
    """Return bytes with a few edits: flipped, inserted, removed, repeated, cut off."""
    result = bytearray(data)
    for _ in range(rng.randint(1, most_edits)):
        rng.choice(_EDITS)(rng, result)
    return bytes(result)


def damaged_json(rng: random.Random, value: object, *, most_edits: int = 3) -> bytes:
    """Return JSON whose structure is right but for a few values."""
    tree = {"root": copy.deepcopy(value)}
    for _ in range(rng.randint(1, most_edits)):
        _edit_value(rng, tree)
    return json.dumps(tree.get("root")).encode()


def _position(rng, data):
    return rng.randrange(len(data) + 1)


def _span(rng, data):
    start = _position(rng, data)
    return slice(start, min(len(data), start + rng.choice((1, 2, 4, 8, 16, 64))))


def _flip(rng, data):
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _overwrite(rng, data):
    if data:
        data[rng.randrange(len(data))] = rng.choice(INTERESTING_BYTES)


def _overwrite_integer(rng, data):
    size = rng.choice((2, 4, 8))
    number = rng.choice(INTERESTING_INTEGERS) % (1 << 8 * size)
    start = _position(rng, data)
    data[start : start + size] = number.to_bytes(size, "little")


def _insert(rng, data):
    start = _position(rng, data)
    data[start:start] = rng.randbytes(rng.choice((1, 2, 4, 16)))


def _remove(rng, data):
    del data[_span(rng, data)]


def _repeat(rng, data):
    span = _span(rng, data)
    data[span.start : span.start] = data[span]


def _cut(rng, data):
    del data[_position(rng, data) :]


_EDITS = (_flip, _overwrite, _overwrite_integer, _insert, _remove, _repeat, _cut)


def _edit_value(rng, tree):
    """Replace, remove or add one value somewhere below `tree`."""
    parent, key = tree, "root"
    while isinstance(child := parent[key], dict | list) and child and rng.random() < 0.85:
        parent = child
        key = rng.choice(list(child) if isinstance(child, dict) else range(len(child)))
    edit = rng.random()
    if edit < 0.1 and parent is not tree:
        del parent[key]
    elif edit < 0.2 and isinstance(parent, dict) and parent is not tree:
        parent[rng.choice(("extra", "", key + "x"))] = rng.choice(INTERESTING_VALUES)
    elif edit < 0.3 and isinstance(parent, list):
        parent.insert(key, copy.deepcopy(parent[key]))
    else:
        parent[key] = rng.choice(INTERESTING_VALUES)
