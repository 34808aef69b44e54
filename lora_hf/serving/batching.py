"""A queue of jobs and one thread that runs them in batches: what arrives during a batch forms the next.

Tasks that change what the jobs use (loading or unloading an adapter) stand in the same queue and run alone:
earlier jobs are done before a task, later ones after it.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any


class QueueFull(Exception):
    """The queue has as many jobs as it may have."""


class BatcherClosed(Exception):
    """The batcher accepts nothing more."""


@dataclass(eq=False)
class _Entry:
    job: Any = None
    task: Callable[[], Any] | None = None
    future: "Future[Any]" = field(default_factory=Future)


class Batcher:
    """Run jobs in batches, on a thread of its own.

    Attributes:
        seconds: duration of the last batch.
    """

    def __init__(
        self,
        run: Callable[[list[Any]], list[Any]],
        batch_key: Callable[[Any], Any],
        max_batch: int,
        max_wait: float,
        max_queue: int,
    ) -> None:
        """Start the thread.

        Args:
            run: jobs of one batch -> their results, in their order.
            batch_key: jobs with equal keys may share a batch.
            max_batch: the most jobs of a batch.
            max_wait: seconds that a batch waits to be full.
            max_queue: the most jobs that wait.
        """
        self.seconds = 0.0
        self._run, self._batch_key = run, batch_key
        self._max_batch, self._max_wait, self._max_queue = max_batch, max_wait, max_queue
        self._entries: deque[_Entry] = deque()
        self._is_closed = self._is_draining = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """The number of jobs in the queue that were not cancelled."""
        with self._changed:
            return self._count()

    def _count(self) -> int:
        return sum(entry.task is None and not entry.future.cancelled() for entry in self._entries)

    def submit(self, job: Any) -> "Future[Any]":
        """Queue a job and return its future, which can be cancelled for as long as the job waits.

        Raises:
            QueueFull: `max_queue` jobs wait already.
            BatcherClosed: after `close`.
        """
        with self._changed:
            if not self._is_closed and self._count() >= self._max_queue:
                raise QueueFull
        return self._put(_Entry(job=job))

    def submit_task(self, task: Callable[[], Any]) -> "Future[Any]":
        """Queue a function that runs alone, between batches, and return the future of its result.

        Raises:
            BatcherClosed: after `close`.
        """
        return self._put(_Entry(task=task))

    def _put(self, entry: _Entry) -> "Future[Any]":
        with self._changed:
            if self._is_closed:
                raise BatcherClosed
            self._entries.append(entry)
            self._changed.notify_all()
        return entry.future

    def drain(self) -> None:
        """Run every batch at once from now on, full or not."""
        with self._changed:
            self._is_draining = True
            self._changed.notify_all()

    def close(self) -> None:
        """Accept nothing more, and return when the queue is empty."""
        with self._changed:
            self._is_closed = self._is_draining = True
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while entries := self._next():
            live = [entry for entry in entries if entry.future.set_running_or_notify_cancel()]
            if live:
                start = time.perf_counter()
                _complete(live, self._run)
                self.seconds = time.perf_counter() - start

    def _next(self) -> list[_Entry]:
        """Wait for a task or the next batch; return nothing once closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._entries or self._is_closed)
            if self._entries and self._entries[0].task is None:
                self._changed.wait_for(self._is_ready, timeout=self._max_wait)
                return self._take()
            return [self._entries.popleft()] if self._entries else []

    def _is_ready(self) -> bool:
        """Return whether waiting for more jobs is over; jobs behind a task cannot be in this batch."""
        has_task = any(entry.task for entry in self._entries)
        return self._is_draining or has_task or len(self._entries) >= self._max_batch

    def _take(self) -> list[_Entry]:
        """Take the jobs before the next task that share the first one's key, as many as a batch may have."""
        jobs = takewhile(lambda entry: entry.task is None, self._entries)
        key = self._batch_key(self._entries[0].job)
        batch = [entry for entry in jobs if self._batch_key(entry.job) == key][: self._max_batch]
        taken = set(map(id, batch))
        self._entries = deque(entry for entry in self._entries if id(entry) not in taken)
        return batch


def _complete(entries: list[_Entry], run: Callable[[list[Any]], list[Any]]) -> None:
    """Set every future's result; if a batch fails, run each job alone, so that only the faulty one fails."""
    try:
        task = entries[0].task
        results = [task()] if task else run([entry.job for entry in entries])
    except Exception as error:
        if len(entries) == 1:
            entries[0].future.set_exception(error)
            return
        results = None
    if results is None:  # outside `except`: the error's traceback held the tensors of the failed batch
        for entry in entries:
            _complete([entry], run)
        return
    for entry, result in zip(entries, results, strict=True):
        entry.future.set_result(result)
