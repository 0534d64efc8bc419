"""One GearAttention node in a session, beside the reference that says what it must give."""

import numpy as np
import onnxruntime as ort

from gear_trt import native
from gear_trt.bench.graphs import one_node_model
from gear_trt.reference import ReferenceCache, attend
from gear_trt.runtime.manifest import LayerFacts
from gear_trt.spec import CompressionConfig, graph

N, H, D = 4, 2, 32


def layer(config: CompressionConfig) -> LayerFacts:
    return LayerFacts(num_heads=N, num_kv_heads=H, head_dim=D, config=config)


def open_session(model, *, threads=1, library=None):
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library or native.library_path()))
    return ort.InferenceSession(model.SerializeToString(), options)


class Op:
    """The op's own state and the reference's, advanced together.

    `slots` and `page_table` are deliberately not in order.
    """

    def __init__(self, config, *, batch=1, pages=3, dtype="float32", threads=1, library=None):
        model = one_node_model(layer(config), dtype=dtype)
        self.session = open_session(model, threads=threads, library=library)
        self.dtype = dtype
        self.state = self._new_state(config, batch, pages)
        self.reference = self._new_state(config, batch, pages)
        self.page_table = np.arange(batch * pages, dtype=np.int32)[::-1].reshape(batch, pages)
        self.page_table = np.ascontiguousarray(self.page_table)
        self.slots = np.arange(batch, dtype=np.int32)[::-1].copy()
        self.lengths = np.zeros(batch, np.int32)
        self._rng = np.random.default_rng(0)

    def _new_state(self, config, batch, pages):
        return ReferenceCache(
            config, num_pages=batch * pages, slots=batch, num_kv_heads=H, head_dim=D
        )

    def new_tokens(self, seq_len):
        """Return query, key and value [B, S, heads * D] in the op's element type."""
        batch = len(self.slots)
        return {
            name: self._rng.normal(size=(batch, seq_len, heads * D)).astype(self.dtype)
            for name, heads in (("query", N), ("key", H), ("value", H))
        }

    def feeds(self, tokens, new_lengths):
        return {
            **tokens,
            graph.page_pool_input(0): self.state.page_pool,
            graph.residual_buffer_input(0): self.state.residual_buffer,
            graph.PAGE_TABLE: self.page_table,
            graph.SLOTS: self.slots,
            graph.PAST_LENGTHS: self.lengths,
            graph.NEW_LENGTHS: new_lengths,
        }

    def bind(self, tokens, new_lengths):
        """Bind the state as both input and output."""
        binding = self.session.io_binding()
        self.bound = self.feeds(tokens, new_lengths)  # a binding does not keep its memory alive
        for name, array in self.bound.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        for name, array in (
            (graph.page_pool_output(0), self.state.page_pool),
            (graph.residual_buffer_output(0), self.state.residual_buffer),
        ):
            binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))
        binding.bind_output("output")
        return binding

    def run(self, new_lengths):
        """Run op and reference over the same random tokens; return (got, want) [B, S, N·D]."""
        new_lengths = np.array(new_lengths, np.int32)
        tokens = self.new_tokens(int(new_lengths.max()))
        binding = self.bind(tokens, new_lengths)
        self.session.run_with_iobinding(binding)
        got = binding.get_outputs()[-1].numpy()
        want = self.run_reference(tokens, new_lengths)
        self.lengths += new_lengths
        return got.astype(np.float32), want

    def run_reference(self, tokens, new_lengths):
        query, key, value = (
            tokens[name].astype(np.float32).reshape(*tokens[name].shape[:2], -1, D)
            for name in ("query", "key", "value")
        )
        where = {
            "page_table": self.page_table,
            "slots": self.slots,
            "past_lengths": self.lengths,
            "new_lengths": new_lengths,
        }
        want = attend(query, key, value, self.reference, scale=D**-0.5, **where)
        self.reference.append(key, value, **where)
        return want.reshape(tokens["query"].shape)
