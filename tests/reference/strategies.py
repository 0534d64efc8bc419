"""Hypothesis strategies for configs and pages."""

import numpy as np
from hypothesis import strategies as st

from gear_trt.spec import CompressionConfig

HEAD_DIMS = (16, 64, 80, 96, 128)


@st.composite
def configs(draw, *, bits=(2, 3, 4, 8)):
    """Any config whose both sides are quantized."""
    return CompressionConfig(
        key_bits=draw(st.sampled_from(bits)),
        value_bits=draw(st.sampled_from(bits)),
        group_size=draw(st.sampled_from((32, 64, 128))),
        metadata_bits=draw(st.sampled_from((8, 16))),
        rank=draw(st.sampled_from((0, 1, 2, 4))),
        factor_bits=draw(st.sampled_from((4, 8, 16))),
        outliers=draw(st.sampled_from((0, 2, 4))),
        chunk=draw(st.sampled_from((64, 128))),
        rotate_keys=draw(st.sampled_from((0, 1))),
        rotate_values=draw(st.sampled_from((0, 1))),
        fit_ranges=draw(st.sampled_from((0, 1))),
    )


@st.composite
def rows(draw, tokens, head_dim):
    """[tokens, head_dim] float16: gaussian, heavy-tailed, constant, tiny, huge, or offset."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (tokens, head_dim)
    kind = draw(st.sampled_from(("normal", "heavy", "constant", "tiny", "huge", "offset", "spike")))
    x = {
        "normal": lambda: rng.normal(size=shape),
        "heavy": lambda: rng.standard_t(1.5, size=shape),
        "constant": lambda: np.full(shape, rng.normal()),
        "tiny": lambda: rng.normal(size=shape) * 1e-7,
        "huge": lambda: rng.uniform(-60000, 60000, size=shape),
        "offset": lambda: rng.normal(size=shape) * 0.1 + rng.normal(size=head_dim) * 20,
        "spike": lambda: np.eye(*shape) * 1000,
    }[kind]()
    return np.clip(x, -65504, 65504).astype(np.float16)


@st.composite
def pages(draw, **kwargs):
    """(config, keys, values) of one page."""
    config = draw(configs(**kwargs))
    head_dim = draw(st.sampled_from(HEAD_DIMS))
    return config, draw(rows(config.chunk, head_dim)), draw(rows(config.chunk, head_dim))
