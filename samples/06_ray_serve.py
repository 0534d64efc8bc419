"""Scale the server over replicas and nodes: prompts that begin alike go to the same replica.

Each replica is a whole `gear serve` with a cache of its own, so a conversation finds its pages only
where it was before. Needs `pip install "ray[serve]" "gear-trt[cpu,serve]"` on every node, and the
engine folder at the same path.

Run: python samples/06_ray_serve.py ENGINE_FOLDER [REPLICAS [PORT]]
"""

import asyncio
import hashlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica
from starlette.requests import Request
from starlette.responses import StreamingResponse

from gear_trt.serving import Scheduler
from gear_trt.serving.app import Settings, create_app
from gear_trt.serving.limits import Limits

PREFIX_CHARACTERS = 256
LIMITS = Limits(body_bytes=1 << 20, prompt_tokens=None, answers=256)
CACHE_BYTES = 256 << 20


def prefix_of(body: bytes) -> str:
    """Return how the prompt of a request begins; empty for anything that is no completion."""
    try:
        request = json.loads(body)
        prompt = request.get("messages") or request.get("prompt")
    except (ValueError, AttributeError):
        return ""
    return json.dumps(prompt)[:PREFIX_CHARACTERS] if prompt else ""


class PrefixRouter(RequestRouter):
    """Prefers the replica that a prefix hashes to, then the next ones where that one is full.

    Every replica has a weight for every prefix (rendezvous hashing), so when a replica comes or
    goes only its own prefixes move.
    """

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Return the replicas, the best first."""
        prefix = pending_request.kwargs["prefix"] if pending_request else ""

        def weight(replica: RunningReplica) -> bytes:
            return hashlib.sha256(f"{replica.replica_id.unique_id} {prefix}".encode()).digest()

        return [[replica] for replica in sorted(candidate_replicas, key=weight)]


@serve.deployment(
    max_ongoing_requests=LIMITS.answers,
    ray_actor_options={"num_cpus": 1},
    request_router_config=RequestRouterConfig(request_router_class=PrefixRouter),
)
class Replica:
    """One server, without a socket."""

    def __init__(self, folder: str) -> None:
        self.scheduler = Scheduler(folder, max_cache_bytes=CACHE_BYTES, threads=1)
        self.app = create_app(self.scheduler, Settings(Path(folder).name, LIMITS))
        self.name = serve.get_replica_context().replica_id.unique_id.encode()

    async def answer(self, scope: dict, body: bytes, *, prefix: str) -> AsyncIterator[dict]:
        """Yield the ASGI messages that answer a request; `prefix` is for the router."""
        messages: asyncio.Queue[dict | None] = asyncio.Queue()
        request = asyncio.Queue()
        request.put_nowait({"type": "http.request", "body": body})
        run = asyncio.create_task(self.app(scope, request.get, messages.put))
        run.add_done_callback(lambda _: messages.put_nowait(None))
        try:
            while message := await messages.get():
                if message["type"] == "http.response.start":
                    message["headers"].append((b"x-replica", self.name))
                yield message
        finally:
            run.cancel()

    def __del__(self) -> None:
        """End the scheduler's thread with the replica."""
        self.scheduler.close()


@serve.deployment(max_ongoing_requests=10_000, ray_actor_options={"num_cpus": 0})
class Front:
    """Passes requests on to the replicas, and their answers back as they come."""

    def __init__(self, replicas: DeploymentHandle) -> None:
        self.answer = replicas.options(stream=True).answer

    async def __call__(self, request: Request) -> StreamingResponse:
        """Answer one HTTP request."""
        body = await request.body()
        fields = ("type", "method", "path", "raw_path", "query_string", "headers", "http_version")
        scope = {name: request.scope[name] for name in fields if name in request.scope}
        messages = self.answer.remote(scope, body, prefix=prefix_of(body))
        start = await anext(messages)

        async def rest() -> AsyncIterator[bytes]:
            try:
                async for message in messages:
                    yield message["body"]
            finally:
                messages.cancel()  # where the client has left, the replica stops too

        response = StreamingResponse(rest(), start["status"])
        response.raw_headers = list(start["headers"])
        return response


def main(folder: str, replicas: str = "2", port: str = "8000") -> None:
    """Serve until interrupted.

    Args:
        folder: An engine folder that `gear-export` wrote.
        replicas: How many, over all nodes of the Ray cluster.
        port: Of the address that clients ask, on 127.0.0.1.
    """
    serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
    servers = Replica.options(num_replicas=int(replicas)).bind(str(Path(folder).resolve()))
    serve.run(Front.bind(servers), blocking=True)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3, 4):
        sys.exit(__doc__)
    main(*sys.argv[1:])
