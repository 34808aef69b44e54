"""What is done with a request: checked, put in the queue, waited for. No HTTP but its status numbers."""

import asyncio
import math
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from lora_hf.adapters.layer import check_adapter_name
from lora_hf.adapters.saved_adapter import SavedAdapter
from lora_hf.errors import UserError, did_you_mean
from lora_hf.serving.batching import Batcher, Closed, Full
from lora_hf.serving.engine import Engine, Job
from lora_hf.serving.limits import Limits
from lora_hf.serving.metrics import Metrics
from lora_hf.serving.schemas import Answer, Ask


class Refused(Exception):
    """A request that is not answered as it is; `detail` says why and what would do."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers


class Service:
    """One engine, its queue and its figures; everything here runs on the event loop's thread."""

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self.engine, self.limits = engine, limits
        self.batcher = Batcher(self._write, engine.alike, limits.max_batch, limits.max_wait, limits.max_queue)
        self.metrics = Metrics(lambda: self.batcher.waiting, lambda: len(engine.names))
        self._coming: set[str] = set()

    async def summarize(self, ask: Ask) -> Answer:
        """The summary of a dialogue.

        Raises:
            Refused: 404 no such adapter; 413 too long; 422 more than is allowed; 503 the queue is full;
                504 not in time.
        """
        start, status = time.perf_counter(), 500
        label = (ask.adapter or "") if ask.adapter in self.engine.adapters else ""
        try:
            job, truncated = self._job(ask)
            summary: str = await self._within(self._submit(job))
            status = 200
        except Refused as refused:
            status = refused.status
            raise
        finally:
            seconds = time.perf_counter() - start
            self.metrics.requests.labels(label, str(status)).inc()
            self.metrics.seconds.observe(seconds)
        return Answer(summary=summary, adapter=ask.adapter, truncated=truncated, seconds=round(seconds, 4))

    def refused(self, path: str, status: int) -> None:
        """Count a request for a summary that is refused before it is one."""
        if path == "/summarize":
            self.metrics.requests.labels("", str(status)).inc()

    def _job(self, ask: Ask) -> tuple[Job, bool]:
        limits = self.limits
        if len(ask.dialogue) > limits.max_chars:
            raise Refused(413, f"dialogue: {len(ask.dialogue):,} characters, of {limits.max_chars:,} at most")
        for name, most in (("num_beams", limits.max_beams), ("max_new_tokens", limits.max_new_tokens)):
            if (value := getattr(ask, name)) and value > most:
                raise Refused(422, f"{name}={value} is more than this server's {most}")
        if ask.adapter not in self.engine.adapters:
            raise self._unknown(str(ask.adapter))
        served = self.engine.adapters[ask.adapter]
        ids, truncated = self.engine.encode(ask.adapter, ask.dialogue)
        if truncated and not ask.truncate:
            raise Refused(
                413,
                f"dialogue: longer than the {served.data.max_source_length} tokens, prompt included, that "
                'the model was trained with; shorten it, or let it be cut by "truncate": true',
            )
        new = min(ask.max_new_tokens or served.max_new_tokens, limits.max_new_tokens)
        return Job(ask.adapter, ids, new, ask.num_beams), truncated

    def _unknown(self, name: str) -> Refused:
        names = self.engine.names
        return Refused(404, f"no adapter {name!r}; loaded are {names}.{did_you_mean(name, names)}")

    def _submit(self, job: Job) -> "Future[Any]":
        try:
            return self.batcher.submit(job)
        except Full:
            batches = math.ceil(self.limits.max_queue / self.limits.max_batch)
            seconds = max(1, math.ceil(batches * self.batcher.seconds))
            detail = f"{self.limits.max_queue} requests wait already; try again in {seconds} s"
            raise Refused(503, detail, {"Retry-After": str(seconds)}) from None
        except Closed:
            raise Refused(503, "the server is about to end", {"Retry-After": "10"}) from None

    async def _within(self, future: "Future[Any]") -> Any:
        """The result, within the time that a request may take; one that still waits then is dropped."""
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.limits.timeout)
        except TimeoutError:
            raise Refused(504, f"not done within {self.limits.timeout:g} s") from None

    def _write(self, jobs: list[Job]) -> list[str]:
        start = time.perf_counter()
        texts = self.engine.write(jobs)
        self.metrics.batch_seconds.observe(time.perf_counter() - start)
        self.metrics.batch_rows.observe(len(jobs))
        self.metrics.batch_adapters.observe(len({job.adapter for job in jobs}))
        return texts

    async def load(self, name: str, path: str) -> None:
        """Add an adapter from a folder below the one that adapters may come from.

        Raises:
            Refused: 403 from elsewhere; 409 the name is taken; 422 it is no adapter of this base.
        """
        folder = self._allowed(path)
        if name in self.engine.adapters or name in self._coming:
            raise Refused(409, f"there is an adapter {name!r}; unload it, or take another name")
        self._coming.add(name)
        try:
            check_adapter_name(name)
            await asyncio.wrap_future(
                self.batcher.call(lambda: self.engine.load(name, SavedAdapter(folder, path)))
            )
        except UserError as error:
            raise Refused(422, str(error)) from None
        finally:
            self._coming.discard(name)

    def _allowed(self, path: str) -> Path:
        root = self.limits.adapters_dir
        if root is None:
            raise Refused(403, "adapters are loaded at the start only; --adapters-dir says from where later")
        folder = (root / path).resolve()
        if not folder.is_relative_to(root.resolve()):
            raise Refused(403, f"path: {path!r} is not below the server's folder of adapters")
        return folder

    async def unload(self, name: str) -> None:
        """Take an adapter off, once the requests for it that wait are answered; new ones are refused at once.

        Raises:
            Refused: 404 no such adapter.
        """
        if name not in self.engine.names:
            raise self._unknown(name)
        self._coming.add(name)  # it goes, but its name is not free before it is gone
        del self.engine.adapters[name]
        try:
            await asyncio.wrap_future(self.batcher.call(lambda: self.engine.unload(name)))
        finally:
            self._coming.discard(name)

    def close(self) -> None:
        """Finish what waits, and end."""
        self.batcher.close()
        self.engine.close()
