"""Handle requests: check, queue and await them. HTTP appears only as status numbers."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lora_hf.adapters.layer import check_adapter_name
from lora_hf.adapters.saved_adapter import SavedAdapter
from lora_hf.config.prediction import PredictionSettings
from lora_hf.data.parts import Division
from lora_hf.errors import OutOfMemory, UserError, did_you_mean, path_hint
from lora_hf.models.positions import positions_of
from lora_hf.run_files import ADAPTER
from lora_hf.saved.inference import BASE
from lora_hf.serving.batching import Batcher, BatcherClosed, QueueFull
from lora_hf.serving.engine import Engine, Job, Written, joined
from lora_hf.serving.growing import GrowingText
from lora_hf.serving.limits import Limits
from lora_hf.serving.metrics import Metrics
from lora_hf.serving.refusals import RequestError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """What a request asks for, whatever the route; fields are called in errors as the request calls them."""

    texts: list[str]
    adapter: str | None = None
    num_beams: int | None = None
    max_new_tokens: int | None = None
    truncate: bool = False
    text_field: str = "dialogue"
    length_field: str = "max_new_tokens"
    adapter_field: str = "adapter"


@dataclass(frozen=True)
class Output:
    """What was written for a text."""

    written: Written
    prompt_tokens: int
    parts: int
    truncated: bool


@dataclass(frozen=True)
class Delta:
    """What is new of the output for a text."""

    index: int
    """Of the text in the request."""
    text: str
    output: Output | None = None
    """The whole, with the last delta."""


@dataclass(frozen=True)
class Prepared:
    """A text of a request, ready to be queued."""

    jobs: list[Job]
    truncated: bool

    def output(self, written: Sequence[Written]) -> Output:
        read = sum(len(job.ids) for job in self.jobs)
        return Output(joined(written), read, len(self.jobs), self.truncated)


class Service:
    """An engine with its queue and its metrics; the methods run on the event loop's thread."""

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self.engine, self.limits = engine, limits
        self.batcher = Batcher(
            self._run, engine.batch_key, limits.max_batch, limits.max_wait, limits.max_queue
        )
        self.metrics = Metrics(lambda: self.batcher.waiting, lambda: len(engine.names))
        self.started = int(time.time())
        self._tokenizing = ThreadPoolExecutor(1, "tokenizing")  # one: `Engine.encode` is for one thread
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

    async def write(self, asked: Asked) -> list[Output]:
        """Write what a request asks for; one output per text.

        Raises:
            RequestError: 404 no such adapter; 413 too long; 422 over a limit; 503 the queue is full; 504 too
                late.
        """
        with self._counted(asked):
            end = self._deadline()
            prepared = await self._prepared(asked, end)
            futures = self._submit([job for text in prepared for job in text.jobs])
            try:
                async with self._in_time(end):
                    done = iter(await asyncio.gather(*map(asyncio.wrap_future, futures)))
            finally:
                for future in futures:
                    future.cancel()  # those that wait still
            return [text.output([next(done) for _ in text.jobs]) for text in prepared]

    async def stream(self, asked: Asked) -> AsyncIterator[Delta]:
        """Yield the outputs as they grow; what fails before the first token is raised by the first step.

        Raises:
            RequestError: as `write`; 504 also in the middle of a text.
        """
        with self._counted(asked):
            end, loop = self._deadline(), asyncio.get_running_loop()
            prepared = await self._prepared(asked, end)
            news: asyncio.Queue[tuple[int, int, Any]] = asyncio.Queue()

            def put(index: int, part: int, what: Any) -> None:
                with suppress(RuntimeError):  # the server has ended: nobody reads it
                    loop.call_soon_threadsafe(news.put_nowait, (index, part, what))

            places = [(i, part) for i, text in enumerate(prepared) for part in range(len(text.jobs))]
            futures = self._submit(
                [replace(prepared[i].jobs[part], on_text=partial(put, i, part)) for i, part in places]
            )
            growing = [GrowingText(len(text.jobs)) for text in prepared]
            try:
                for place, future in zip(places, futures, strict=True):
                    future.add_done_callback(partial(put, *place))
                for _ in prepared:
                    written = None
                    while written is None:
                        async with self._in_time(end):
                            index, part, what = await news.get()
                        growing[index].update(part, what.result() if isinstance(what, Future) else what)
                        written, text = growing[index].written, growing[index].delta()
                        output = prepared[index].output(written) if written else None
                        if text or output:
                            yield Delta(index, text, output)
            finally:
                for future in futures:
                    future.cancel()

    @contextmanager
    def _counted(self, asked: Asked) -> Iterator[None]:
        """Count a request with its status and its duration."""
        start, status = time.perf_counter(), 500
        label = (asked.adapter or "") if asked.adapter in self.engine.adapters else ""
        try:
            yield
            status = 200
        except OutOfMemory as error:  # of this job alone
            status = 503
            logger.warning("a request failed: %s", error)
            raise RequestError(503, "out of memory: send a shorter text or ask for fewer beams") from None
        except UserError as error:  # the model cannot write this, such as scores that are not numbers
            logger.warning("a request failed: %s", error)
            raise RequestError(status, str(error)) from None
        except RequestError as error:
            status = error.status
            raise
        except (asyncio.CancelledError, GeneratorExit):
            status = 499  # the client has closed the connection
            raise
        finally:
            self.metrics.requests.labels(label, str(status)).inc()
            self.metrics.seconds.observe(time.perf_counter() - start)

    def count_refused(self, path: str, status: int) -> None:
        """Count a request for a summary that was refused before it reached `write` or `stream`."""
        if path in ("/summarize", "/v1/completions"):
            self.metrics.requests.labels("", str(status)).inc()

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self.limits.timeout

    @asynccontextmanager
    async def _in_time(self, end: float) -> AsyncIterator[None]:
        """Refuse what is not done at `end`, a time of the event loop; what waits within is cancelled."""
        try:
            async with asyncio.timeout_at(end):
                yield
        except TimeoutError:
            raise RequestError(504, f"not done within {self.limits.timeout:g} s") from None

    async def _prepared(self, asked: Asked, end: float) -> list[Prepared]:
        """Check a request, and tokenize its texts in a thread of their own.

        Nothing may wait between this and `_submit`, so that the adapter is there until the jobs are done.
        """
        self._check(asked)
        if asked.adapter == BASE and BASE not in self.engine.names:
            asked = replace(asked, adapter=None)
        loop, engine = asyncio.get_running_loop(), self.engine
        long = "cut" if asked.truncate else self.limits.long
        if asked.adapter is None and engine.base_problem:
            detail = f"the base does not answer, because {engine.base_problem}; name an adapter"
            raise RequestError(422, detail, field=asked.adapter_field)
        while True:
            if asked.adapter not in engine.adapters:
                raise self._unknown(str(asked.adapter), asked.adapter_field)
            settings = engine.adapters[asked.adapter]
            own = self._settings(settings, asked)
            encoded = []
            async with self._in_time(end):
                for text in asked.texts:
                    given = settings.data, text, long, asked.adapter
                    encoded.append(await loop.run_in_executor(self._tokenizing, engine.encode, *given))
            if engine.adapters.get(asked.adapter) is settings:  # and no other was loaded meanwhile
                break
        division = Division.of([parts for parts, _ in encoded], settings.data.max_source_length)
        if division.divided:
            logger.info("%s", division)
        self._check_number(413, asked, sum(len(parts) for parts, _ in encoded), "parts")
        remedy = 'send "truncate": true to have it cut' if asked.text_field == "dialogue" else "divide it"
        if not asked.truncate and any(truncated for _, truncated in encoded):
            raise RequestError(
                413,
                f"{asked.text_field}: longer than the {settings.data.max_source_length} tokens, prompt "
                f"included, that the model was trained with; shorten it, or {remedy}",
                field=asked.text_field,
            )
        return [
            Prepared([Job(asked.adapter, ids, own) for ids in parts], truncated)
            for parts, truncated in encoded
        ]

    def _check(self, asked: Asked) -> None:
        limits = self.limits
        for text in asked.texts:
            if len(text) > limits.max_chars:
                detail = (
                    f"{asked.text_field}: {len(text):,} characters; at most {limits.max_chars:,} are accepted"
                )
                raise RequestError(413, detail, field=asked.text_field)
        self._check_number(422, asked, len(asked.texts), "texts")
        new = asked.max_new_tokens
        _, positions = positions_of(self.engine.model.config)
        for name, value, most in (
            ("num_beams", asked.num_beams, limits.max_beams),
            (asked.length_field, new, limits.max_new_tokens),
        ):
            if value and value > most:
                detail = f"{name}={value} is more than this server's limit of {most}"
                raise RequestError(422, detail, field=name)
        if positions and new and new > positions:
            name = asked.length_field
            detail = f"{name}={new} is more than the model's {positions} positions"
            raise RequestError(422, detail, field=name)

    def _check_number(self, status: int, asked: Asked, n: int, what: str) -> None:
        """Refuse what never fits into the queue, with a status that says whether one text is too long."""
        if n > self.limits.max_queue:
            detail = f"{asked.text_field}: {n:,} {what}; at most {self.limits.max_queue:,} may wait"
            raise RequestError(status, detail, field=asked.text_field)

    def _settings(self, settings: PredictionSettings, request: Asked) -> PredictionSettings:
        """Return the adapter's settings with what the request asks for, within the server's limit."""
        new = min(request.max_new_tokens or settings.max_new_tokens, self.limits.max_new_tokens)
        changes: dict[str, Any] = {"max_new_tokens": new}
        changes["min_new_tokens"] = min(settings.generation.min_new_tokens, new)
        if request.num_beams is not None:
            changes["num_beams"] = request.num_beams
        return settings.changed("request", changes)

    def _unknown(self, name: str, field: str = "adapter") -> RequestError:
        names = self.models()
        *others, last = names
        loaded = f"the loaded ones are {', '.join(others)} and {last}" if others else f"only {last} is loaded"
        detail = f"no {field} is named {name!r}; {loaded}.{did_you_mean(name, names)}"
        return RequestError(404, detail, field=field)

    def models(self) -> list[str]:
        """Return the names that a request may give: the base, if no adapter has changed it, and adapters."""
        return list(dict.fromkeys([*([] if self.engine.base_problem else [BASE]), *self.engine.names]))

    def model(self, name: str) -> str | None:
        """Return the adapter that a client of OpenAI's API means by a model's name; None is the base.

        Raises:
            RequestError: 404 there is neither.
        """
        if name in self.engine.names:
            return name
        if name in (BASE, self.engine.name):
            return None
        raise self._unknown(name, "model")

    def _submit(self, jobs: list[Job]) -> "list[Future[Any]]":
        """Queue all jobs, or none."""
        futures: list[Future[Any]] = []
        try:
            for job in jobs:
                futures.append(self.batcher.submit(job))
        except (QueueFull, BatcherClosed) as error:
            for future in futures:
                future.cancel()
            if isinstance(error, BatcherClosed):
                raise RequestError(503, "the server is shutting down", {"Retry-After": "10"}) from None
            batches = math.ceil(self.limits.max_queue / self.limits.max_batch)
            seconds = max(1, math.ceil(batches * self.batcher.seconds))
            detail = f"{self.limits.max_queue} requests are waiting; try again in {seconds} s"
            raise RequestError(503, detail, {"Retry-After": str(seconds)}) from None
        return futures

    def _run(self, jobs: list[Job]) -> list[Written]:
        start = time.perf_counter()
        written = self.engine.generate_batch(jobs)
        self.metrics.batch_seconds.observe(time.perf_counter() - start)
        self.metrics.batch_rows.observe(len(jobs))
        self.metrics.batch_adapters.observe(len({job.adapter for job in jobs}))
        return written

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
            own = folder / ADAPTER  # of a run
            saved = SavedAdapter(own if own.is_dir() else folder, path)
            await asyncio.wrap_future(self.batcher.submit_task(lambda: self.engine.add_adapter(saved, name)))
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
        if folder.is_file():
            raise RequestError(422, f"path: {path!r} is a file; give the folder of the adapter or of its run")
        if not folder.is_dir():
            near = path_hint(str(root / path)).replace(f"{root}/", "")
            raise RequestError(
                422, f"path: no such folder {path!r} in the server's folder of adapters.{near}"
            )
        return folder

    async def unload(self, name: str) -> None:
        """Unload an adapter after the requests that wait for it; new ones are refused at once.

        Raises:
            RequestError: 404 no such adapter.
        """
        if name == BASE and BASE not in self.engine.names:
            raise RequestError(404, "'base' is the model itself, not an adapter, and cannot be unloaded")
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
        self._tokenizing.shutdown()
        self.batcher.close()
        self.engine.close()
