"""Both memories move rows alike, and on a device all of it is queued where the steps are."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gear_trt.errors import ErrorCode, GearError
from gear_trt.runtime import prefix_file
from gear_trt.runtime.memory import DeviceMemory, HostMemory
from gear_trt.runtime.paged_engine import PagedEngine
from tests.runtime.device import OPEN, HostQueue, device_model
from tests.runtime.paged import OTHER, TEXT, new_cache, open_sequence, run

ROWS = np.random.default_rng(0).normal(size=(3, 2, 2, 6, 4)).astype(np.float16)


@pytest.fixture(params=["host", "device"])
def memory(request):
    return HostMemory() if request.param == "host" else DeviceMemory(HostQueue())


@pytest.fixture
def rows(memory):
    rows = memory.zeros(ROWS.shape, "float16")
    memory.write(rows, ROWS)
    return rows


@pytest.mark.parametrize("where", [slice(1, 3), [2, 0], np.array([1], np.int32), []])
def test_some_rows_go_to_the_host_and_back(memory, rows, where):
    got = memory.read(rows, where)
    assert isinstance(got, np.ndarray)
    np.testing.assert_array_equal(got, ROWS[where])
    want = ROWS.copy()
    want[where] = 7 * ROWS[where]
    memory.write(rows, 7 * ROWS[where], where)
    np.testing.assert_array_equal(memory.read(rows), want)


def test_buffer_rows_are_kept_among_the_words_of_a_page(memory, rows):
    pool = memory.zeros((2, 2, 16), "int32")
    kept = rows[1, :, :, 2:5]
    page = pool[1].view(rows.dtype)[:, :24].reshape(kept.shape)
    memory.copy([(kept, page)])
    words = np.zeros((2, 2, 16), np.int32)
    words.view(np.float16)[1, :, :24] = ROWS[1, :, :, 2:5].reshape(2, 24)
    np.testing.assert_array_equal(memory.read(pool), words)
    memory.write(rows, 0 * ROWS)
    memory.copy([(page, kept), (rows[1], rows[2])])
    want = 0 * ROWS
    want[1:, :, :, 2:5] = ROWS[1, :, :, 2:5]
    np.testing.assert_array_equal(memory.read(rows), want)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_values_that_are_not_finite_are_found(memory, rows, value):
    assert memory.all_finite([])
    assert memory.all_finite([rows, rows[:, :0]])
    rows[1, 1, 0, 3, 2] = value
    assert not memory.all_finite([rows[0], rows[1]])
    assert memory.all_finite([rows[0], rows[1, :, :, :3]])


def test_a_paged_cache_that_does_not_fit_the_device_is_refused(toy_folder, monkeypatch):
    def zeros(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "zeros", zeros)
    with pytest.raises(GearError, match="less cache") as caught:
        new_cache(device_model(toy_folder), num_pages=20, slots=4)
    assert caught.value.code is ErrorCode.OUT_OF_MEMORY


# --- A device's order -----------------------------------------------------------------------------


class OutOfTurn(TorchDispatchMode):
    """Notes the work on tensors that is not queued where the steps are; making a view is none."""

    def __init__(self, queue):
        super().__init__()
        self.queue = queue
        self.seen = set()
        self.calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += 1
        if not self.queue.is_active and not function.is_view:
            self.seen.add(str(function))
        return function(*args, **(kwargs or {}))


def test_all_work_on_a_device_is_queued_where_the_steps_are(toy_folder, tmp_path):
    model = device_model(toy_folder)
    with OutOfTurn(model.backend.queue) as mode:
        engine = PagedEngine(model, new_cache(model, num_pages=20, slots=4))
        first = open_sequence(engine, [*TEXT[:140], *OTHER[:30]], mark=140)
        run(engine, first)
        again = open_sequence(engine, [*TEXT[:140], *OTHER[50:90]], mark=140)
        assert engine.cache.extend(again) == 140
        run(engine, again)
        assert engine.cache.fork(again, again.plan)
        length = prefix_file.save(engine.cache, tmp_path / "prefix", TEXT[:140])
        other = new_cache(model, num_pages=20, slots=4)
        assert len(prefix_file.load(other, tmp_path / "prefix")) == length
        other.check()
    assert mode.calls > 100
    assert mode.seen == set()


def test_only_logits_that_choose_a_token_come_to_the_host(toy_folder):
    model = OPEN["device"](toy_folder)
    engine = PagedEngine(model, new_cache(model, num_pages=20, slots=4))
    long, short = (open_sequence(engine, TEXT[:length]) for length in (140, 70))
    downloads, vocab_size = model.backend.queue.downloads, model.manifest.model.vocab_size
    wanted = []
    for rows in ([long, short], [long, short], [long]):
        assert all(map(engine.cache.reserve, rows))
        wanted.append([logits_V is not None for logits_V in engine.step(rows)])
    assert wanted == [[False, False], [False, True], [True]]
    assert downloads == [(1, vocab_size)] * 2
    for one in (long, short):
        one.plan.tokens.append(7)
    assert all(logits_V.shape == (vocab_size,) for logits_V in engine.step([long, short]))
    assert downloads[2:] == [(2, 1, vocab_size)]


def test_sharing_and_forking_go_round_the_host(toy_folder, monkeypatch):
    model = device_model(toy_folder)
    engine = PagedEngine(model, new_cache(model, num_pages=20, slots=4))
    for name in ("read", "write"):
        monkeypatch.setattr(model.backend.memory, name, None)
    run(engine, open_sequence(engine, [*TEXT[:140], *OTHER[:30]], mark=140))
    again = open_sequence(engine, [*TEXT[:140], *OTHER[50:90]], mark=140)
    assert engine.cache.extend(again) == 140
    assert engine.cache.fork(again, again.plan)
    engine.cache.check()
