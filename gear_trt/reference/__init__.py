"""What every op means: obvious numpy, one function per step. Slow on purpose.

Order for one page (docs/layout.md): rotate, find outliers, quantize the rest, fit the low-rank
factors to the quantization error, store the outliers' deltas, pack.
"""

from gear_trt.reference.attention import attend, decompress_sequence
from gear_trt.reference.cache import ReferenceCache
from gear_trt.reference.page import compress_page, decompress_page

__all__ = [
    "ReferenceCache",
    "attend",
    "compress_page",
    "decompress_page",
    "decompress_sequence",
]
