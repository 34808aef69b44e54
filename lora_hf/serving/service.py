"""Handle requests: check, queue and await them. HTTP appears only as status numbers."""

import asyncio
import logging
import math
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from lora_hf.adapters.layer import check_adapter_name
from lora_hf.adapters.saved_adapter import SavedAdapter
from lora_hf.config.prediction import PredictionSettings
from lora_hf.errors import OutOfMemory, UserError, did_you_mean
from lora_hf.models.positions import positions_of
from lora_hf.serving.batching import Batcher, BatcherClosed, QueueFull
from lora_hf.serving.engine import Engine, Job
from lora_hf.serving.limits import Limits
from lora_hf.serving.metrics import Metrics
from lora_hf.serving.schemas import SummarizeRequest, SummarizeResponse

logger = logging.getLogger(__name__)


class RequestError(Exception):
    """A refused request; `detail` says why and what to do."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers


class Service:
    """An engine with its queue and its metrics; the methods run on the event loop's thread."""

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self.engine, self.limits = engine, limits
        self.batcher = Batcher(
            self._run, engine.batch_key, limits.max_batch, limits.max_wait, limits.max_queue
        )
        self.metrics = Metrics(lambda: self.batcher.waiting, lambda: len(engine.names))
        self._reserved: set[str] = set()
        for name in engine.names:
            self._report_limit(name)

    def _report_limit(self, name: str) -> None:
        """Log that an adapter writes less here than it was trained for."""
        own, most = self.engine.adapters[name].max_new_tokens, self.limits.max_new_tokens
        if own > most:
            logger.warning(
                "adapter %r was trained for summaries of %d tokens; --max-new-tokens %d cuts them",
                *(name, own, most),
            )

    async def summarize(self, request: SummarizeRequest) -> SummarizeResponse:
        """Summarize a dialogue.

        Raises:
            RequestError: 404 no such adapter; 413 too long; 422 over a limit; 503 the queue is full; 504 too
                late.
        """
        start, status = time.perf_counter(), 500
        label = (request.adapter or "") if request.adapter in self.engine.adapters else ""
        try:
            job, truncated = self._job(request)
            summary: str = await self._within(self._submit(job))
            status = 200
        except OutOfMemory as error:  # of this job alone
            status = 503
            logger.warning("a request failed: %s", error)
            raise RequestError(503, "out of memory: send a shorter text or ask for fewer beams") from None
        except RequestError as error:
            status = error.status
            raise
        finally:
            seconds = time.perf_counter() - start
            self.metrics.requests.labels(label, str(status)).inc()
            self.metrics.seconds.observe(seconds)
        return SummarizeResponse(
            summary=summary, adapter=request.adapter, truncated=truncated, seconds=round(seconds, 4)
        )

    def count_refused(self, path: str, status: int) -> None:
        """Count a request for a summary that was refused before it reached `summarize`."""
        if path == "/summarize":
            self.metrics.requests.labels("", str(status)).inc()

    def _job(self, request: SummarizeRequest) -> tuple[Job, bool]:
        limits = self.limits
        if (length := len(request.dialogue)) > limits.max_chars:
            raise RequestError(
                413, f"dialogue: {length:,} characters; at most {limits.max_chars:,} are accepted"
            )
        for name, most in (("num_beams", limits.max_beams), ("max_new_tokens", limits.max_new_tokens)):
            if (value := getattr(request, name)) and value > most:
                raise RequestError(422, f"{name}={value} is more than this server's limit of {most}")
        _, positions = positions_of(self.engine.model.config)
        if positions and (value := request.max_new_tokens) and value > positions:
            raise RequestError(422, f"max_new_tokens={value} is more than the model's {positions} positions")
        if request.adapter not in self.engine.adapters:
            raise self._unknown(str(request.adapter))
        settings = self.engine.adapters[request.adapter]
        ids, truncated = self.engine.encode(request.adapter, request.dialogue)
        if truncated and not request.truncate:
            raise RequestError(
                413,
                f"dialogue: longer than the {settings.data.max_source_length} tokens, prompt included, that "
                'the model was trained with; shorten it, or send "truncate": true to have it cut',
            )
        return Job(request.adapter, ids, self._settings(settings, request)), truncated

    def _settings(self, settings: PredictionSettings, request: SummarizeRequest) -> PredictionSettings:
        """Return the adapter's settings with what the request asks for, within the server's limit."""
        new = min(request.max_new_tokens or settings.max_new_tokens, self.limits.max_new_tokens)
        changes: dict[str, Any] = {"max_new_tokens": new}
        changes["min_new_tokens"] = min(settings.generation.min_new_tokens, new)
        if request.num_beams is not None:
            changes["num_beams"] = request.num_beams
        return settings.changed("request", changes)

    def _unknown(self, name: str) -> RequestError:
        names = self.engine.names
        return RequestError(404, f"no adapter {name!r}; loaded are {names}.{did_you_mean(name, names)}")

    def _submit(self, job: Job) -> "Future[Any]":
        try:
            return self.batcher.submit(job)
        except QueueFull:
            batches = math.ceil(self.limits.max_queue / self.limits.max_batch)
            seconds = max(1, math.ceil(batches * self.batcher.seconds))
            detail = f"{self.limits.max_queue} requests are waiting; try again in {seconds} s"
            raise RequestError(503, detail, {"Retry-After": str(seconds)}) from None
        except BatcherClosed:
            raise RequestError(503, "the server is shutting down", {"Retry-After": "10"}) from None

    async def _within(self, future: "Future[Any]") -> Any:
        """Await a result within `timeout`; a request that still waits then is cancelled."""
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.limits.timeout)
        except TimeoutError:
            raise RequestError(504, f"not done within {self.limits.timeout:g} s") from None

    def _run(self, jobs: list[Job]) -> list[str]:
        start = time.perf_counter()
        texts = self.engine.generate_batch(jobs)
        self.metrics.batch_seconds.observe(time.perf_counter() - start)
        self.metrics.batch_rows.observe(len(jobs))
        self.metrics.batch_adapters.observe(len({job.adapter for job in jobs}))
        return texts

    async def load(self, name: str, path: str) -> None:
        """Load an adapter from a folder below `adapters_dir`.

        Raises:
            RequestError: 403 from elsewhere; 409 the name is taken; 422 not an adapter of this base.
        """
        folder = self._allowed(path)
        if name in self.engine.adapters or name in self._reserved:
            raise RequestError(409, f"adapter {name!r} exists; unload it, or choose another name")
        self._reserved.add(name)
        try:
            check_adapter_name(name)
            await asyncio.wrap_future(
                self.batcher.submit_task(lambda: self.engine.add_adapter(SavedAdapter(folder, path), name))
            )
            self._report_limit(name)
        except UserError as error:
            raise RequestError(422, str(error)) from None
        finally:
            self._reserved.discard(name)

    def _allowed(self, path: str) -> Path:
        root = self.limits.adapters_dir
        if root is None:
            raise RequestError(403, "this server loads no adapters over HTTP; start it with --adapters-dir")
        folder = (root / path).resolve()
        if not folder.is_relative_to(root.resolve()):
            raise RequestError(403, f"path: {path!r} is not below the server's folder of adapters")
        return folder

    async def unload(self, name: str) -> None:
        """Unload an adapter after the requests that wait for it; new ones are refused at once.

        Raises:
            RequestError: 404 no such adapter.
        """
        if name not in self.engine.names:
            raise self._unknown(name)
        self._reserved.add(name)  # the name is free only when the weights are gone
        del self.engine.adapters[name]
        try:
            await asyncio.wrap_future(self.batcher.submit_task(lambda: self.engine.remove_adapter(name)))
        finally:
            self._reserved.discard(name)

    def close(self) -> None:
        """Finish the waiting requests, then stop."""
        self.batcher.close()
        self.engine.close()
