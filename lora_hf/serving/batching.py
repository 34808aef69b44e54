"""A queue of jobs and one thread that does them in batches: what waits while a batch runs is the next one.

Tasks that change what jobs go through (an adapter is loaded, or leaves) stand in the same queue, and take
their turn alone: jobs before a task are done before it, jobs after it afterwards.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any


class Full(Exception):
    """As many jobs wait as may."""


class Closed(Exception):
    """Nothing more is taken on."""


@dataclass(eq=False)
class _Entry:
    job: Any = None
    task: Callable[[], Any] | None = None
    future: "Future[Any]" = field(default_factory=Future)


class Batcher:
    """Does jobs in batches, on a thread of its own.

    Attributes:
        seconds: what the last batch took.
    """

    def __init__(
        self,
        run: Callable[[list[Any]], list[Any]],
        alike: Callable[[Any], Any],
        max_batch: int,
        max_wait: float,
        max_queue: int,
    ) -> None:
        """Start the thread.

        Args:
            run: jobs of one batch -> their results, in their order.
            alike: jobs of which it is equal may be in one batch.
            max_batch: the most jobs of a batch.
            max_wait: seconds that a batch which is not full waits for more.
            max_queue: the most jobs that wait.
        """
        self.seconds = 0.0
        self._run, self._alike = run, alike
        self._max_batch, self._max_wait, self._max_queue = max_batch, max_wait, max_queue
        self._entries: deque[_Entry] = deque()
        self._is_closed = self._is_hurried = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Jobs in the queue that somebody still waits for."""
        with self._changed:
            return self._count()

    def _count(self) -> int:
        return sum(entry.task is None and not entry.future.cancelled() for entry in self._entries)

    def submit(self, job: Any) -> "Future[Any]":
        """Its result, later; as long as it waits it can be cancelled.

        Raises:
            Full: the queue is.
            Closed: the batcher is.
        """
        with self._changed:
            if not self._is_closed and self._count() >= self._max_queue:
                raise Full
        return self._put(_Entry(job=job))

    def call(self, task: Callable[[], Any]) -> "Future[Any]":
        """What `task` returns, once it is its turn between batches.

        Raises:
            Closed: the batcher is.
        """
        return self._put(_Entry(task=task))

    def _put(self, entry: _Entry) -> "Future[Any]":
        with self._changed:
            if self._is_closed:
                raise Closed
            self._entries.append(entry)
            self._changed.notify_all()
        return entry.future

    def hurry(self) -> None:
        """From now on no batch waits to be full."""
        with self._changed:
            self._is_hurried = True
            self._changed.notify_all()

    def close(self) -> None:
        """Take nothing more on, and return when all that waits is done."""
        with self._changed:
            self._is_closed = self._is_hurried = True
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while entries := self._next():
            live = [entry for entry in entries if entry.future.set_running_or_notify_cancel()]
            if live:
                start = time.perf_counter()
                _settle(live, self._run)
                self.seconds = time.perf_counter() - start

    def _next(self) -> list[_Entry]:
        """A task, or the next batch; nothing once closed and done."""
        with self._changed:
            self._changed.wait_for(lambda: self._entries or self._is_closed)
            if self._entries and self._entries[0].task is None:
                self._changed.wait_for(self._is_enough, timeout=self._max_wait)
                return self._take()
            return [self._entries.popleft()] if self._entries else []

    def _is_enough(self) -> bool:
        """Whether waiting is over; what comes behind a task cannot be in this batch."""
        has_task = any(entry.task for entry in self._entries)
        return self._is_hurried or has_task or len(self._entries) >= self._max_batch

    def _take(self) -> list[_Entry]:
        """The jobs before the next task that are like the first, as many as a batch may have."""
        jobs = takewhile(lambda entry: entry.task is None, self._entries)
        like = self._alike(self._entries[0].job)
        batch = [entry for entry in jobs if self._alike(entry.job) == like][: self._max_batch]
        taken = set(map(id, batch))
        self._entries = deque(entry for entry in self._entries if id(entry) not in taken)
        return batch


def _settle(entries: list[_Entry], run: Callable[[list[Any]], list[Any]]) -> None:
    """Give every future its result; of a batch that fails each job is tried alone: the fault is its own."""
    try:
        task = entries[0].task
        results = [task()] if task else run([entry.job for entry in entries])
    except Exception as error:
        if len(entries) == 1:
            entries[0].future.set_exception(error)
            return
        for entry in entries:
            _settle([entry], run)
    else:
        for entry, result in zip(entries, results, strict=True):
            entry.future.set_result(result)
