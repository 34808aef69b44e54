"""The queue: what comes while a batch runs is the next one; every job gets its own result or fault."""

import threading
import weakref
from concurrent.futures import CancelledError, wait
from typing import Any

import pytest

from lora_hf.serving.batching import Batcher, BatcherClosed, QueueFull


class Work:
    """Doubles numbers, once it is let; knows its batches."""

    def __init__(self, **options: Any) -> None:
        self.batches: list[list[int]] = []
        self.begun, self.may_go_on = threading.Semaphore(0), threading.Semaphore(0)
        settings = {"max_batch": 4, "max_wait": 0.0, "max_queue": 8} | options
        self.batcher = Batcher(self.run, batch_key=lambda job: job < 100, **settings)

    def run(self, jobs: list[int]) -> list[int]:
        self.batches.append(jobs)
        self.begun.release()
        self.may_go_on.acquire()
        if 13 in jobs:
            raise RuntimeError("thirteen")
        return [2 * job for job in jobs]

    def let(self, batches: int) -> None:
        self.may_go_on.release(batches)


def test_jobs_that_arrive_during_a_batch_form_the_next_one() -> None:
    work = Work()
    first = work.batcher.submit(1)
    work.begun.acquire()
    rest = [work.batcher.submit(job) for job in (2, 300, 3, 4, 5, 6)]
    assert work.batcher.waiting == 6
    work.let(9)
    assert [f.result(120) for f in (first, *rest)] == [2, 4, 600, 6, 8, 10, 12]
    assert work.batches == [[1], [2, 3, 4, 5], [300], [6]]  # equal keys, in order, four at most
    assert work.batcher.seconds > 0


def test_a_batch_waits_for_more_until_it_is_full() -> None:
    work = Work(max_wait=86400.0)
    work.let(9)
    results = [work.batcher.submit(job) for job in range(4)]
    assert [f.result(120) for f in results] == [0, 2, 4, 6] and work.batches == [[0, 1, 2, 3]]


def test_a_full_queue_refuses_and_a_cancelled_job_makes_room() -> None:
    work = Work(max_queue=2)
    work.batcher.submit(1)
    work.begun.acquire()
    waiting = [work.batcher.submit(job) for job in (2, 3)]
    with pytest.raises(QueueFull):
        work.batcher.submit(4)
    assert waiting[0].cancel()
    last = work.batcher.submit(4)
    work.let(9)
    assert last.result(120) == 8
    with pytest.raises(CancelledError):
        waiting[0].result(120)
    assert work.batches == [[1], [3, 4]]


def test_a_job_that_fails_fails_alone() -> None:
    work = Work()
    work.batcher.submit(1)
    work.begun.acquire()
    results = [work.batcher.submit(job) for job in (12, 13, 14)]
    work.let(9)
    assert (results[0].result(120), results[2].result(120)) == (24, 28)
    with pytest.raises(RuntimeError, match="thirteen"):
        results[1].result(120)
    work.let(9)
    assert work.batcher.submit(5).result(120) == 10  # and the thread lives


def test_a_batch_that_failed_is_freed_before_its_jobs_run_again() -> None:
    class Tensor:
        pass

    failed, kept = [], []

    def run(jobs: list[int]) -> list[int]:
        kept.extend(tensor() for tensor in failed)
        tensor = Tensor()
        failed.append(weakref.ref(tensor))
        if len(jobs) > 1:
            raise RuntimeError("out of memory")
        return jobs

    batcher = Batcher(run, lambda job: None, max_batch=2, max_wait=60, max_queue=9)
    results = [batcher.submit(job) for job in (1, 2)]
    assert [result.result(120) for result in results] == [1, 2] and kept == [None, None, None]
    batcher.close()


def test_a_task_runs_after_earlier_jobs_and_before_later_ones() -> None:
    work, order = Work(), []
    work.batcher.submit(1)
    work.begun.acquire()
    work.batcher.submit(2)
    task = work.batcher.submit_task(lambda: order.append(len(work.batches)) or "done")
    failing = work.batcher.submit_task(lambda: 1 / 0)
    last = work.batcher.submit(3)
    work.let(9)
    assert (task.result(120), last.result(120)) == ("done", 6)
    assert order == [2] and work.batches == [[1], [2], [3]]
    with pytest.raises(ZeroDivisionError):
        failing.result(120)


def test_closing_finishes_waiting_jobs_and_refuses_new_ones() -> None:
    work = Work()
    results = [work.batcher.submit(job) for job in (1, 2, 3)]
    closing = threading.Thread(target=work.batcher.close)
    closing.start()
    work.let(9)
    closing.join(10)
    assert not wait(results, timeout=120).not_done and not closing.is_alive()
    with pytest.raises(BatcherClosed):
        work.batcher.submit(4)
    with pytest.raises(BatcherClosed):
        work.batcher.submit_task(lambda: None)
