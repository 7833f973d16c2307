"""Runs an evaluation: photos in, rows out, in any number of processes, with the same result.

A protocol is an `EvaluationTask`: how an item is loaded, answered, turned into rows, and how rows
become metrics. The runner decides when and where: loading (decoding JPEGs) and rows (run-length
codes, overlaps) go on in threads while the caller's thread runs the model. Items are cut into fixed
groups, so that the model sees the same batches in one process, in many, and after a stop.
"""

from __future__ import annotations

import hashlib
import tempfile
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from tqdm import tqdm

from tokenize_anything.evaluation.processes import ProcessShare
from tokenize_anything.evaluation.run_files import (
    ItemKey,
    RunFolder,
    line_of,
    read_json,
    write_json,
)

Metric = tuple[str, float]
In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True, eq=False)
class WorkItem:
    """What is loaded, answered and written as one: mostly a photo with its regions.

    key: unique among the items; names the item in the files, so a resumed run knows it again.
    paths: photos it needs; those that are missing are found before the work starts.
    content: whatever the task needs to know about it.
    """

    key: ItemKey
    paths: tuple[Path, ...]
    content: Any = None


class EvaluationTask(Protocol):
    """One protocol. The runner calls `load` and `to_rows` from threads, the rest from its own."""

    name: str

    def load(self, item: WorkItem) -> Any:
        """Decode the photo and make the prompts; in a thread."""

    def answer(self, loaded: Sequence[Any]) -> Sequence[Any]:
        """Ask the model about one group of items together: one answer for each, in order."""

    def to_rows(self, item: WorkItem, loaded: Any, answer: Any) -> list[dict[str, Any]]:
        """Turn an answer into plain JSON objects; in a thread."""

    def score(self, items: Sequence[WorkItem], rows: Iterator[dict[str, Any]]) -> Iterator[Metric]:
        """Turn the rows of all items, in order, into (metric, value) pairs."""


@dataclass(frozen=True)
class RunTimes:
    """Seconds of a run, each summed over its processes; a resumed run counts from its resumption.

    busy: from the first photo to the last row. model: what the model took of that. load, rows: in
    threads beside the model, so not part of `busy` unless the model had to wait.
    metric: from rows to metrics, after the rest, in one process.
    """

    items: int = 0
    processes: int = 1
    busy: float = 0.0
    model: float = 0.0
    load: float = 0.0
    rows: float = 0.0
    metric: float = 0.0

    @property
    def overhead(self) -> float:
        """Share that the runner adds to the model's own time."""
        return self.busy / self.model - 1 if self.model else 0.0


