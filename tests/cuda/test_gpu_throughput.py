"""The whole-model benchmark on small sizes: all but CUDA graphs and the memory of a GPU."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu_throughput, gpu_timing
from benchmarks.gpu_caches import HalfCache, PackedCache
from benchmarks.gpu_decoder import LLAMA_3_8B, Decoder, DecoderShape
from benchmarks.gpu_history import nmse, random_history
from benchmarks.gpu_report import throughput_table
from benchmarks.gpu_shapes import Shape
from benchmarks.gpu_throughput import (
    CACHES,
    COMMON,
    FP16,
    LARGEST,
    PAPER_LOAD,
    PRESETS,
    Load,
    largest_batch,
)
from benchmarks.gpu_timing import Machine, time_clock, time_steps
from gear_trt.spec import CompressionConfig

CPU = torch.device("cpu")
SHAPE = DecoderShape(
    num_layers=2, width=64, num_heads=4, kv_heads=2, head_dim=64, ffn_width=96, vocab_size=101
)
BATCH = 2


@pytest.fixture(autouse=True)
def same_weights():
    torch.manual_seed(0)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- The decoder ----------------------------------------------------------------------------------


def decode(decoder, cache, tokens_TB):
    """Logits [T, B, V] of tokens that are given."""
    return torch.stack([decoder.logits(tokens_B, cache) for tokens_B in tokens_TB]).float()


def random_tokens(count):
    return torch.randint(SHAPE.vocab_size, (count, BATCH), generator=torch.manual_seed(1))


def llama_of(decoder):
    """The same weights in transformers' Llama, in FP32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=SHAPE.vocab_size,
        hidden_size=SHAPE.width,
        intermediate_size=SHAPE.ffn_width,
        num_hidden_layers=SHAPE.num_layers,
        num_attention_heads=SHAPE.num_heads,
        num_key_value_heads=SHAPE.kv_heads,
        head_dim=SHAPE.head_dim,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        rms_norm_eps=1e-5,
    )
    model = LlamaForCausalLM(config).eval()
    model.model.embed_tokens.weight.data = decoder._embedding.float()
    model.lm_head.weight.data = decoder._head.float()
    widths = [heads * SHAPE.head_dim for heads in (SHAPE.num_heads, 2, 2)]
    for theirs, ours in zip(model.model.layers, decoder._layers, strict=True):
        attention, mlp = theirs.self_attn, theirs.mlp
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        for projection, weight in zip(projections, ours.qkv.split(widths), strict=True):
            projection.weight.data = weight.float()
        attention.o_proj.weight.data = ours.output.float()
        mlp.gate_proj.weight.data, mlp.up_proj.weight.data = ours.gate_up.float().chunk(2)
        mlp.down_proj.weight.data = ours.down.float()
    return model


def test_the_decoder_is_a_llama():
    decoder, tokens_TB = Decoder(SHAPE, 20, CPU), random_tokens(20)
    found = decode(decoder, HalfCache(SHAPE, BATCH, 20, CPU), tokens_TB)
    with torch.no_grad():
        expected = llama_of(decoder)(tokens_TB.T).logits.transpose(0, 1)
    assert nmse(found, expected) < 1e-5


def test_a_step_puts_the_likeliest_tokens_in_the_place_of_the_old_ones():
    decoder, tokens_TB = Decoder(SHAPE, 4, CPU), random_tokens(2)
    expected = decode(decoder, HalfCache(SHAPE, BATCH, 4, CPU), tokens_TB[:1])[0].argmax(dim=-1)
    tokens_B = tokens_TB[0].clone()
    decoder.step(tokens_B, HalfCache(SHAPE, BATCH, 4, CPU))
    assert torch.equal(tokens_B, expected)


def test_the_shape_is_llama_3_8b():
    matrices = 4096 * (32 + 2 * 8) * 128 + 32 * 128 * 4096 + 3 * 4096 * 14336
    parameters = 32 * (matrices + 2 * 4096) + 2 * 128256 * 4096 + 4096
    assert parameters == 8_030_261_248  # as published
    decoder = Decoder(LLAMA_3_8B, 1, torch.device("meta"))
    assert decoder.nbytes == 2 * parameters


# --- Caches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("preset", "error"), [("fp16", 1e-5), ("k4v4", 0.05)])
def test_both_caches_decode_the_same(preset, error):
    decoder, tokens_TB = Decoder(SHAPE, 70, CPU), random_tokens(70)
    config = CompressionConfig.preset(preset)
    exact = decode(decoder, HalfCache(SHAPE, BATCH, 70, CPU), tokens_TB)
    packed = decode(decoder, PackedCache(config, SHAPE, BATCH, 70, CPU), tokens_TB)
    assert nmse(packed[-1], exact[-1]) < error


