"""Classifiers on semantic tokens beside the concept head: top-1 on the names of annotated boxes.

python tools/eval_downstream.py --train DIR/train.json --val DIR/val.json --images DIR/images

The linear probe and the nearest neighbours learn from the tokens of the training file; names that
it lacks count as wrong for them. Settings are the package's own. The concept head answers as it is.
One that was fitted on names (as tap_tiny's at last) is no zero-shot classifier; `--distilled FILE`
adds the head as stage 1 left it, which knows names from the teacher's distributions alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from eval_box_tokens import BoxTokens, encode_boxes
from eval_names import Row, accuracies, few_rows
from eval_rows import append_rows

from tokenize_anything import TAPPredictor
from tokenize_anything.build import load_model
from tokenize_anything.downstream.probes import fit_linear_probe, fit_neighbours

FITS = {"linear probe": fit_linear_probe, "nearest neighbours": fit_neighbours}
FEW = (1, 5)  # examples of each name


def score(
    predictor: TAPPredictor, train: BoxTokens, val: BoxTokens, distilled: Path | None
) -> Iterator[Row]:
    yield "data", "training regions", len(train.names)
    yield "data", "validation regions", len(val.names)
    heads = {"concept head": val.embeddings}
    if distilled is not None:
        head = load_model(distilled, device="cpu", dtype="float32").image_decoder.semantic_head
        with torch.no_grad():
            heads["concept head, distilled only"] = head(torch.from_numpy(val.tokens)).numpy()
    for name, embeddings in heads.items():
        found, _ = predictor.describe_concepts(embeddings)
        yield from accuracies(name, [names[0] for names in found], val.names)
    for name, fit in FITS.items():
        classifier = fit(train.tokens, train.names.tolist())
        yield from accuracies(name, classifier.predict(val.tokens), val.names)
    order = np.random.default_rng(0).permutation(len(train.names))
    for rows in (order[: len(order) // share] for share in (16, 4, 2)):
        classifier = fit_linear_probe(train.tokens[rows], train.names[rows].tolist())
        found = classifier.predict(val.tokens)
        yield from accuracies(f"linear probe, {len(rows)} regions", found, val.names)
    for count in FEW:
        rows = few_rows(train.names, count)
        classifier = fit_linear_probe(train.tokens[rows], train.names[rows].tolist())
        found = classifier.predict(val.tokens)
        yield from accuracies(f"linear probe, {count} of each name", found, val.names)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tap_tiny")
    parser.add_argument("--train", required=True)
    parser.add_argument("--val", required=True)
    parser.add_argument("--images", required=True, help="folder of the photos")
    parser.add_argument("--distilled", type=Path, help="the same model as stage 1 left it")
    parser.add_argument("--every", type=int, default=1, help="learn from every n-th photo")
    parser.add_argument("--cache", type=Path, default=Path("out/box_tokens"))
    parser.add_argument("--out", default="tools/eval_results/downstream.csv")
    a = parser.parse_args()
    encode = partial(encode_boxes, a.model, images=a.images, cache=a.cache)
    val, train = encode(annotations=a.val), encode(annotations=a.train, every=a.every)
    predictor = TAPPredictor.from_pretrained(a.model, dtype="float32")
    append_rows(a.out, a.model, a.val, sys.argv, score(predictor, train, val, a.distilled))
    return 0


if __name__ == "__main__":
    sys.exit(main())
