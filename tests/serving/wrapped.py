"""Backends between the batcher and a model's own."""


class Wrapped:
    """The model's backend and its graph; what a test wants to be otherwise, it overrides."""

    def __init__(self, backend):
        self.backend = backend

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def bind(self, cache):
        self.graph = self.backend.bind(cache)
        return self