@pytest.mark.parametrize("name", CACHES)
def test_a_history_goes_on_where_it_ends(name, emulated):
    """70 tokens: with a full page and waiting tokens, as if each had been decoded."""
    history = random_history(Shape(1, 70, 2, SHAPE.kv_heads, SHAPE.head_dim), 70, CPU)
    filled, stepped = (CACHES[name](SHAPE, BATCH, 72, CPU) for _ in range(2))
    filled.fill(history)
    for token in range(70):
        for layer in range(SHAPE.num_layers):
            key, value = (
                side[:, :, token : token + 1].transpose(1, 2).repeat(BATCH, 1, 1, 1)
                for side in (history.keys_BHTD, history.values_BHTD)
            )
            stepped.attend(layer, key.repeat(1, 1, 2, 1), key, value)
        stepped.advance()
    assert torch.equal(filled.past_B, stepped.past_B)
    query, key, value = (torch.randn(BATCH, 1, heads, 64).half() for heads in (4, 2, 2))
    for layer in range(SHAPE.num_layers):
        error = nmse(*(cache.attend(layer, query, key, value) for cache in (filled, stepped)))
        assert error < 1e-5


def test_what_a_cache_takes_is_known_before_it_is_made():
    for make in CACHES.values():
        assert make(SHAPE, 3, 150, torch.device("meta")).nbytes == make(SHAPE, 3, 150, CPU).nbytes
    per_token = 2 * 32 * 8 * 128 * 2
    assert CACHES[FP16](LLAMA_3_8B, 1, 1500, torch.device("meta")).nbytes == 1500 * per_token


# --- The load and the memories --------------------------------------------------------------------


def test_the_timed_steps_fill_whole_pages_and_have_the_mean_context_of_the_generation():
    for preset in PRESETS:
        assert PAPER_LOAD.steps % CompressionConfig.preset(preset).chunk == 0
    assert PAPER_LOAD.start + PAPER_LOAD.steps / 2 == 1000 + 500 / 2


def test_memories_are_a_small_card_and_this_one():
    gib = 2**30
    assert gpu_throughput.budgets(80 * gib) == {"24 GiB": 24 * gib, "card": 76 * gib}
    assert gpu_throughput.budgets(24 * gib) == {"card": 20 * gib}


# --- Steps in CUDA graphs -------------------------------------------------------------------------


class FakeGraph:
    """Replays what was captured: its step is noted when it runs, not when it is captured."""

    def __init__(self):
        self.length = None

    def replay(self):
        FakeGraph.replayed.append(self.length)


class FakeEvent:
    """Says that a replay takes a millisecond."""

    def record(self):
        self.after = len(FakeGraph.replayed)

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return float(end.after - self.after)


