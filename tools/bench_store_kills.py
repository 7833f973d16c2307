"""What a writer of one format leaves behind when it is killed, for bench_region_store."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from bench_store_cases import BATCH, Result, make_batch
from bench_store_keyed import FORMATS

KILLS, MAX_DELAY = 8, 0.4


def write_until_killed(name: str, folder: Path) -> None:
    """Batch after batch, each number printed once it is committed."""
    store, number = FORMATS[name](folder), 0
    while True:
        store.append(make_batch(number))
        print(number, flush=True)
        number += 1


def kill_writer(name: str, folder: Path, delay: float) -> tuple[int, int, int]:
    """Kill a writer in the middle. Returns rows (committed but gone, of a cut batch, wrong)."""
    command = [sys.executable, __file__, name, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        committed = [int(writer.stdout.readline()) for _ in range(2)]
        time.sleep(delay)
        writer.kill()
        committed += [int(line) for line in writer.stdout]
    batches = [make_batch(number) for number in range(committed[-1] + 2)]
    written, vectors = (np.concatenate([batch[part] for batch in batches]) for part in (0, 3))
    store = FORMATS[name](folder)
    ids = store.ids()
    known = ids[np.isin(ids, written)]
    try:
        read = store.read(known)
    except (IndexError, OSError, ValueError):
        read = np.zeros((len(known), vectors.shape[1]))  # nothing of it can be read
    order = np.argsort(written)
    truth = vectors[order[np.searchsorted(written[order], known)]]
    num_wrong = int((read != truth).any(axis=1).sum()) + len(ids) - len(known)
    num_lost = int((~np.isin(written[:-BATCH], ids)).sum())
    return num_lost, len(ids) % BATCH, num_wrong


def kill_format(name: str, folder: Path) -> list[Result]:
    delays = np.linspace(0, MAX_DELAY, KILLS)
    found = [kill_writer(name, folder / str(k), float(d)) for k, d in enumerate(delays)]
    lost, cut, wrong = np.sum(found, axis=0)
    return [
        (f"{KILLS} writers killed: committed and gone", float(lost), "rows"),
        (f"{KILLS} writers killed: of a batch cut short", float(cut), "rows"),
        (f"{KILLS} writers killed: wrong", float(wrong), "rows"),
    ]


if __name__ == "__main__":
    write_until_killed(sys.argv[1], Path(sys.argv[2]))
