"""AP against pycocotools, the lvis package where it is there, and the definition in words."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest

from tokenize_anything.evaluation.average_precision import average_precision
from tokenize_anything.evaluation.coco_truth import read_truth
from tokenize_anything.geometry import decode_rle, encode_rle, masks_to_boxes

pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed")

NUM_CATEGORIES = 5


def random_disc(rng, height, width):
    y, x = np.ogrid[:height, :width]
    radius = rng.choice([6, 25, 70])
    mask = (x - rng.uniform(0, width)) ** 2 + (y - rng.uniform(0, height)) ** 2 <= radius**2
    mask[height // 2, width // 2] |= not mask.any()
    return mask


def box_of(mask):
    x0, y0, x1, y1 = masks_to_boxes(mask[None])[0].tolist()
    return [x0, y0, x1 - x0, y1 - y0]


def random_case(folder, seed, *, is_lvis):
    """Photos of several sizes, every fourth empty; crowds; scores of one digit, so many ties."""
    rng = np.random.default_rng(seed)
    images, annotations, results = [], [], []
    for number in range(1, 13):
        height, width = (int(side) for side in rng.integers(100, 260, 2))
        image = {"id": 7 * number, "height": height, "width": width, "file_name": f"{number}.jpg"}
        if is_lvis:
            categories = 1 + rng.permutation(NUM_CATEGORIES)
            image["neg_category_ids"] = categories[:2].tolist()
            image["not_exhaustive_category_ids"] = categories[1:2].tolist()
        images.append(image)
        for _ in range(int(rng.integers(1, 7)) if number % 4 else 0):
            mask, category = random_disc(rng, height, width), int(rng.integers(1, NUM_CATEGORIES))
            annotations.append(
                {
                    "id": len(annotations),  # from 0: backends take 0 for "no match"
                    "image_id": 7 * number,
                    "category_id": category,
                    "segmentation": encode_rle(mask),
                    "bbox": box_of(mask),
                    "area": int(mask.sum()),
                    "iscrowd": int(not is_lvis and rng.random() < 0.15),
                }
            )
            for _ in range(int(rng.integers(0, 4))):
                found = np.roll(mask, rng.integers(-6, 7, 2), (0, 1))
                wrong = int(rng.integers(1, NUM_CATEGORIES + 1))
                result = {"image_id": 7 * number, "score": round(float(rng.random()), 1)}
                result["category_id"] = category if rng.random() < 0.7 else wrong
                results.append({**result, "segmentation": encode_rle(found), "bbox": box_of(found)})
    categories = [{"id": each, "name": f"c{each}"} for each in range(1, NUM_CATEGORIES + 1)]
    if is_lvis:
        for category, frequency in zip(categories, "rcfrc", strict=True):
            category |= {"frequency": frequency, "image_count": 1, "instance_count": 1}
    path = folder / "truth.json"
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))
    return path, results


def of_kind(results, kind):
    unused = "bbox" if kind == "segm" else "segmentation"
    return [{key: value for key, value in row.items() if key != unused} for row in results]


def from_one(path):
    """The same file with annotation ids from 1, which the reference packages need."""
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        annotation["id"] += 1
    path = path.with_name("from_one.json")
    path.write_text(json.dumps(content))
    return str(path)


def assert_equal(found, wanted):
    wanted = {name: value for name, value in wanted.items() if value > -1}
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name] == pytest.approx(100 * value, abs=1e-6), name


def pycocotools_metrics(path, results, kind, limit):
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO(from_one(path))
        evaluation = COCOeval(truth, truth.loadRes([dict(row) for row in results]), kind)
        evaluation.params.maxDets = [limit]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0]  # thresholds, recalls, categories, areas

    def mean(values):
        return values[values > -1].mean() if (values > -1).any() else -1

    names = {"AP": precision[..., 0], "AP50": precision[0, ..., 0], "AP75": precision[5, ..., 0]}
    areas = {name: precision[..., index] for index, name in enumerate(("APs", "APm", "APl"), 1)}
    return {name: mean(values) for name, values in (names | areas).items()}


@pytest.mark.parametrize("kind", ["segm", "bbox"])
@pytest.mark.parametrize(("seed", "limit"), [(0, None), (1, 2), (2, None)])
def test_equals_pycocotools_with_ties_crowds_and_empty_photos(tmp_path, kind, seed, limit):
    path, results = random_case(tmp_path, seed, is_lvis=False)
    results = of_kind(results, kind)
    found = dict(average_precision(read_truth(path), results, kind=kind, max_detections=limit))
    assert_equal(found, pycocotools_metrics(path, results, kind, limit or 100))


@pytest.mark.parametrize("kind", ["segm", "bbox"])
@pytest.mark.parametrize(("seed", "limit"), [(0, 300), (1, 4)])
def test_equals_the_lvis_package(tmp_path, kind, seed, limit, monkeypatch):
    lvis = pytest.importorskip("lvis", reason="lvis is not installed (pip install --no-deps lvis)")
    monkeypatch.setattr(np, "float", float, raising=False)  # lvis 0.5.3 uses a name NumPy dropped
    path, results = random_case(tmp_path, seed, is_lvis=True)
    results = of_kind(results, kind)
    truth = lvis.LVIS(from_one(path))
    answers = lvis.LVISResults(truth, [dict(row) for row in results], max_dets=limit)
    evaluation = lvis.LVISEval(truth, answers, kind)
    evaluation.params.max_dets = limit
    evaluation.run()
    wanted = evaluation.get_results()
    names = {"APr": "AP rare", "APc": "AP common", "APf": "AP frequent"}
    wanted = {names.get(name, name): wanted[name] for name in wanted if name.startswith("AP")}
    found = dict(average_precision(read_truth(path), results, kind=kind, max_detections=limit))
    assert_equal(found, wanted)


def match(detections, truths, threshold):
    """Which detections, best first, find a truth that is left: the best, or the last of equals."""
    free, is_right = list(range(len(truths))), []
    for detection in detections:
        mask = decode_rle(detection["segmentation"])
        overlaps = [(mask & truths[i]).sum() / (mask | truths[i]).sum() for i in free]
        best = max(range(len(free)), key=lambda i: (overlaps[i], i)) if free else None
        is_found = best is not None and overlaps[best] >= threshold - 1e-10
        is_right.append(is_found)
        if is_found:
            free.pop(best)
    return is_right


def plain_lvis_ap(content, results, category, threshold, limit):
    """AP of one category at one threshold (Gupta et al. 2019); None where it has no truth."""
    scored, num_truths = [], 0
    for image in sorted(content["images"], key=lambda image: image["id"]):
        truths = [
            decode_rle(each["segmentation"])
            for each in content["annotations"]
            if (each["image_id"], each["category_id"]) == (image["id"], category)
        ]
        if not truths and category not in image["neg_category_ids"]:
            continue  # nobody looked for it on this photo
        of_photo = [row for row in results if row["image_id"] == image["id"]]
        best = sorted(of_photo, key=lambda row: -row["score"])[:limit]
        detections = [row for row in best if row["category_id"] == category]
        num_truths += len(truths)
        is_loose = category in image["not_exhaustive_category_ids"]
        for row, is_right in zip(detections, match(detections, truths, threshold), strict=True):
            if is_right or not is_loose:  # more of it may be there, unannotated
                scored.append((row["score"], is_right))
    if not num_truths:
        return None
    scored.sort(key=lambda pair: -pair[0])
    right = np.cumsum([is_right for _, is_right in scored])
    recall, precision = right / num_truths, right / np.arange(1, len(right) + 1)
    wanted = np.linspace(0, 1, 101)
    return np.mean([precision[recall >= at].max(initial=0) for at in wanted])


@pytest.mark.parametrize("limit", [300, 4])
def test_equals_the_definition_of_lvis_ap(tmp_path, limit):
    path, results = random_case(tmp_path, 3, is_lvis=True)
    results, content = of_kind(results, "segm"), json.loads(path.read_text())
    truth = read_truth(path)
    found = dict(average_precision(truth, results, kind="segm", max_detections=limit))
    values = {
        category["id"]: [
            plain_lvis_ap(content, results, category["id"], threshold, limit)
            for threshold in np.linspace(0.5, 0.95, 10)
        ]
        for category in content["categories"]
    }
    known = {key: each for key, each in values.items() if each[0] is not None}
    assert 0 < len(known) < NUM_CATEGORIES  # one category has no truth
    assert found["AP"] == pytest.approx(100 * np.mean(list(known.values())), abs=1e-6)
    assert found["AP50"] == pytest.approx(100 * np.mean([each[0] for each in known.values()]))
    common = [known[key] for key in (2, 5) if key in known]
    assert found["AP common"] == pytest.approx(100 * np.mean(common), abs=1e-6)


def test_names_by_chance_get_the_share_of_their_category(tmp_path):
    rng = np.random.default_rng(0)
    images = [{"id": i, "height": 50, "width": 50, "file_name": "x"} for i in range(1, 1501)]
    shared = {"bbox": [5.0, 6.0, 20.0, 30.0], "area": 600.0, "iscrowd": 0}
    annotations = [
        {"id": i, "image_id": i, "category_id": int(rng.integers(1, 6)), **shared}
        for i in range(1, 1501)
    ]
    results = [
        {"image_id": i, "category_id": category, "bbox": shared["bbox"], "score": rng.random()}
        for i in range(1, 1501)
        for category in range(1, 6)
    ]
    categories = [{"id": i, "name": str(i)} for i in range(1, 6)]
    path = tmp_path / "truth.json"
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    metrics = dict(average_precision(read_truth(path), results, kind="bbox"))
    assert 17 < metrics["AP"] < 25


def test_photos_that_do_not_count_are_left_out_and_inputs_stay(tmp_path):
    path, results = random_case(tmp_path, 0, is_lvis=False)
    truth, results = read_truth(path), of_kind(results, "segm")
    before = json.dumps([truth.content, results])
    some = [7, 14, 21]
    found = dict(average_precision(truth, results, kind="segm", image_ids=some))
    content = json.loads(path.read_text())
    content["images"] = [each for each in content["images"] if each["id"] in some]
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] in some]
    path.write_text(json.dumps(content))
    rest = [row for row in results if row["image_id"] in some]
    assert found == dict(average_precision(read_truth(path), rest, kind="segm"))
    assert json.dumps([truth.content, results]) == before


def test_no_result_scores_nothing(tmp_path):
    path, _ = random_case(tmp_path, 0, is_lvis=False)
    assert dict(average_precision(read_truth(path), [], kind="segm"))["AP"] == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"image_id": 8}, r"image_id \[8\]"), ({"category_id": 9}, r"category_id \[9\]")],
)
def test_results_of_another_data_set_are_refused(tmp_path, wrong, message):
    path, results = random_case(tmp_path, 0, is_lvis=False)
    results[0] |= wrong
    with pytest.raises(ValueError, match=rf"results: {message} .* not in .*truth\.json"):
        list(average_precision(read_truth(path), results, kind="segm"))


def test_ids_that_are_text_are_refused(tmp_path):
    path, _ = random_case(tmp_path, 0, is_lvis=False)
    content = json.loads(path.read_text())
    content["images"].append({"id": "a", "height": 5, "width": 5, "file_name": "a.jpg"})
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"AP needs whole numbers as ids .*, got 'a'"):
        list(average_precision(read_truth(path), [], kind="segm"))
