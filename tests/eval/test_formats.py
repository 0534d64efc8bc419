"""Every peer's format against its definition: the format's own package, or the formula by hand."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants

from gear_trt.bench.group_query import Storage, quantize
from gear_trt.eval import formats


def values(*shape, seed=0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    x[..., 0, :] = 0  # a block of zeros
    x[..., 1, 5] = -40  # an outlier
    return x


@pytest.mark.parametrize("name", ["q8_0", "q4_0"])
def test_llama_cpp_blocks_are_those_of_its_own_package(name):
    x = values(2, 3, 64, 64)
    kind = GGMLQuantizationType[name.upper()]
    want = quants.dequantize(quants.quantize(x.numpy(), kind), kind)
    np.testing.assert_array_equal(getattr(formats, name)(x).numpy(), want)


@pytest.mark.parametrize("bits", [8, 4])
def test_onnxruntime_codes_are_those_of_its_operator(bits):
    """`bench.group_query.quantize` is checked against the operator itself, in tests/bench."""
    x_BHTD = values(2, 3, 64, 32)
    largest = x_BHTD.abs().amax(dim=(0, 2), keepdim=True) / 2  # some values saturate
    scale = (largest / (2 ** (bits - 1) - 1)).numpy()
    codes = quantize(x_BHTD.numpy(), scale, Storage(bits, "per_channel"))
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(x_BHTD.shape).astype(int) - 8
    got = formats.symmetric(x_BHTD, bits=bits, largest=largest)
    np.testing.assert_allclose(got.numpy(), codes * scale, rtol=1e-6)


def test_a_channel_without_any_magnitude_stays_zero():
    x = torch.zeros(4, 16)
    assert torch.equal(formats.symmetric(x, bits=8, largest=torch.zeros(1, 16)), x)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_per_token_codes(bits):
    x = values(64, 128)
    got = formats.per_token(x, bits=bits, group=64).numpy()
    for token, first in ((0, 0), (1, 0), (7, 64)):
        group = x[token, first : first + 64].numpy()
        low = np.float32(np.float16(group.min()))
        scale = np.float32(np.float16((group.max() - group.min()) / (2**bits - 1)))
        codes = np.clip(np.rint((group - low) / scale), 0, 2**bits - 1) if scale else 0 * group
        np.testing.assert_allclose(got[token, first : first + 64], codes * scale + low, rtol=1e-6)


def test_per_token_groups_are_no_wider_than_a_head():
    x = values(64, 32)
    assert torch.equal(
        formats.per_token(x, bits=4, group=64), formats.per_token(x, bits=4, group=32)
    )


def test_fp8_has_three_bits_of_mantissa_and_saturates():
    x = torch.tensor([[1.0, 1.0625, 1.12, 0.3, -17.0, 1e4, -1e4]])
    want = torch.tensor([[1.0, 1.0, 1.125, 0.3125, -16.0, 448.0, -448.0]])
    assert torch.equal(formats.fp8(x), want)
