"""Readers of described boxes: every form, what they leave out, and what they refuse."""

import json
import pickle
import re

import pytest

from tokenize_anything.evaluation.caption_data import (
    count_regions,
    read_coco_captions,
    read_densecap,
    read_refcoco,
)


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def coco_content():
    """As GRiT's files: one caption an annotation; and, for people's own data, lists of captions."""
    return {
        "images": [{"id": 5, "file_name": "5.jpg"}, {"id": 3, "file_name": "3.jpg"}, {"id": 9}],
        "annotations": [
            {"id": 1, "image_id": 3, "bbox": [2, 3, 5, 7], "caption": "a red car"},
            {"id": 2, "image_id": 3, "bbox": [0.5, 0, 11, 13], "captions": ["a dog", "one dog"]},
            {"id": 3, "image_id": 5, "bbox": [1, 1, 2, 2], "caption": " "},
            {"id": 4, "image_id": 5, "bbox": [1, 1, 2, 2]},
            {"id": 6, "image_id": 5, "bbox": [4, 4, 8, 8], "caption": "grass"},
        ],
    }


def test_coco_captions(tmp_path):
    (tmp_path / "VG_100K_2").mkdir()
    (tmp_path / "VG_100K_2" / "3.jpg").touch()
    path = write(tmp_path / "test.json", coco_content())
    first, second = read_coco_captions(path, tmp_path)
    assert (first.image_id, first.path) == (5, tmp_path / "5.jpg")  # not there: said later
    assert (second.image_id, second.path) == (3, tmp_path / "VG_100K_2" / "3.jpg")
    assert [region.region_id for region in first.regions] == [6]
    assert [region.references for region in second.regions] == [
        ("a red car",),
        ("a dog", "one dog"),
    ]
    assert second.regions[0].box_xyxy == (2, 3, 7, 10)
    assert count_regions([first, second]) == 3


def densecap_files(folder):
    regions = [
        {"region_id": 11, "x": 2, "y": 3, "width": 5, "height": 7, "phrase": "the clock is green"},
        {"region_id": 12, "x": 0, "y": 0, "width": 9, "height": 4, "phrase": "shade along street"},
    ]
    content = [
        {"id": 1, "regions": regions},
        {"id": 2, "regions": [{**regions[0], "region_id": 21, "phrase": "a sign"}]},
        {"id": 4, "regions": []},
    ]
    described = write(folder / "region_descriptions.json", content)
    splits = write(folder / "densecap_splits.json", {"train": [2], "val": [4], "test": [1, 8]})
    return described, splits


def test_densecap_splits(tmp_path):
    described, splits = densecap_files(tmp_path)
    (image,) = read_densecap(described, splits, "test", tmp_path)
    assert (image.image_id, image.path) == (1, tmp_path / "1.jpg")
    assert [(each.region_id, each.references) for each in image.regions] == [
        (11, ("the clock is green",)),
        (12, ("shade along street",)),
    ]
    assert image.regions[0].box_xyxy == (2, 3, 7, 10)
    (image,) = read_densecap(described, splits, "train", tmp_path)
    assert image.image_id == 2


def refs_rows():
    def row(ref_id, ann_id, split, texts):
        sentences = [
            {"tokens": text.split(), "raw": text.upper(), "sent_id": 10 * ref_id + n, "sent": text}
            for n, text in enumerate(texts)
        ]
        return {
            "ref_id": ref_id,
            "ann_id": ann_id,
            "image_id": 7,
            "split": split,
            "sent_ids": [each["sent_id"] for each in sentences],
            "category_id": 3,
            "file_name": "COCO_train2014_000000000007_1.jpg",
            "sentences": sentences,
        }

    return [
        row(1, 100, "val", ["left man", "man in red"]),
        row(2, 101, "testA", ["the dog"]),
        row(3, 100, "val", ["guy on the left"]),
    ]


def python2_pickle(content):
    """Protocol 0 with the byte strings of Python 2, as the published files are."""
    return re.sub(rb"V([^\n]*)\n", rb"S'\1'\n", pickle.dumps(content, 0))


def refcoco_files(folder, raw=None, annotations=(100, 101)):
    refs = folder / "refs(unc).p"
    refs.write_bytes(python2_pickle(refs_rows()) if raw is None else raw)
    content = {
        "images": [{"id": 7, "file_name": "COCO_train2014_000000000007.jpg"}],
        "annotations": [{"id": n, "image_id": 7, "bbox": [n - 99, 2, 3, 4]} for n in annotations],
    }
    return refs, write(folder / "instances.json", content)


