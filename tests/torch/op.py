"""Rows of the case table as torch tensors."""

import numpy as np
import torch


def as_tensor(array):
    """A tensor with the elements of an array, and with its memory where that is dense."""
    dense = np.ascontiguousarray(array)
    if dense.dtype.name == "bfloat16":  # which numpy knows from ml_dtypes, and torch not from numpy
        return torch.from_numpy(dense.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(dense)


def as_array(tensor):
    """The way back."""
    if tensor.dtype == torch.bfloat16:
        return tensor.cpu().view(torch.int16).numpy().view("bfloat16")
    return tensor.cpu().numpy()


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
        **{name: as_tensor(array).to(device) for name, array in tensors.items()},
        "config": case.config,
        "scale": case.scale,
        "softcap": case.softcap,
        "sliding_window": case.sliding_window,
    }
