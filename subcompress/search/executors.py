"""Ways to start the workers of `--jobs`: each is a `concurrent.futures.Executor`. A new one is a class and a line here.

Every worker makes the same call as the process that starts it, with the same run folder, and takes trials from there.
"""

from __future__ import annotations

import base64
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from subcompress.errors import SubcompressError, one_line, shown
from subcompress.support.listener import Listener
from subcompress.support.suggestions import suggestion

BY_VALUE: list[ModuleType] = []
"""Modules of the user that no worker can import by name. Their objects are sent to the worker."""

TAIL = 4_000
"""The most characters of a worker's errors that are kept."""

GPUS = "CUDA_VISIBLE_DEVICES"


class Processes(Executor):
    """Processes on this machine, with a GPU each where there are several. They end with this process."""

    def __init__(self, folder: Path) -> None:
        self.running: list[subprocess.Popen[str]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Start a process that makes the call. Its result is None; its error is the last line of the process."""
        code = f"import sys; from subcompress.search.executors import called; called(sys.stdin.read(), {os.getpid()})"
        places = [os.environ.get("PYTHONPATH", ""), str(Path(__file__).parents[2])]
        number = len(self.running) + 1
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", code],  # a file such as queue.py in this folder is no module of Python's
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for this process, which ends it
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places)), **_gpu(number)},
        )
        self.running.append(process)
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        text = payload(lambda: fn(*args, **kwargs))
        threading.Thread(target=_waited, args=(process, text, future), daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Wait for the processes, or end them."""
        for process in self.running:
            if cancel_futures:
                process.kill()
            process.wait()


def _waited(process: subprocess.Popen[str], text: str, future: Future[Any]) -> None:
    _, errors = process.communicate(text)
    if process.returncode == 0:
        future.set_result(None)
    else:
        future.set_exception(SubcompressError(f"status {process.returncode}: {_last_line(errors)}"))


def _gpu(number: int) -> dict[str, str]:
    """The one GPU that a worker of that number sees, where there are several."""
    with suppress(ImportError):
        import torch

        if torch.cuda.device_count() > 1:
            seen = os.environ.get(GPUS, ",".join(map(str, range(torch.cuda.device_count())))).split(",")
            return {GPUS: seen[number % len(seen)]}
    return {}


class RayTasks(Executor):
    """Tasks of Ray, on the cluster that RAY_ADDRESS names, else on this machine."""

    def __init__(self, folder: Path) -> None:
        ray = _imported("ray", "ray")
        self.ray = ray
        self.started = not ray.is_initialized()
        if self.started:
            try:
                ray.init(log_to_driver=False, include_dashboard=False, logging_level="ERROR")
            except Exception as e:
                where = shown(os.environ.get("RAY_ADDRESS", "this machine"))
                raise SubcompressError(f"Ray cannot be reached at {where} ({one_line(e, 200)})") from e
        self.tasks: list[Any] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Make the call in a task."""
        task = self.ray.remote(num_cpus=1, max_retries=0)(called).remote(payload(lambda: fn(*args, **kwargs)))
        self.tasks.append(task)
        found: Future[Any] = task.future()
        return found

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Wait for the tasks, or end them."""
        if cancel_futures:
            for task in self.tasks:
                self.ray.cancel(task, force=True)
        elif self.tasks:
            self.ray.wait(self.tasks, num_returns=len(self.tasks))
        if self.started:
            self.ray.shutdown()


class SlurmJobs(Executor):
    """Jobs of Slurm through submitit: its own choice of this machine where there is no Slurm."""

    def __init__(self, folder: Path) -> None:
        submitit = _imported("submitit", "slurm")
        self.executor = submitit.AutoExecutor(folder=str(folder / "slurm"))
        found = self.executor.cluster == "slurm"
        self.remark = "" if found else "Slurm was not found here: the workers run on this machine"
        self.executor.update_parameters(name="subcompress", timeout_min=60 * 24)
        self.jobs: list[Any] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Make the call in a job."""
        job = self.executor.submit(called, payload(lambda: fn(*args, **kwargs)))
        self.jobs.append(job)
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        threading.Thread(target=_job_waited, args=(job, future), daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Wait for the jobs, or cancel them."""
        for job in self.jobs:
            if cancel_futures:
                job.cancel()
            else:
                job.wait()


def _job_waited(job: Any, future: Future[Any]) -> None:
    try:
        job.result()
    except Exception as e:
        future.set_exception(e)
    else:
        future.set_result(None)


def _last_line(text: str) -> str:
    """The line of a traceback that says what is wrong; submitit writes more after a line of dashes."""
    before, _, after = text[-TAIL:].rpartition("\n------")
    lines = [line for line in (before or after).splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"


def _imported(name: str, extra: str) -> Any:
    try:
        return __import__(name)
    except ImportError as e:
        raise SubcompressError(
            f"--executor {extra} needs {name}, which is not installed: pip install 'subcompress[{extra}]'"
        ) from e


EXECUTORS: dict[str, Callable[[Path], Executor]] = {"processes": Processes, "ray": RayTasks, "slurm": SlurmJobs}


def payload(call: Callable[[], Any]) -> str:
    """A call as text that `called` makes in another process. Raises SubcompressError for what cannot be sent."""
    import cloudpickle

    for module in BY_VALUE:
        cloudpickle.register_pickle_by_value(module)
    try:
        return base64.b64encode(pickle.dumps((sys.path, cloudpickle.dumps(call)))).decode()
    except Exception as e:
        raise SubcompressError(
            f"--jobs sends the network and the data to other processes, which failed ({one_line(e, 200)}): "
            "give functions that build them"
        ) from e
    finally:
        for module in BY_VALUE:
            cloudpickle.unregister_pickle_by_value(module)


def called(text: str, parent: int | None = None) -> None:
    """Make the call of a payload. parent: the process that started this one, which ends with it."""
    import cloudpickle

    if text == "":  # who started it was killed
        return
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    path, call = pickle.loads(base64.b64decode(text))
    sys.path[:] = path
    cloudpickle.loads(call)()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        threading.Event().wait(1.0)
    os._exit(1)


@contextmanager
def helping(name: str, workers: int, folder: Path, call: Callable[[], Any], listener: Listener) -> Iterator[None]:
    """Let several workers make the call while the block lasts, then wait until they have ended.

    name: one of EXECUTORS. The error of a worker that fails is noted, and the others do its work. Raises
    SubcompressError for another name, and if workers cannot be started.
    """
    if name not in EXECUTORS:
        raise SubcompressError(
            f"--executor must be one of {', '.join(EXECUTORS)}; got {shown(name)}{suggestion(name, EXECUTORS)}"
        )
    if workers == 0:
        yield
        return
    executor, futures = EXECUTORS[name](folder), list[Future[Any]]()
    stopped = threading.Event()
    if remark := getattr(executor, "remark", ""):
        listener.note(remark)
    try:
        for number in range(workers):
            futures.append(executor.submit(call))
            futures[-1].add_done_callback(_noting(number + 2, listener, stopped))
        yield
    except BaseException:
        stopped.set()
        raise
    finally:
        executor.shutdown(wait=True, cancel_futures=stopped.is_set())
        wait(futures)


def _noting(number: int, listener: Listener, stopped: threading.Event) -> Callable[[Future[Any]], None]:
    """What notes the error of a worker, unless all of them are being stopped."""

    def note(future: Future[Any]) -> None:
        if not stopped.is_set() and not future.cancelled() and (error := future.exception()) is not None:
            listener.note(f"warning: worker {number} ended early: {shown(_last_line(str(error)))}")

    return note


__all__ = ["BY_VALUE", "EXECUTORS", "called", "helping"]