@pytest.fixture
def fake_cuda(monkeypatch):
    """The parts of torch.cuda that captures need; a step's length counts when it is captured."""
    captured = []

    @contextmanager
    def capture(graph, pool, stream):
        yield
        graph.length = captured[-1]

    stream = SimpleNamespace(wait_stream=lambda other: None)
    FakeGraph.replayed = []
    for name, fake in {
        "Stream": lambda: stream,
        "stream": lambda stream: nullcontext(),
        "current_stream": lambda: stream,
        "graph_pool_handle": lambda: (0, 1),
        "CUDAGraph": FakeGraph,
        "graph": capture,
        "Event": lambda enable_timing: FakeEvent(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    gpu_timing._capture_stream.cache_clear()
    yield captured
    gpu_timing._capture_stream.cache_clear()


@pytest.mark.parametrize(
    ("is_replayable", "replayed"),
    [(False, [10, 11, 12, 13, 10, 11, 12, 13]), (True, [10, 10, 10, 10, 10])],
)
def test_captured_steps_have_the_lengths_of_their_turn(fake_cuda, is_replayable, replayed):
    """First every graph once, then the steps that are timed."""
    length = 0

    def step():
        nonlocal length
        fake_cuda.append(length)
        length += 1

    def rewind():
        nonlocal length
        length = 10

    times = time_steps(torch.device("cuda"), step, rewind, 4, is_replayable=is_replayable)
    assert times == [1.0] * 4
    assert FakeGraph.replayed == replayed
    assert length == 10, "a replay runs no Python"


# --- Rows -----------------------------------------------------------------------------------------

LOAD = Load(prompt=124, generated=16, steps=8)  # a page of k4v4 becomes full at 132 tokens
MACHINE = Machine(CPU, "cpu", 1 << 16, time_clock)


def limit_for(sequences):
    """Bytes that hold so many sequences with an FP16 cache."""
    cache = HalfCache(SHAPE, 1, LOAD.tokens, CPU).nbytes
    weights = Decoder(SHAPE, LOAD.tokens, CPU).nbytes
    each = cache + SHAPE.activation_bytes
    return weights + gpu_throughput._RESERVE_BYTES + sequences * each + each // 2


def measure(memories):
    return list(gpu_throughput.throughput_rows(MACHINE, SHAPE, LOAD, memories))


@pytest.fixture(scope="module")
def rows(emulated):
    return measure({"small": limit_for(3)})


def rows_at(rows, which):
    return {row["config"]: row for row in rows if row["which_batch"] == which}


def test_every_cache_is_measured_at_its_largest_batch_and_at_that_of_fp16(rows):
    largest, common = rows_at(rows, LARGEST), rows_at(rows, COMMON)
    assert set(largest) == {FP16, *PRESETS}
    assert set(common) == set(PRESETS)
    assert largest[FP16]["batch"] == 3
    assert {row["batch"] for row in common.values()} == {3}


def test_rows_say_how_fast_how_large_and_how_exact(rows):
    fp16 = rows_at(rows, LARGEST)[FP16]
    assert (fp16["ratio"], fp16["memory_ratio"]) == (1.0, 1.0)
    assert fp16["nmse"] < 1e-6
    for row in rows:
        assert row["tokens_per_second"] == pytest.approx(1e3 * row["batch"] / row["ms"])
        assert row["ratio"] == row["tokens_per_second"] / fp16["tokens_per_second"]
        assert row["memory_ratio"] == fp16["peak_bytes"] / row["peak_bytes"]
        assert row["ms_longest"] >= row["ms"] > 0
        assert row["context"] == 132
        if row["config"] != FP16:
            assert 1e-5 < row["nmse"] < 0.5
    assert rows_at(rows, COMMON)["k4v4"]["nmse"] < rows_at(rows, COMMON)["k2v2"]["nmse"]


def test_the_largest_batch_fits_and_one_more_would_not():
    decoder, limit = Decoder(SHAPE, LOAD.tokens, CPU), limit_for(40)
    batches = {name: largest_batch(name, decoder, LOAD, limit) for name in CACHES}
    for name, batch in batches.items():
        each = CACHES[name](SHAPE, 1, LOAD.tokens, CPU).nbytes + SHAPE.activation_bytes
        free = limit - gpu_throughput._RESERVE_BYTES - decoder.nbytes
        assert batch * each <= free < (batch + 1) * each
    assert batches[FP16] == 40


def test_long_sequences_are_more_the_fewer_bits_they_have():
    meta = torch.device("meta")
    sizes = [CACHES[name](LLAMA_3_8B, 1, 1500, meta).nbytes for name in (FP16, "k4v4", "k2v2")]
    assert sizes == sorted(sizes, reverse=True)


def test_the_timed_steps_write_pages(emulated, monkeypatch):
    caches = []

    def kept(*args):
        caches.append(PackedCache(CompressionConfig.preset("k4v4"), *args))
        return caches[-1]

    monkeypatch.setitem(CACHES, "k4v4", kept)
    trial = gpu_throughput._Trial(MACHINE, Decoder(SHAPE, LOAD.tokens, CPU), LOAD)
    trial.row("k4v4", 2)
    assert caches[-1].past_B.tolist() == [LOAD.start + LOAD.steps] * 2
    assert all(bool(pool.any(dim=-1).all()) for pool in caches[-1]._pools)


def test_a_memory_without_room_is_left_out_aloud(emulated, capsys):
    assert measure({"none": 1000}) == []
    assert "not measured in none" in capsys.readouterr().out


def test_a_cache_that_does_not_fit_after_all_costs_its_own_row_only(emulated, monkeypatch):
    def refuse(*_):
        raise torch.OutOfMemoryError("of 2 GiB")

    make = CACHES["k2v2"]
    monkeypatch.setitem(CACHES, "k2v2", lambda *args: refuse() if args[-1] == CPU else make(*args))
    found = measure({"small": limit_for(1)})
    failed = [row for row in found if "failure" in row]
    assert {row["config"] for row in failed} == {"k2v2"}
    assert len(found) == 1 + 2 * len(PRESETS)
    assert "of 2 GiB" in throughput_table(found)


def test_the_table_names_every_row(rows):
    table = throughput_table(rows)
    assert len(table.splitlines()) == 2 + len(rows)
    assert table.count("| paper-2bit |") == 2
    assert f" of {limit_for(3) / 1e9:.1f} |" in table
    assert throughput_table([]) == ""
