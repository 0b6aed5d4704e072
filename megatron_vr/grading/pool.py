"""Verifiers in worker processes, each answer with a deadline."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import Future, wait
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from pebble import ProcessExpired, ProcessPool

from megatron_vr.errors import VRError
from megatron_vr.grading.judging import judge
from megatron_vr.grading.verdict import CRASHED, TIMED_OUT, Verdict
from megatron_vr.grading.verifier import load_verifier

# How often to see whether the pool itself still runs while waiting for a result.
LOOK_EVERY_SECONDS = 1.0


@dataclass(frozen=True)
class Job:
    """One answer for the verifier at `path`."""

    path: str
    parameters: Mapping[str, Any]
    expected: str
    answer_text: str


def judge_in_workers(
    jobs: Sequence[Job],
    workers: int,
    deadline_seconds: float,
    progress: Callable[[int], None],
) -> list[Verdict]:
    """The verdict of each job, in order. A job that hangs or kills its worker costs only itself.

    A job whose worker dies is given to another once: workers also die of signals that a scheduler
    sends to every process of a run that it asks to stop. Raises VRError when workers cannot start,
    and whatever error of this package a verifier raises.
    """
    verdicts: dict[int, Verdict] = {}
    crashed: set[int] = set()
    while len(verdicts) < len(jobs):
        pending = {i: job for i, job in enumerate(jobs) if i not in verdicts}
        # A second round is rare: the pool gives up when a worker dies before it is seen to begin.
        found, died = _round(pending, workers, deadline_seconds, progress, crashed)
        if not found and not died:
            raise VRError(
                f"grading workers die before they judge any of {len(pending)} answers; verifiers: "
                f"{', '.join(sorted({job.path for job in jobs}))}. A script that grades must keep "
                'its work under `if __name__ == "__main__":`'
            )
        verdicts.update(found)
        crashed |= died
    return [verdicts[i] for i in range(len(jobs))]


def _round(
    jobs: Mapping[int, Job],
    workers: int,
    deadline_seconds: float,
    progress: Callable[[int], None],
    crashed: Set[int],
) -> tuple[dict[int, Verdict], set[int]]:
    """The verdicts that one pool gives before it ends or breaks, and the jobs whose worker died
    that are not among the `crashed` ones."""
    paths = sorted({job.path for job in jobs.values()})
    # "spawn": a fork of a process with a model, threads and a GPU would not be safe.
    pool = ProcessPool(
        max_workers=min(workers, len(jobs)),
        initializer=_prepare,
        initargs=(paths,),
        context=multiprocessing.get_context("spawn"),
    )
    verdicts: dict[int, Verdict] = {}
    died: set[int] = set()
    try:
        futures = {i: _schedule(pool, job, deadline_seconds) for i, job in jobs.items()}
        for i, future in futures.items():
            while pool.active and not future.done():
                wait([future], timeout=LOOK_EVERY_SECONDS)
            verdict = _verdict(future, deadline_seconds) if future.done() else None
            if verdict is not None and verdict.reason == CRASHED and i not in crashed:
                died.add(i)
            elif verdict is not None:
                verdicts[i] = verdict
                progress(1)
    finally:
        pool.stop()
        pool.join()
    return verdicts, died


def _schedule(pool: ProcessPool, job: Job, deadline_seconds: float) -> Future[Verdict]:
    arguments = (job.path, job.parameters, job.expected, job.answer_text)
    if not pool.active:
        return Future()
    future: Future[Verdict] = pool.schedule(judge, args=arguments, timeout=deadline_seconds)
    return future


def _verdict(future: Future[Verdict], deadline_seconds: float) -> Verdict | None:
    """None when it was the pool that broke."""
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, FutureTimeoutError):
        return Verdict(False, TIMED_OUT, deadline_seconds)
    if isinstance(error, ProcessExpired):
        return Verdict(False, CRASHED, 0.0)
    if isinstance(error, BrokenProcessPool):
        return None
    raise error


def _prepare(paths: Sequence[str]) -> None:
    """Import the verifiers, so that the deadline of the first answer does not pay for it."""
    for path in paths:
        load_verifier(path)
