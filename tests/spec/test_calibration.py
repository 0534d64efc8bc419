import numpy as np

from gear_trt.spec.calibration import CALIBRATION_TOKENS, calibration_tokens


def test_calibration_tokens_are_the_same_every_time():
    tokens = calibration_tokens(1000, 4096)
    assert tokens.shape == (1, CALIBRATION_TOKENS)
    assert tokens.dtype == np.int64
    assert tokens.min() >= 0
    assert tokens.max() < 1000
    np.testing.assert_array_equal(tokens, calibration_tokens(1000, 4096))


def test_calibration_tokens_fit_the_model():
    assert calibration_tokens(1000, 100).shape == (1, 100)
