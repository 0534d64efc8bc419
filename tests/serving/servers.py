"""Servers on loopback ports, in a thread of the test."""

import threading
import time
from contextlib import contextmanager

from gear_trt.serving.app import Settings, create_app
from gear_trt.serving.limits import Limits
from gear_trt.serving.server import bind, server_of, url_of
from tests.runtime.folders import MAX_CONTEXT

LIMITS = Limits(body_bytes=10_000, prompt_tokens=MAX_CONTEXT, answers=4)


@contextmanager
def serving(scheduler, *, limits=LIMITS, api_key=None, drain_seconds=5, name="toy"):
    """Serve a scheduler; yields the address."""
    app = create_app(scheduler, Settings(model_name=name, limits=limits, api_key=api_key))
    server = server_of(app, drain_seconds=drain_seconds, access_log=False)
    with bind("127.0.0.1", 0) as listening:
        listening.listen()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield url_of(listening)
        finally:
            server.should_exit = True
            thread.join(timeout=60)
            assert not thread.is_alive()


def wait_until(condition, seconds=60.0):
    """Wait for something that another thread does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
