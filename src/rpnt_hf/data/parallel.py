"""Independent tasks in several processes, with a bar: for building. Not for training, which has Accelerate.

Processes are started anew, not forked, so that no lock or thread of this one is copied into them. One that
loses its parent ends; an interrupted parent waits for the tasks that run, and starts no more.
"""

import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

from rpnt_hf.errors import DatasetError
from rpnt_hf.progress import progress_bar
from rpnt_hf.scripts import MODULE_PREFIX, load_script

__all__ = ["run_tasks"]

Result = TypeVar("Result")


def run_tasks(
    tasks: Sequence[Callable[[], Result]],
    num_proc: int,
    description: str,
    unit: str,
    *,
    of: Callable[..., Any] | None = None,
    finished: int = 0,
) -> list[Result]:
    """Runs tasks that do not depend on each other.

    Args:
        tasks (`Sequence[Callable]`): Calls without arguments, which can be pickled.
        num_proc (`int`): Processes, at least 1; 1 is this one.
        description (`str`): What the bar says.
        unit (`str`): What the bar counts.
        of (`Callable`, *optional*): Function that the tasks use and that may come from a script, which the
            processes then load first.
        finished (`int`, *optional*, defaults to 0): Tasks that were done before, for the bar.

    Returns:
        `list`: What each task returned, in order.

    Raises:
        DatasetError: A process was killed. What a task raises is raised here, when the tasks that run
        beside it have ended.
    """
    if not tasks:
        return []
    with progress_bar(total=finished + len(tasks), initial=finished, desc=description, unit=unit) as bar:
        if num_proc == 1 or len(tasks) == 1:
            results = []
            for task in tasks:
                results.append(task())
                bar.update()
            return results
        while isinstance(of, functools.partial):
            of = of.func
        pool = ProcessPoolExecutor(
            min(num_proc, len(tasks)),
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(getattr(of, "__module__", None) or "",),
        )
        # No more than run: what was handed over cannot be taken back when the user interrupts.
        results_by_task: dict[int, Result] = {}
        running: dict[Future[Result], int] = {}
        waiting = iter(enumerate(tasks))
        try:
            while len(results_by_task) < len(tasks):
                for index, task in islice(waiting, num_proc - len(running)):
                    running[pool.submit(task)] = index
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    results_by_task[running.pop(future)] = future.result()
                    bar.update()
        except BrokenProcessPool as error:
            raise DatasetError(
                f"Every one of the {min(num_proc, len(tasks))} processes must live until the work is done, "
                f"but one was killed while {description.lower()}: often because memory ran out. Give a "
                "smaller `--num-proc` (`num_proc`)."
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        return [results_by_task[index] for index in range(len(tasks))]


def _begin(module: str) -> None:
    """Prepares a process: a script is loaded by its path, Ctrl-C is the parent's, and it dies with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if module.startswith(MODULE_PREFIX):
        load_script(module.removeprefix(MODULE_PREFIX).replace(".", "/") + ".py")
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
