"""Scales of key channels: K · s and Q / s give the same scores, and K · s loses less of them."""

from __future__ import annotations

import numpy as np

from gear_trt.reference.half import FloatArray
from gear_trt.spec import CompressionConfig


def sequence_scales(
    queries_NTD: FloatArray, keys_HTD: FloatArray, config: CompressionConfig
) -> FloatArray | None:
    """Return the scales of a layer whose queries and keys of one sequence are at hand.

    Args:
        queries_NTD: [N, T, D], from the sequence's first token.
        keys_HTD: [H, T, D], as they go into the cache.
        config: How the layer will be compressed; its sinks, which never are, do not count.

    Returns:
        [H, D] float32, or None where scales would change nothing: without rotated codes of keys,
        or with too few tokens to fill a group.
    """
    heads, tokens, _ = keys_HTD.shape
    if not config.scales_keys or tokens < config.sinks + config.group_size:
        return None
    queries_NTD, keys_HTD = queries_NTD[:, config.sinks :], keys_HTD[:, config.sinks :]
    return key_scales(query_energy(queries_NTD, heads), key_energy(keys_HTD, config.group_size))


def key_energy(keys_HTD: FloatArray, group_size: int) -> FloatArray:
    """Return what quantization has to represent of every channel.

    Args:
        keys_HTD: [H, T, D] keys as they go into the cache.
        group_size: Tokens that share a scale and a min; T must be at least as many.

    Returns:
        [H, D] float64: variance inside groups, averaged over whole groups. The mean of a group is
        free, as the min takes it.
    """
    heads, tokens, head_dim = keys_HTD.shape
    groups = tokens // group_size
    grouped = keys_HTD[:, : groups * group_size].reshape(heads, groups, group_size, head_dim)
    return np.asarray(grouped.astype(np.float64).var(axis=2).mean(axis=1))


def query_energy(queries_NTD: FloatArray, num_kv_heads: int) -> FloatArray:
    """Return how much an error of every key channel weighs in the scores.

    Args:
        queries_NTD: [N, T, D] queries that meet those keys.
        num_kv_heads: H.

    Returns:
        [H, D] float64: mean square over tokens and over the heads that share a KV head.
    """
    head_dim = queries_NTD.shape[-1]
    grouped = queries_NTD.astype(np.float64).reshape(num_kv_heads, -1, head_dim)
    return np.asarray((grouped**2).mean(axis=1))


def key_scales(query_HD: FloatArray, key_HD: FloatArray) -> FloatArray:
    """Return the scales that keep the most of the scores.

    Rotation spreads the error of a head's keys evenly over its channels, in proportion to Σ s² k².
    A score then errs by Σ q² / s² times that. By Cauchy and Schwarz the product is least where
    s⁴ = q² / k².

    Args:
        query_HD: [H, D] `query_energy`.
        key_HD: [H, D] `key_energy`.

    Returns:
        [H, D] float32 with a geometric mean of 1 in every head; all 1 where a head has no energy.
        A channel without any counts as one with a millionth of the head's mean.
    """
    ratio = _floored(query_HD) / _floored(key_HD)
    log_HD = 0.25 * np.log(ratio)
    return np.asarray(np.exp(log_HD - log_HD.mean(axis=1, keepdims=True)), np.float32)


def _floored(energy_HD: FloatArray) -> FloatArray:
    mean = energy_HD.mean(axis=1, keepdims=True)
    floor = np.where(mean > 0, 1e-6 * mean, 1.0)
    return np.maximum(energy_HD.astype(np.float64), floor)
