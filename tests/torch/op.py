"""Rows of the case table as torch tensors."""

import torch


def arguments(case, call, state, device="cpu"):
    """Keywords of `gear_trt.torch.attention`; `state` is copied where the device is another."""
    tensors = {
        "query_BSND": call.query_BSND,
        "key_BSHD": call.key_BSHD,
        "value_BSHD": call.value_BSHD,
        "page_pool": state.page_pool,
        "residual_buffer": state.residual_buffer,
        "page_table": call.page_table,
        "slots": call.slots,
        "past_lengths": call.past_lengths,
        "new_lengths": call.new_lengths,
    }
    return {
        **{name: torch.from_numpy(array).to(device) for name, array in tensors.items()},
        "config": case.config,
        "scale": case.scale,
        "softcap": case.softcap,
        "sliding_window": case.sliding_window,
    }
