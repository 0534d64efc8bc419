"""How results of the kernels are compared with the reference's."""

import numpy as np

from gear_trt.reference.page import decode_side
from gear_trt.spec import CompressionConfig, page_layout

INSTRUCTION_SETS = ("scalar", "avx2", "avx_vnni", "avx512", "avx512_vnni")
"""Every path of the CPU kernels, from the most portable to the fastest."""

FITTED = ("token_factors", "channel_factors", "factor_scales")
"""Fields that follow float sums, whose order kernels choose."""

GUARD_BYTES = 4096


class Guarded:
    """An array with a pattern before and after it, which writers must leave alone."""

    def __init__(self, like):
        self._raw = np.full(like.nbytes + 2 * GUARD_BYTES, 0xA5, np.uint8)
        self.array = self._raw[GUARD_BYTES:-GUARD_BYTES].view(like.dtype).reshape(like.shape)
        self.array[:] = like

    def check(self):
        assert (self._raw[:GUARD_BYTES] == 0xA5).all(), "written before its start"
        assert (self._raw[-GUARD_BYTES:] == 0xA5).all(), "written beyond its end"


def nmse(actual, expected):
    """Squared error relative to the energy of what is expected."""
    actual, expected = (np.asarray(x, np.float64) for x in (actual, expected))
    energy = (expected**2).sum()
    return ((actual - expected) ** 2).sum() / (energy if energy else 1.0)


def assert_pages_equal(actual, expected, config: CompressionConfig, head_dim: int, context=""):
    """Every field bit for bit, but for those that follow the fitted factors."""
    fitted = set(FITTED) | ({"outlier_deltas"} if config.rank else set())
    for name, place in page_layout(config, head_dim).fields.items():
        side, field = name.split("_", 1)
        if not place.words or field in fitted:
            continue
        part = slice(place.offset, place.offset + place.words)
        np.testing.assert_array_equal(actual[part], expected[part], f"{context} {name}")
    if config.rank:
        for side in ("key", "value"):
            decoded = decode_side(actual, side, config, head_dim)
            assert nmse(decoded, decode_side(expected, side, config, head_dim)) < 1e-5, context
