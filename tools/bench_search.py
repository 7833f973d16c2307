"""Exact and approximate search in token stores of synthetic vectors; rows to a CSV.

python tools/bench_search.py --rows 100000 1000000

IVF_RQ is what `search_index.build_index` makes; other kinds (--kinds IVF_RQ IVF_SQ IVF_HNSW_SQ) are
Lance's with its usual settings, and asked in the same way. CPU times count all threads.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from bench_rows import append_row, environment
from bench_search_cases import draw_vectors, nearest_ids, write_store
from bench_search_runs import BUILT, build, measure_folder, search


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--kinds", nargs="+", default=[BUILT])
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--exact-queries", type=int, default=40)
    parser.add_argument("--out", default="tools/bench_results/search.csv")
    arguments = parser.parse_args()
    facts, lance = environment("cpu", sys.argv), f"pylance {version('pylance')}"
    queries = draw_vectors(arguments.queries, 7)
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tokens.lance"
            write_store(path, rows)
            truth, size = nearest_ids(rows, queries), ("store", measure_folder(path), "MB")
            few = queries[: arguments.exact_queries]
            results = {"exact": [*search(path, "exact", few, truth), size]}
            for kind in arguments.kinds:
                results[kind] = [*build(path, kind), *search(path, "approximate", queries, truth)]
        for name, measured in results.items():
            for what, value, unit in measured:
                subject = f"{rows} x 384, {name}", lance
                append_row(arguments.out, facts, subject, (what, float(value), unit))
    return 0


if __name__ == "__main__":
    sys.exit(main())
