"""Work handed out to the processes of a Ray cluster, with answers in the order of the questions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """What each worker gets.

    workers: how many; each holds a model of its own.
    cpus, gpus: of the cluster's, reserved by each worker. Threads are set with the work.
    photos_per_task: handed to a worker at once; this much is done again after a kill.
    """

    workers: int = 2
    cpus: float = 1.0
    gpus: float = 0.0
    photos_per_task: int = 16

    def __post_init__(self) -> None:
        for name in ("workers", "photos_per_task"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("cpus", "gpus"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}")


def import_ray() -> Any:
    """The Ray package with its data part.

    Raises:
        ImportError: it is missing.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError(
            "building on a cluster needs Ray: pip install tokenize-anything[cluster]"
        ) from error
    return ray


def require_connection() -> Any:
    """The Ray package, once this process is connected to a cluster.

    Raises:
        ImportError: it is missing.
        RuntimeError: not connected.
    """
    ray = import_ray()
    if not ray.is_initialized():
        raise RuntimeError("ray: this process is not connected to a cluster; call ray.init first")
    return ray


def ask_worker(question: Callable[[], AnswerT], cluster: ClusterSettings) -> AnswerT:
    """Call a function in a process of the cluster, with the means of one worker."""
    ray = import_ray()
    remote = ray.remote(_call).options(num_cpus=cluster.cpus, num_gpus=cluster.gpus)
    answer: AnswerT = ray.get(remote.remote(question))
    return answer


def map_on_workers(
    worker: type,
    arguments: tuple[Any, ...],
    numbers: Sequence[int],
    cluster: ClusterSettings,
    *,
    per_task: int,
) -> Iterator[dict[str, Any]]:
    """Rows that workers make of numbers, in the order of the numbers.

    Any number of workers gives the same rows; what a killed one had in hand is done again.

    Args:
        worker: a class; an object of it lives in each worker process and is called with
            {"data": numbers}, for which it returns columns with one entry for each number.
        arguments: of its constructor.
        numbers: what there is to do.
        cluster: the workers.
        per_task: numbers handed to a worker at once.
    """
    if not numbers:
        return
    ray = import_ray()
    data = ray.data.from_numpy(np.asarray(numbers, dtype=np.int64))
    data = data.repartition(-(-len(numbers) // per_task))
    data.context.execution_options.preserve_order = True
    data.context.execution_options.verbose_progress = False
    data.context.enable_progress_bars = False  # builds have their own
    answered = data.map_batches(
        worker,
        fn_constructor_args=arguments,
        batch_size=per_task,
        compute=ray.data.ActorPoolStrategy(size=cluster.workers),
        num_cpus=cluster.cpus,
        num_gpus=cluster.gpus,
    )
    yield from answered.iter_rows()


def pack_table(table: Any) -> bytes:
    """An Arrow table as bytes, which Ray moves as they are."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def unpack_table(content: bytes) -> Any:
    """What `pack_table` packed."""
    import pyarrow as pa

    return pa.ipc.open_stream(content).read_all()


def _call(question: Callable[[], AnswerT]) -> AnswerT:
    return question()
