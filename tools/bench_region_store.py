"""Compare formats for regions with vectors: write, random read by id, size, and after SIGKILL.

python tools/bench_region_store.py --rows 102400
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from bench_rows import append_row, environment
from bench_store_cases import BATCH, time_formats
from bench_store_keyed import FORMATS
from bench_store_kills import kill_format

PACKAGES = {"lance": "pylance", "parquet": "pyarrow"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--rows", type=int, default=102400)
    parser.add_argument("--out", default="tools/bench_results/region_store.csv")
    arguments = parser.parse_args()
    facts = environment("cpu", sys.argv)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        timed = time_formats(arguments.formats, place, arguments.rows // BATCH)
        for name in arguments.formats:
            (place / f"{name}-killed").mkdir()
            subject = f"{name} {version(PACKAGES.get(name, name))}", "float16"
            for result in [*timed[name], *kill_format(name, place / f"{name}-killed")]:
                append_row(arguments.out, facts, subject, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