@pytest.mark.parametrize("dump", [python2_pickle, pickle.dumps, lambda rows: pickle.dumps(rows, 2)])
def test_refcoco_gathers_all_sentences_of_a_box(tmp_path, dump):
    refs, instances = refcoco_files(tmp_path, dump(refs_rows()))
    (image,) = read_refcoco(refs, instances, "val", tmp_path)
    (region,) = image.regions
    assert image.path == tmp_path / "COCO_train2014_000000000007.jpg"
    assert region.references == ("left man", "man in red", "guy on the left")
    assert (region.region_id, region.box_xyxy) == (100, (1, 2, 4, 6))
    (image,) = read_refcoco(refs, instances, "testA", tmp_path)
    assert image.regions[0].references == ("the dog",)


class Attack:
    def __reduce__(self):
        return (print, ("owned",))


def test_a_refs_pickle_with_code_is_refused(tmp_path, capsys):
    rows = refs_rows()
    rows[1]["sentences"] = Attack()
    for protocol in (0, 2, 4):
        refs, instances = refcoco_files(tmp_path, pickle.dumps(rows, protocol))
        with pytest.raises(ValueError, match=r"refs: expected a RefCOCO pickle .*builtin.*\.print"):
            read_refcoco(refs, instances, "val", tmp_path)
    assert capsys.readouterr().out == ""


def broken(change):
    rows = refs_rows()
    change(rows)
    return pickle.dumps(rows)


@pytest.mark.parametrize(
    ("raw", "split", "message"),
    [
        (None, "test", r"split: expected one of \['testA', 'val'\], .* got 'test'"),
        (pickle.dumps([]), "val", "expected a list of refs, got list"),
        (pickle.dumps({"a": 1}), "val", "expected a list of refs, got dict"),
        (broken(lambda rows: rows[2].pop("ann_id")), "val", r"ref 2: .* \['ann_id'\] missing"),
        (broken(lambda rows: rows[0].update(sentences=[3])), "val", "box 100: expected sentences"),
        (b"", "val", "the file is empty"),
        (python2_pickle(refs_rows())[:-9], "val", "truncated or damaged"),
    ],
)
def test_damaged_refs(tmp_path, raw, split, message):
    refs, instances = refcoco_files(tmp_path, raw)
    with pytest.raises(ValueError, match=message):
        read_refcoco(refs, instances, split, tmp_path)


def test_refs_of_another_data_set(tmp_path):
    refs, instances = refcoco_files(tmp_path, annotations=(101, 102))
    with pytest.raises(ValueError, match=r"1 of the 1 boxes .* first \[100\]; .*same data set"):
        read_refcoco(refs, instances, "val", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("annotations"), r"lacks the lists \['annotations'\]"),
        (lambda c: c["annotations"].clear(), "has no region with a caption"),
        (lambda c: c["annotations"][0].pop("bbox"), "annotation 1: expected the key 'bbox'"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "4 finite numbers"),
        (lambda c: c["annotations"][0].update(caption=3), "captions as text or a list"),
        (lambda c: c["images"].pop(1), r"1 images are not listed, first \['3'\]"),
    ],
)
def test_damaged_coco_captions(tmp_path, change, message):
    content = coco_content()
    change(content)
    with pytest.raises(ValueError, match=message):
        read_coco_captions(write(tmp_path / "test.json", content), tmp_path)


def test_bad_densecap_files(tmp_path):
    described, splits = densecap_files(tmp_path)
    with pytest.raises(ValueError, match=r"split: expected one of \['test', 'train', 'val'\]"):
        read_densecap(described, splits, "dev", tmp_path)
    with pytest.raises(ValueError, match=r"'val' lists 1 photos, .* describes none of them"):
        read_densecap(described, splits, "val", tmp_path)
    with pytest.raises(ValueError, match=r"splits: .*: expected a dict, got a list"):
        read_densecap(described, described, "test", tmp_path)
    with pytest.raises(FileNotFoundError, match="annotations: no file at"):
        read_densecap(tmp_path / "none.json", splits, "test", tmp_path)
    described.write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        read_densecap(described, splits, "test", tmp_path)
