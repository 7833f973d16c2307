"""A page on a recognition run: figures, diagrams, and the worst cases in pictures."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from tokenize_anything.checkpoints import replace_on_success
from tokenize_anything.contact_sheets import Tile, contact_sheet
from tokenize_anything.evaluation.caption_scores import PLAIN_SUFFIX, score_captions
from tokenize_anything.evaluation.recognition_scores import Row, is_ranked
from tokenize_anything.evaluation.region_truth import decode_true_image
from tokenize_anything.evaluation.report_pictures import (
    draw_confusion,
    draw_overlaps,
    draw_reliability,
    make_tile,
)
from tokenize_anything.evaluation.run_files import read_json
from tokenize_anything.evaluation.runner import Metric, WorkItem
from tokenize_anything.geometry import decode_rle
from tokenize_anything.image_transform import load_image

NUM_WORST = 12
_STYLE = (
    "body{font-family:sans-serif;max-width:70em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse}td,th{padding:.15em 1em .15em 0;text-align:left}"
    "td.n{text-align:right;font-variant-numeric:tabular-nums}img{max-width:100%}"
)


def write_report(
    path: str | Path,
    *,
    title: str,
    metrics: Sequence[Metric],
    rows: Sequence[Row],
    items: Sequence[WorkItem],
) -> None:
    """Write one HTML file with all pictures inside; parts without data are left out.

    Args:
        path: of the page; written whole or not at all.
        title: what was evaluated on what.
        metrics: of the run, in the order of the table.
        rows: of the recognition protocol.
        items: of the run, see `recognition_items`; photos of the worst cases are read again.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("rows: expected at least one region, got none")
    parts = [f"<h1>{html.escape(title)}</h1>", _table(metrics), *_diagrams(rows)]
    parts += _worst_cases(rows, items)
    page = (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{html.escape(title)}"
        f"</title><style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )
    with replace_on_success(Path(path).resolve()) as temporary:
        temporary.write_text(page, encoding="utf-8")


def report_run(folder: str | Path, items: Sequence[WorkItem], *, title: str) -> Path:
    """Write `report.html` into the folder of a finished recognition run.

    Raises:
        FileNotFoundError: the folder holds no finished run.
    """
    folder = Path(folder)
    for name in ("results.json", "metrics.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"out: {folder / name} is missing; the run is not finished")
    path = folder / "report.html"
    write_report(
        path,
        title=title,
        metrics=list(read_json(folder / "metrics.json").items()),
        rows=read_json(folder / "results.json"),
        items=items,
    )
    return path


def worst_rows(rows: Sequence[Row], count: int = NUM_WORST) -> dict[str, list[Row]]:
    """The regions that went worst, at most `count` of a kind; kinds without any are left out.

    Masks by measured IoU; names by how sure the model was of a wrong one; captions by their CIDEr
    on plain words, the longest of those with equal scores first.
    """
    masked = sorted((row for row in rows if row["ious"]), key=lambda row: row["ious"]["box"])
    wrong = [row for row in rows if is_ranked(row) and row["concepts"][0] != row["name"]]
    wrong.sort(key=lambda row: -row["concept_scores"][0])
    described = [row for row in rows if row["references"] and row["caption"] is not None]
    if described:
        scores = score_captions(
            [row["caption"] for row in described],
            [row["references"] for row in described],
            plain_words=True,
        )
        (cider,) = (score for score in scores if score.metric == f"CIDEr{PLAIN_SUFFIX}")
        order = sorted(
            range(len(described)),
            key=lambda row: (cider.rows[row], -len(described[row]["caption"])),
        )
        described = [described[row] for row in order]
    kinds = {
        "Masks with the lowest IoU (box prompt)": masked,
        "Wrong names the model was surest of": wrong,
        "Captions with the lowest CIDEr": described,
    }
    return {title: found[:count] for title, found in kinds.items() if found}


def _table(metrics: Sequence[Metric]) -> str:
    lines = [
        f"<tr><td>{html.escape(name)}</td><td class='n'>{_number(value)}</td></tr>"
        for name, value in metrics
    ]
    return f"<table><tr><th>metric</th><th>value</th></tr>{''.join(lines)}</table>"


def _number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) and abs(value) >= 10 else f"{value:.4f}"


def _diagrams(rows: Sequence[Row]) -> Iterator[str]:
    has_masks = any(row["ious"] for row in rows)
    has_names = any(is_ranked(row) for row in rows)
    if has_names:
        yield "<h2>Which name is taken for which</h2>" + _embed(draw_confusion(rows), "png")
    if has_masks or has_names:
        yield "<h2>Do scores mean what they say</h2>"
        yield "<p>Bars on the line would be right; the numbers count regions.</p>"
        yield _embed(draw_reliability(rows), "png")
    if has_masks:
        yield "<h2>Masks by size</h2>" + _embed(draw_overlaps(rows), "png")


def _worst_cases(rows: Sequence[Row], items: Sequence[WorkItem]) -> Iterator[str]:
    by_key = {item.key: item for item in items}
    for title, worst in worst_rows(rows).items():
        sheet = contact_sheet([_tile(row, by_key) for row in worst])
        yield f"<h2>{title}</h2><p>True outline green, predicted red.</p>" + _embed_photo(sheet)


def _tile(row: Row, items: Mapping[Any, WorkItem]) -> Tile:
    item = items[row["image_id"]]
    raw = [each for each in item.content if each["id"] == row["annotation_id"]]
    (truth,) = decode_true_image(item.paths[0], raw).regions
    return make_tile(
        load_image(str(item.paths[0])),
        truth.mask,
        decode_rle(row["segmentation"]),
        row["box_xyxy"],
        tuple(_lines(row)),
    )


def _lines(row: Row) -> Iterator[str]:
    """What a tile says of its region."""
    if row["ious"]:
        yield f"IoU {row['ious']['box']:.2f}, claimed {row['iou_score']:.2f}"
    name = row["name"] or "-"
    found = (
        f", found: {row['concepts'][0]} {row['concept_scores'][0]:.2f}" if row["concepts"] else ""
    )
    yield f"true: {name}{found}"
    if row["caption"] is not None:
        yield f"said: {row['caption']}"
    if row["references"]:
        yield f"reference: {row['references'][0]}"


def _embed_photo(picture: Image.Image) -> str:
    stream = io.BytesIO()
    picture.save(stream, format="JPEG", quality=85)
    return _embed(stream.getvalue(), "jpeg")


def _embed(content: bytes, kind: str) -> str:
    return f"<img alt='' src='data:image/{kind};base64,{base64.b64encode(content).decode()}'>"
