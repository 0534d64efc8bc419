"""What the GPU benchmarks measure: configs, shapes, the bytes that a call must move, targets."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from gear_trt.runtime.footprint import buffer_shape, page_bytes
from gear_trt.runtime.manifest import LayerFacts
from gear_trt.spec import CompressionConfig

KV_HEADS, HEAD_DIM = 8, 128
HALF_BYTES = 2
WAITING = 32
"""Tokens in the residual buffer of every sequence: on average half a chunk waits there."""

CONFIGS: dict[str, CompressionConfig] = {
    "k4v4": CompressionConfig.preset("k4v4"),
    "k4v4-rank2": CompressionConfig.preset("k4v4", rank=2),
    "k4v4-rank2-outliers2": CompressionConfig.preset("k4v4", rank=2, outliers=2),
    "k2v2-rank2": CompressionConfig.preset("k2v2", rank=2),
    "k2v2": CompressionConfig.preset("k2v2"),
}


@dataclass(frozen=True)
class Shape:
    """One decode step of one layer.

    Attributes:
        batch: B.
        context: Tokens in pages, per sequence, before rounding to whole pages.
        group: G, query heads per KV head.
        kv_heads: H.
        head_dim: D.
    """

    batch: int
    context: int
    group: int
    kv_heads: int = KV_HEADS
    head_dim: int = HEAD_DIM

    @property
    def num_heads(self) -> int:
        """N."""
        return self.group * self.kv_heads

    @property
    def total_tokens(self) -> int:
        """B · context."""
        return self.batch * self.context

    def pages(self, config: CompressionConfig) -> int:
        """Full pages of one sequence."""
        return max(self.context // config.chunk, 1)

    def past(self, config: CompressionConfig) -> int:
        """Tokens of one sequence before the call."""
        return config.sinks + self.pages(config) * config.chunk + WAITING

    def facts(self, config: CompressionConfig) -> LayerFacts:
        """The layer whose bytes `gear_trt.runtime.footprint` counts."""
        return LayerFacts(
            num_heads=self.num_heads,
            num_kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            config=config,
        )


SHAPES = tuple(
    Shape(batch, context, group)
    for batch, context in ((1, 4096), (1, 32768), (8, 32768), (64, 4096), (2, 131072))
    for group in (4, 1, 8)
)
PREFILL_LENGTHS = (2048, 4096, 8192)
COMPRESSION_BATCHES = (1, 8, 64)


def page_pool_bytes(shape: Shape, config: CompressionConfig) -> int:
    """Bytes of the pages of all sequences."""
    return shape.batch * shape.pages(config) * page_bytes(shape.facts(config))


def decode_bytes(shape: Shape, config: CompressionConfig) -> int:
    """Bytes that one decode step must read: pages, sinks and waiting rows, query and new token."""
    heads, sides, _, head_dim = buffer_shape(shape.facts(config))
    rows = config.sinks + WAITING
    buffer = shape.batch * prod((heads, sides, rows, head_dim)) * HALF_BYTES
    return page_pool_bytes(shape, config) + buffer + _activation_bytes(shape)


def fp16_bytes(shape: Shape, config: CompressionConfig) -> int:
    """Bytes that the same step reads from an FP16 cache of the same tokens."""
    per_token = 2 * shape.kv_heads * shape.head_dim * HALF_BYTES
    return shape.batch * shape.past(config) * per_token + _activation_bytes(shape)


def _activation_bytes(shape: Shape) -> int:
    return shape.batch * (shape.num_heads + 2 * shape.kv_heads) * shape.head_dim * HALF_BYTES


def decode_flops(shape: Shape, config: CompressionConfig) -> int:
    """Multiplications and additions of q·K and p·V."""
    return 4 * shape.batch * shape.num_heads * shape.past(config) * shape.head_dim


@dataclass(frozen=True)
class Target:
    """A bound on a field of rows.

    Attributes:
        name: For the summary table.
        kind: Kind of the rows.
        field: The field that is bounded.
        must: What is asked.
        moonshot: What is hoped for; None where there is nothing beyond.
        configs: Configs of the rows; empty means all.
        batches: Smallest and largest B of the rows.
        tokens: Smallest and largest B · context of the rows.
        groups: G of the rows; empty means all.
        is_upper: Whether `must` is the largest allowed value, not the smallest.
    """

    name: str
    kind: str
    field: str
    must: float
    moonshot: float | None = None
    configs: tuple[str, ...] = ()
    batches: tuple[int, int] = (1, 1 << 30)
    tokens: tuple[int, int] = (0, 1 << 62)
    groups: tuple[int, ...] = ()
    is_upper: bool = False

    def applies(self, row: dict[str, object]) -> bool:
        """Whether a row is bound by this target."""
        batch, context = int(str(row["batch"])), int(str(row["context"]))
        return (
            row["kind"] == self.kind
            and row.get(self.field) is not None
            and (not self.configs or row["config"] in self.configs)
            and (not self.groups or row["group"] in self.groups)
            and self.batches[0] <= batch <= self.batches[1]
            and self.tokens[0] <= batch * context <= self.tokens[1]
        )

    def is_met(self, value: float, bound: float) -> bool:
        """Whether a value keeps a bound of this target."""
        return value <= bound if self.is_upper else value >= bound


_LARGE = (256 * 1024, 1 << 62)
_GROUP = (4,)
TARGETS = (
    Target("4-bit", "decode", "ratio", 2.4, 3.1, ("k4v4",), tokens=_LARGE, groups=_GROUP),
    Target(
        "4-bit, rank 2", "decode", "ratio", 2.1, 2.7, ("k4v4-rank2",),
        tokens=_LARGE, groups=_GROUP,
    ),
    Target(
        "4-bit, rank 2, outliers", "decode", "ratio", 1.9, 2.4, ("k4v4-rank2-outliers2",),
        tokens=_LARGE, groups=_GROUP,
    ),
    Target(
        "2-bit, rank 2", "decode", "ratio", 3.0, 4.2, ("k2v2-rank2",),
        tokens=_LARGE, groups=_GROUP,
    ),
    Target("share of the read ceiling", "decode", "ceiling_share", 0.75, 0.88, tokens=_LARGE),
    Target("one short sequence", "decode", "ratio", 0.9, batches=(1, 1), tokens=(0, 4096)),
    Target(
        "compression's share of decoding", "compress", "decode_share", 0.01,
        batches=(8, 1 << 30), is_upper=True,
    ),
    Target("prefill", "prefill", "ratio", 0.7),
)  # fmt: skip
"""The targets of docs/kernels.md. Ratios are to the fastest FP16 attention of the same run."""
