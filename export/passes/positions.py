"""Token positions inside the graph, from the lengths that the runtime feeds."""

from __future__ import annotations

from functools import cached_property

import onnx_ir as ir

from gear_trt.export.passes.interface import SharedInputs
from gear_trt.export.passes.nodes import integers

POSITION_IDS = "gear_position_ids"


class Positions:
    """Positions of the new tokens of every sequence, computed once per graph, on first use.

    Padding behind a sequence's last token repeats that token's position: a sequence near the end
    of its context may share a batch with a long prompt, and tables end where the context does.

    Args:
        main: The graph to add to.
        input_ids: [B, S].
        shared: Inputs of the runtime.
    """

    def __init__(self, main: ir.Graph, input_ids: ir.Value, shared: SharedInputs) -> None:
        self._main = main
        self._input_ids = input_ids
        self._shared = shared

    @cached_property
    def ids(self) -> ir.Value:
        """Return [B, S] int64: `past_lengths` plus 0, 1, 2 and so on."""
        tape = ir.tape.Tape(self._main)
        zero, one = integers(self._main, 0), integers(self._main, 1)
        new_tokens = tape.op("Gather", [tape.op("Shape", [self._input_ids]), one])
        offsets_S = tape.op("Range", [zero, new_tokens, one])
        past_B1 = self._column(tape, self._shared.past_lengths)
        new_B1 = self._column(tape, self._shared.new_lengths)
        total_B1 = tape.op("Add", [past_B1, new_B1])
        last_B1 = tape.op("Max", [tape.op("Sub", [total_B1, one]), zero])
        return tape.op(
            "Min",
            [tape.op("Add", [past_B1, offsets_S]), last_B1],
            output=ir.val(POSITION_IDS, ir.DataType.INT64, ("B", "S")),
        )

    def _column(self, tape: ir.tape.Tape, lengths_B: ir.Value) -> ir.Value:
        """[B] int32 to [B, 1] int64."""
        long_B = tape.op("Cast", [lengths_B], {"to": ir.DataType.INT64})
        return tape.op("Unsqueeze", [long_B, integers(self._main, [-1])])
