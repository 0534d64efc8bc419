"""Rows as the benchmarks make them."""

from gear_trt.bench.records import ModelRow, OperatorRow


def operator_row(**changes):
    fields = {
        "candidate": "gear k4v4",
        "engine": "gear",
        "host": "onnxruntime",
        "cache": "k4v4",
        "config": {"key_bits": 4},
        "instruction_set": "avx2",
        "heads": "4/2x32",
        "context": 1024,
        "batch": 1,
        "new_tokens": 1,
        "threads": 1,
        "seconds": 0.001,
        "seconds_min": 0.0009,
        "seconds_mad": 0.0001,
        "rounds": 5,
        "baseline": "ort-fp32",
        "speedup": 4.0,
        "bytes_per_token": 73.0,
        "other_cores": 0.0,
        "nmse": 0.01,
        "read_bytes": 74752,
        "bytes_per_second": 74752000.0,
        "stream_bytes_per_second": 1e10,
        "compression_share": 0.01,
        "copies": 2,
        "round_bytes": 1000000,
        "cache_state": "L3",
        "slower_forms": {},
    }
    return OperatorRow(**{**fields, **changes})


def model_row(**changes):
    fields = {
        "candidate": "gear k4v4",
        "engine": "gear",
        "cache": "k4v4",
        "config": {"key_bits": 4},
        "model": "toy",
        "context": 512,
        "threads": 1,
        "tokens": 80,
        "seconds": 0.05,
        "seconds_min": 0.04,
        "seconds_mad": 0.001,
        "rounds": 16,
        "baseline": "ort-fp32",
        "speedup": 1.5,
        "prefill_tokens_per_second": 300.0,
        "decode_tokens_per_second": 20.0,
        "seconds_empty": 0.03,
        "seconds_of_context": 0.02,
        "context_speedup": 4.0,
        "bytes_per_token": 73.0,
        "other_cores": 0.0,
        "cache_bytes": 37376,
        "peak_memory_bytes": 1 << 28,
        "compression_share": 0.01,
        "prefill_compression_share": 0.02,
    }
    return ModelRow(**{**fields, **changes})
