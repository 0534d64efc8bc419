"""Puts one `GearAttention` node in the place of every attention layer."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from gear_trt.export.passes.interface import LayerState, SharedInputs, layer_state
from gear_trt.export.passes.nodes import HEADS_LAST, integers, typed
from gear_trt.export.passes.positions import Positions
from gear_trt.export.passes.sites import AttentionFacts, HeadTensor, KvSite, Rotary
from gear_trt.spec import DOMAIN, GEAR_ATTENTION, CompressionConfig, layout_hash

MICROSOFT_DOMAIN = "com.microsoft"


def route_kv(
    main: ir.Graph,
    sites: Sequence[KvSite],
    configs: Sequence[CompressionConfig],
    *,
    shared: SharedInputs,
    positions: Positions,
) -> list[LayerState]:
    """Replace every site's output; what the old attention needed is left without readers.

    Args:
        main: The graph.
        sites: Every attention layer, in the order of its index.
        configs: How the cache of each is compressed.
        shared: Inputs that every layer reads.
        positions: For rotary embedding that the old node did itself.

    Returns:
        The state of every layer; the caller makes it inputs and outputs of the graph.
    """
    return [
        _Router(main, site).route(layer, config, shared, positions)
        for layer, (site, config) in enumerate(zip(sites, configs, strict=True))
    ]


class _Router:
    """Routes one site."""

    def __init__(self, main: ir.Graph, site: KvSite) -> None:
        self._main = main
        self._site = site
        self._tape = ir.tape.Tape(main)
        heads, head_dim = site.facts, site.facts.head_dim
        self._query_width = heads.num_heads * head_dim
        self._key_width = heads.num_kv_heads * head_dim

    def route(
        self, layer: int, config: CompressionConfig, shared: SharedInputs, positions: Positions
    ) -> LayerState:
        state = layer_state(layer, self._site.facts, config)
        query_BSM, key_BSM, value_BSM = self._operands(positions)
        output_BSM = ir.val(
            f"gear_attention.{layer}", self._site.dtype, ("B", "S", self._query_width)
        )
        self._tape.op_multi_out(
            GEAR_ATTENTION.name,
            [
                query_BSM,
                key_BSM,
                value_BSM,
                state.page_pool,
                state.residual_buffer,
                shared.page_table,
                shared.slots,
                shared.past_lengths,
                shared.new_lengths,
            ],
            _attributes(layer, self._site.facts, config),
            outputs=[output_BSM, state.page_pool_out, state.residual_buffer_out],
            domain=DOMAIN,
            name=f"{GEAR_ATTENTION.name}.{layer}",
        )
        self._replace_output(output_BSM)
        return state

    def _operands(self, positions: Positions) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Return query, key and value as [B, S, heads · D], rotated."""
        site = self._site
        if site.key is None or site.value is None:
            query, key, value = self._split_packed()
        else:
            query = self._heads_last(site.query, self._query_width)
            key = self._heads_last(site.key, self._key_width)
            value = self._heads_last(site.value, self._key_width)
        if site.rotary is not None:
            query = self._rotate(query, site.facts.num_heads, site.rotary, positions)
            key = self._rotate(key, site.facts.num_kv_heads, site.rotary, positions)
        return query, key, value

    def _split_packed(self) -> list[ir.Value]:
        widths = [self._query_width, self._key_width, self._key_width]
        packed = self._site.query.tensor
        parts = self._tape.op_multi_out(
            "Split", [packed, integers(self._main, widths)], {"axis": -1}, num_outputs=3
        )
        return [
            typed(part, self._site.dtype, ("B", "S", width))
            for part, width in zip(parts, widths, strict=True)
        ]

    def _heads_last(self, value: HeadTensor, width: int) -> ir.Value:
        """Any layout to [B, S, N·D]."""
        if value.perm is None:
            return value.tensor
        perm = [value.perm.index(axis) for axis in HEADS_LAST]
        value_BSND = self._tape.op("Transpose", [value.tensor], {"perm": perm})
        shape = integers(self._main, [0, 0, width])
        merged_BSM = self._tape.op("Reshape", [value_BSND, shape])
        return typed(merged_BSM, self._site.dtype, ("B", "S", width))

    def _rotate(
        self, value_BSM: ir.Value, heads: int, rotary: Rotary, positions: Positions
    ) -> ir.Value:
        attributes = {"interleaved": rotary.interleaved, "num_heads": heads}
        pairs = rotary.cos_cache.shape[-1] if rotary.cos_cache.shape is not None else None
        if isinstance(pairs, int) and 2 * pairs != self._site.facts.head_dim:
            attributes["rotary_embedding_dim"] = 2 * pairs
        rotated = self._tape.op(
            "RotaryEmbedding",
            [value_BSM, positions.ids, rotary.cos_cache, rotary.sin_cache],
            attributes,
            domain=MICROSOFT_DOMAIN,
        )
        return typed(rotated, self._site.dtype, value_BSM.shape)

    def _replace_output(self, output_BSM: ir.Value) -> None:
        replacement = output_BSM
        if self._site.heads_first:
            replacement = self._heads_first(output_BSM)
        self._site.output.replace_all_uses_with(replacement, replace_graph_outputs=True)

    def _heads_first(self, output_BSM: ir.Value) -> ir.Value:
        """[B, S, N·D] to [B, N, S, D]."""
        num_heads, head_dim = self._site.facts.num_heads, self._site.facts.head_dim
        shape = integers(self._main, [0, 0, num_heads, head_dim])
        split_BSND = typed(
            self._tape.op("Reshape", [output_BSM, shape]),
            self._site.dtype,
            ("B", "S", num_heads, head_dim),
        )
        output_BNSD = self._tape.op("Transpose", [split_BSND], {"perm": HEADS_LAST})
        return typed(output_BNSD, self._site.dtype, self._site.output.shape)


def _attributes(
    layer: int, facts: AttentionFacts, config: CompressionConfig
) -> dict[str, int | float | str]:
    values: dict[str, int | float | str | None] = {
        item.name: item.default for item in GEAR_ATTENTION.attributes
    }
    values |= vars(facts) | config.model_dump() | {"layer": layer, "layout_hash": layout_hash()}
    return {name: value for name, value in values.items() if value is not None}
