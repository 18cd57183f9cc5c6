"""A Ray cluster as a ``concurrent.futures.Executor`` (protocol §7). Ray is an optional extra: ``vtrain[ray]``.

Nothing is sent but the names of functions, paths and segments: workers must have this release installed and see the run
and the program at the same absolute paths. ``auditor.audit.worker`` compares what they see and what they are.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vtrain.children import safe_environment
from vtrain.errors import UnsupportedError, WorkerError

if TYPE_CHECKING:
    from collections.abc import Iterator

LOCAL = "local"


class RayExecutor(Executor):
    """Runs each call as a Ray task of its own.

    A call whose worker dies fails with ``BrokenExecutor``; the others go on, and further calls are taken.

    Args:
        ray: the module, connected.
        cpus: processors that each call takes.
    """

    def __init__(self, ray: Any, cpus: int) -> None:
        self._ray = ray
        # Retries are the caller's, who counts them.
        options = {"num_cpus": cpus, "max_retries": 0, "scheduling_strategy": "SPREAD"}
        self._call = ray.remote(**options)(_call)
        self._refs: dict[Future[Any], Any] = {}
        self._lock = threading.Lock()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See ``concurrent.futures.Executor.submit``; the function must be of an installed module."""
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        ref = self._call.remote(fn, args, kwargs)
        with self._lock:
            self._refs[future] = ref
        ref.future().add_done_callback(lambda done: self._finish(future, done))
        return future

    def _finish(self, future: Future[Any], done: Future[Any]) -> None:
        error = done.exception()
        if error is None:
            future.set_result(done.result())
        else:
            future.set_exception(self._own(error))
        with self._lock:
            self._refs.pop(future, None)

    def _own(self, error: BaseException) -> BaseException:
        """What the function raised; or, where it was not its doing, that its worker died."""
        errors = self._ray.exceptions
        if isinstance(error, errors.RayTaskError):
            cause = error.cause
            return cause if isinstance(cause, BaseException) else error
        if isinstance(error, errors.RayError):
            lost = BrokenExecutor(f"a Ray worker died: {type(error).__name__}")
            lost.__cause__ = error
            return lost
        return error

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Give up what is still running, which would only be thrown away; Ray itself stays connected."""
        with self._lock:
            refs = list(self._refs.values())
        for ref in refs if cancel_futures else ():
            self._ray.cancel(ref, force=True)


def _call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return fn(*args, **kwargs)


@dataclass(frozen=True)
class RayCrew:
    """``size`` workers of a connected cluster."""

    size: int
    cpus: int
    ray: Any = field(repr=False)

    def start(self) -> Executor:
        """An executor; the cluster replaces dead workers by itself."""
        return RayExecutor(self.ray, self.cpus)


@contextmanager
def ray_crew(address: str, jobs: int, threads: int) -> Iterator[RayCrew]:
    """Connect to a cluster for as long as the body runs.

    Args:
        address: of the cluster, or ``local`` to start one on this machine that ends with the body.
        jobs: segments at a time; 0 for as many as there are processors for, on this machine at least one.
        threads: of each replay: a task takes so many of the cluster's processors.

    Raises:
        UnsupportedError: Ray is not installed.
        WorkerError: no such cluster, or no machine of it has as many processors.
    """
    try:
        import ray
    except ImportError as error:
        raise UnsupportedError("--ray: Ray is not installed; pip install 'vtrain[ray]'") from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # an audit tells nobody
    size = jobs or max(1, (os.cpu_count() or 1) // threads)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    own = not ray.is_initialized()
    if own:
        local: dict[str, Any] = {"num_cpus": size * threads, "include_dashboard": False} if address == LOCAL else {}
        try:
            with safe_environment():
                ray.init(address=address, job_config=_nowhere(), configure_logging=False, log_to_driver=False, **local)
        except Exception as error:  # Ray raises whatever its parts do
            raise WorkerError(f"--ray {address}: {str(error)[:500]}; want a running cluster's address") from error
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)
    try:
        room = _room(ray, threads)
        yield RayCrew(jobs or room, threads, ray)
    finally:
        if own:
            ray.shutdown()


def _nowhere() -> Any:
    """A job whose workers don't import from the current directory: Ray would put it first on their search path."""
    from ray.job_config import JobConfig

    config = JobConfig()
    config._client_job = True  # Ray's only way to leave it out: the job's code is where the workers are
    return config


def _room(ray: Any, threads: int) -> int:
    """How many replays of so many threads fit into the cluster at a time."""
    room = sum(int(node["Resources"].get("CPU", 0)) // threads for node in ray.nodes() if node["Alive"])
    if room < 1:
        raise WorkerError(f"no machine of the Ray cluster has {threads} processors; want fewer --threads")
    return room
