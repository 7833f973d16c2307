"""Record every protocol on the photos of the model card: the built-in model and its baselines.

python tools/record_all.py DIR tap_tiny      # again, after its weights have changed
python tools/record_all.py DIR baselines     # what needs no learning

What a CSV already has from the same weights is left out; a stopped command goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from record_evaluation import describe, read_rows, record

from tokenize_anything.cli_evaluate_options import BASELINE

# Protocol, annotations and options, and what needs no learning in the same table.
CASES: tuple[tuple[str, str, str], ...] = (
    ("classification", "val.json", "commonest"),
    ("classification", "val_boxes.json", "commonest"),
    ("captioning", "val.json", "constant"),
    ("captioning", "val.json --num-beams 3", ""),
    ("captioning", "val.json --prompt centre", ""),
    ("captioning", "val.json --prompt random", ""),
    ("captioning", "val.json --prompt mask", ""),
    ("captioning", "val.json --prompt mask_point", ""),
    ("segmentation", "val.json", "filled_box ellipse grabcut"),
    ("video", "davis.json", "still flow filled_box ellipse grabcut"),
    ("video", "davis.json --prompt points", ""),
    ("video", "davis.json --prompt box_points", ""),
    ("recognition", "val.json", ""),
    ("recognition", "val_boxes.json --with-boxes", ""),
    ("interactive", "val.json", "filled_box ellipse disc"),
    ("clicks", "val.json", "disc"),
)
FILES = {"recognition": "own_data.csv"}  # recognition.csv is that of evaluate_regions.py


def commands(arguments: argparse.Namespace) -> Iterator[list[str]]:
    models = [model for model in arguments.models if model != "baselines"]
    for protocol, case, names in CASES:
        if arguments.protocols and protocol not in arguments.protocols:
            continue
        data, *options = case.split()
        options = ["--images", str(arguments.data / "images"), *options]
        if protocol == "interactive":
            options += ["--prompts", str(arguments.runs / "val_prompts.json")]
        if arguments.max_images:
            options += ["--max-images", str(arguments.max_images)]
        baselines = [BASELINE + name for name in names.split() if "baselines" in arguments.models]
        for model in [*models, *baselines]:
            yield [protocol, "--model", model, "--data", str(arguments.data / data), *options]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, metavar="DIR")
    parser.add_argument("models", nargs="+", help="names or files of models, and `baselines`")
    parser.add_argument("--protocols", nargs="+", help="only these")
    parser.add_argument("--max-images", type=int)
    parser.add_argument("--results", type=Path, default=Path("tools/eval_results"))
    parser.add_argument("--runs", type=Path, default=Path("out/evaluation"), help="keeps the rows")
    arguments = parser.parse_args()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    # GrabCut takes half a second for every region.
    for words in sorted(commands(arguments), key=lambda words: words[2] == "baseline:grabcut"):
        path = arguments.results / FILES.get(words[0], f"{words[0]}.csv")
        facts = describe(words)
        if any(tuple(row[2:6]) == facts[2:6] for row in read_rows(path)):
            print(f"recorded already: {facts[5]}", flush=True)
        elif code := record(path, words, arguments.runs):
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