@dataclass(frozen=True)
class RunnerConfig:
    """How an evaluation runs.

    out: folder of rows, results and metrics; a run that stopped goes on there. None keeps nothing.
    group_size: items the model answers together. Part of what a run is, see `run_evaluation`.
    num_threads: threads that load, and as many that make rows.
    skip_missing: leave out items whose photos are missing; otherwise they are an error.
    max_items: only the first items; for a quick look.
    show_progress: whether to draw a bar on stderr.
    on_times: called with the seconds of the run when it is over.
    """

    out: str | Path | None = None
    group_size: int = 8
    num_threads: int = 2
    skip_missing: bool = False
    max_items: int | None = None
    show_progress: bool = True
    on_times: Callable[[RunTimes], None] | None = None

    def __post_init__(self) -> None:
        for name in ("group_size", "num_threads", "max_items"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")


@dataclass
class _Clock:
    """Adds up the seconds of the stages; threads share it."""

    seconds: dict[str, float] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            passed = time.perf_counter() - start
            with self.lock:
                self.seconds[stage] = self.seconds.get(stage, 0.0) + passed


def run_evaluation(
    task: EvaluationTask,
    items: Sequence[WorkItem],
    settings: Mapping[str, Any],
    config: RunnerConfig | None = None,
) -> Iterator[Metric]:
    """Run a task over all items and score it.

    Under `torchrun` the processes share the groups of items; each appends its rows to a file of
    its own in `config.out`, and the first one joins and scores them. The rows of an item depend on
    its group only, so the result is the same for any number of processes and after any stop.

    Args:
        task: the protocol.
        items: in the order of the results.
        settings: what decides the answers besides the items (model, data, options), as plain JSON
            values; a folder that was begun with others is refused. `model_digest` and
            `run_files.file_digest` make short ones.
        config: how to run.

    Yields:
        (metric, value) of `task.score`, in the first process only; and "missing photos", where
        items were left out for that.

    Raises:
        FileNotFoundError: photos are missing and `skip_missing` is False; they are listed.
        ValueError: no items, keys that occur twice, a folder of another run, or several processes
            without `out`.
    """
    config = config or RunnerConfig()
    share = ProcessShare.from_environment()
    items, num_missing = _present_items(items, config, is_first=share.is_first)
    with share.connected(), _opened(task, settings, config, share) as folder:
        clock = _Clock()
        _run_share(task, items, folder=folder, share=share, config=config, clock=clock)
        write_json(folder.folder / f"times.{share.rank}.json", clock.seconds)
        share.wait_for_others()
        if not share.is_first:
            return
        start = time.perf_counter()
        folder.join([item.key for item in items])
        metrics = list(task.score(items, folder.rows()))
        if num_missing:
            metrics.append(("missing photos", float(num_missing)))
        times = _sum_times(folder.folder, share.world, len(items), time.perf_counter() - start)
        write_json(folder.folder / "times.json", asdict(times))
        write_json(folder.folder / "metrics.json", dict(metrics))
        if config.on_times is not None:
            config.on_times(times)
    yield from metrics


def model_digest(predictor: Any) -> str:
    """Sixteen hexadecimal digits that differ where weights, dtype, configuration or concepts do.

    The first values of every tensor are read. A predictor without tensors is told by its `name`.
    """
    digest = hashlib.sha256()
    model, concepts = getattr(predictor, "model", None), getattr(predictor, "concepts", None)
    tensors = {}
    if model is not None:
        digest.update(repr(model.config).encode())
        tensors = dict(model.state_dict())
    if concepts is not None:
        digest.update(repr(concepts.names).encode())
        tensors["concepts"] = concepts.weights
    digest.update(getattr(predictor, "name", "").encode())
    for name, tensor in tensors.items():
        head = tensor.detach().flatten()[:64].cpu().double().numpy()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(np.ascontiguousarray(head).tobytes())
    return digest.hexdigest()[:16]


# --- what is to be done -------------------------------------------------------------------------


def _present_items(
    items: Sequence[WorkItem], config: RunnerConfig, *, is_first: bool
) -> tuple[Sequence[WorkItem], int]:
    """Items whose photos exist, and how many were left out."""
    items = items[: config.max_items]
    if not items:
        raise ValueError("items: expected at least one photo with regions, got an empty split")
    if len({item.key for item in items}) < len(items):
        raise ValueError("items: expected different keys, some occur more than once")
    missing = [path for item in items for path in item.paths if not path.is_file()]
    if not missing:
        return items, 0
    listed = f"{', '.join(map(str, missing[:20]))}{', ...' if len(missing) > 20 else ''}"
    if not config.skip_missing:
        raise FileNotFoundError(
            f"images: {len(missing)} photos are missing: {listed}; give the folder that holds "
            "them, or leave them out with --skip-missing (skip_missing=True)"
        )
    gone = set(missing)
    present = [item for item in items if gone.isdisjoint(item.paths)]
    if not present:
        raise FileNotFoundError(f"images: all {len(missing)} photos are missing: {listed}")
    if is_first:
        warnings.warn(f"{len(missing)} photos are missing and left out: {listed}", stacklevel=3)
    return present, len(missing)


@contextmanager
def _opened(
    task: EvaluationTask, settings: Mapping[str, Any], config: RunnerConfig, share: ProcessShare
) -> Iterator[RunFolder]:
    """The folder of the run, or a temporary one that only lives as long as the run."""
    asked = {
        "task": task.name,
        "group_size": config.group_size,
        "max_items": config.max_items,
        "skip_missing": config.skip_missing,
        **settings,
    }
    if config.out is not None:
        yield RunFolder(Path(config.out), asked)
        return
    if share.world > 1:
        raise ValueError("out: several processes need a folder they share; pass --out (out=)")
    with tempfile.TemporaryDirectory(prefix="tap-evaluate-") as temporary:
        yield RunFolder(Path(temporary), asked)


# --- doing it -----------------------------------------------------------------------------------


def _run_share(
    task: EvaluationTask,
    items: Sequence[WorkItem],
    *,
    folder: RunFolder,
    share: ProcessShare,
    config: RunnerConfig,
    clock: _Clock,
) -> None:
    """Write the rows of all groups that are this process's and not on disk yet."""
    finished, size = folder.finished_keys(), config.group_size
    groups = [items[start : start + size] for start in range(0, len(items), size)]
    own = groups[share.rank :: share.world]
    # A group that was cut in the middle is answered again as a whole: the same batch as ever.
    to_do = [group for group in own if any(item.key not in finished for item in group)]
    num_items, num_to_do = sum(map(len, own)), sum(map(len, to_do))
    bar = tqdm(
        total=num_items,
        initial=num_items - num_to_do,
        desc=task.name,
        unit="photo",
        disable=not (config.show_progress and share.is_first),
    )
    with folder.open_part(share.rank) as part, bar, clock.measure("busy"):
        for group, lines in _finished_groups(task, to_do, config, clock):
            for line in lines:
                part.write(line)
                part.flush()
            bar.update(len(group))


def _finished_groups(
    task: EvaluationTask,
    groups: Iterable[Sequence[WorkItem]],
    config: RunnerConfig,
    clock: _Clock,
) -> Iterator[tuple[Sequence[WorkItem], list[bytes]]]:
    """Lines of every group, in order: loaded in threads, answered here, written in threads."""

    def load(group: Sequence[WorkItem]) -> list[Any]:
        with clock.measure("load"):
            return [task.load(item) for item in group]

    def answer(group: Sequence[WorkItem], loaded: list[Any]) -> _Answered:
        with clock.measure("model"):
            return _Answered(group, loaded, task.answer(loaded))

    def to_lines(answered: _Answered) -> list[bytes]:
        with clock.measure("rows"):
            each = zip(answered.group, answered.loaded, answered.answers, strict=True)
            return [line_of(item.key, task.to_rows(item, *pair)) for item, *pair in each]

    ahead = config.num_threads
    with (
        ThreadPoolExecutor(config.num_threads, "load") as loaders,
        ThreadPoolExecutor(config.num_threads, "rows") as writers,
    ):
        loaded = _in_threads(loaders, load, groups, ahead)
        answered = (answer(group, photos) for group, photos in loaded)
        for done, lines in _in_threads(writers, to_lines, answered, ahead):
            yield done.group, lines


@dataclass(frozen=True, eq=False)
class _Answered:
    """A group on its way from the model to its rows."""

    group: Sequence[WorkItem]
    loaded: list[Any]
    answers: Sequence[Any]


def _in_threads(
    pool: ThreadPoolExecutor, work: Callable[[In], Out], items: Iterable[In], ahead: int
) -> Iterator[tuple[In, Out]]:
    """Yield (item, work(item)) in order, with at most `ahead` more items under way."""
    pending: deque[tuple[In, Future[Out]]] = deque()
    try:
        for item in items:
            pending.append((item, pool.submit(work, item)))
            if len(pending) > ahead:
                first, future = pending.popleft()
                yield first, future.result()
        while pending:
            first, future = pending.popleft()
            yield first, future.result()
    finally:  # after an error or Ctrl-C, what has not begun never does
        for _, future in pending:
            future.cancel()


def _sum_times(folder: Path, world: int, num_items: int, metric: float) -> RunTimes:
    parts = [read_json(folder / f"times.{rank}.json") for rank in range(world)]
    stages = ("busy", "model", "load", "rows")
    total = {stage: sum(part.get(stage, 0.0) for part in parts) for stage in stages}
    return RunTimes(items=num_items, processes=world, metric=metric, **total)
