"""Worker processes with a time limit per job: a job that crashes or hangs costs itself, not the run."""

from __future__ import annotations

import dataclasses
import io
import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from stories.frames.decoders import VideoError, decode
from stories.frames.store import StoredFrames, write_frames

JPEG_QUALITY = 90
START_LIMIT_S = 300.0  # a worker that needs longer than this to start is broken


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker needs to know to extract one story's frames.

    Attributes:
        video_path: Absolute path of the video.
        times_s: Times of the frames, one tuple per scene.
        starts_s: Annotated start of each scene.
        decoder: A name in `decoders.DECODERS`.
        max_side: Longest side of a stored frame in pixels, None for source resolution.
        target: File to write the frames to.
    """

    video_path: Path
    times_s: tuple[tuple[float, ...], ...]
    starts_s: tuple[float, ...]
    decoder: str
    max_side: int | None
    target: Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a job has no result."""

    kind: str
    reason: str


def extract_story(job: Job) -> Failure | None:
    """Decode a story's frames and write them to `job.target`; a video that does not give them is a `Failure`."""
    try:
        stored = _frames_of(job)
    except VideoError as error:
        return Failure(kind="unreadable_video", reason=str(error))
    except Exception as error:  # whatever an untrusted video provokes in a decoder costs this story only
        return Failure(kind="unreadable_video", reason=f"{type(error).__name__}: {error}"[:500])
    write_frames(job.target, stored)
    return None


def _frames_of(job: Job) -> StoredFrames:
    wanted = sorted({time_s for scene in job.times_s for time_s in scene})
    kept: dict[float, tuple[float, bytes]] = {}
    for time_s, frame in zip(wanted, decode(job.video_path, wanted, job.decoder), strict=True):
        image = frame.image
        if job.max_side:
            image.thumbnail((job.max_side, job.max_side))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=JPEG_QUALITY)
        kept[time_s] = (frame.time_s, buffer.getvalue())
    for number, (start_s, times_s) in enumerate(zip(job.starts_s, job.times_s, strict=True), start=1):
        last_s = kept[times_s[0]][0]
        if last_s < start_s:
            raise VideoError(f"scene {number} starts at {start_s:g} s, but the video's last frame is at {last_s:g} s")
    return StoredFrames(
        times_s=tuple(tuple(kept[time_s][0] for time_s in scene) for scene in job.times_s),
        frames=tuple(tuple(kept[time_s][1] for time_s in scene) for scene in job.times_s),
    )


@dataclasses.dataclass
class _Worker:
    process: Any
    connection: Connection
    index: int | None = None  # of the job it works on
    deadline: float = 0.0


def run_jobs(
    function: Callable[[Any], Any], jobs: Sequence[Any], num_workers: int, time_limit_s: float
) -> Generator[tuple[int, Any], None, None]:
    """Run `function` on each job in worker processes and yield results as they come.

    Args:
        function: Importable by name in a fresh process.
        jobs: Its arguments, picklable.
        num_workers: Processes.
        time_limit_s: Seconds a job may take; then its process is killed.

    Yields:
        The job's index and the function's result, or a `Failure` of kind "crash" or "timeout".

    Raises:
        RuntimeError: A worker cannot start, or `function` itself raised (a full disk, a fault in the software).
    """
    waiting = deque(range(len(jobs)))
    workers = [_start(function) for _ in range(min(num_workers, len(jobs)))]
    try:
        while waiting or any(worker.index is not None for worker in workers):
            timeout = max(0.0, min(worker.deadline for worker in workers) - time.monotonic())
            wait([worker.connection for worker in workers], timeout)
            for position, worker in enumerate(workers):
                answer = _answer(worker, time_limit_s)
                if answer is None:
                    continue
                index, worker.index, worker.deadline = worker.index, None, float("inf")
                if isinstance(answer, Failure):
                    _stop(worker)
                    if index is None:
                        raise RuntimeError(f"a worker process does not start: {answer.reason}")
                    workers[position] = _start(function)
                elif waiting:
                    worker.index = waiting.popleft()
                    worker.deadline = time.monotonic() + time_limit_s
                    worker.connection.send(jobs[worker.index])
                if index is not None:
                    yield index, answer if isinstance(answer, Failure) else answer[0]
    finally:
        for worker in workers:
            _stop(worker)


def _answer(worker: _Worker, time_limit_s: float) -> Any:
    """Return a worker's result in a tuple, a Failure when it died or ran out of time, None while it works."""
    if worker.connection.poll():
        try:
            status, value = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join(5)
            return Failure(kind="crash", reason=f"the decoding process ended with exit code {worker.process.exitcode}")
        if status == "raised":
            raise RuntimeError(value)
        return (value,)
    if time.monotonic() >= worker.deadline:
        return Failure(kind="timeout", reason=f"decoding took longer than {time_limit_s:g} s")
    return None


def _start(function: Callable[[Any], Any]) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(function, theirs), daemon=True)
    # The child inherits the blocked signals: Ctrl-C and a scheduler's SIGTERM reach the whole process group, but only
    # the parent is to act on them, else a story would be noted as crashed.
    resource_tracker.ensure_running()  # started with the first process otherwise, it would unblock the signals again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    process.start()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    return _Worker(process=process, connection=ours, deadline=time.monotonic() + START_LIMIT_S)


def _stop(worker: _Worker) -> None:
    worker.process.kill()
    worker.process.join()
    worker.connection.close()


def _serve(function: Callable[[Any], Any], connection: Connection) -> None:
    """Answer jobs until the parent goes away."""
    connection.send(("ready", None))
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        try:
            answer = ("done", function(job))
        except Exception as error:
            answer = ("raised", f"{type(error).__name__}: {error}")
        connection.send(answer)
