"""Token builds: every row against the predictor, only what changed is done, kills, bad photos."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.downstream.tiny_tokens import (
    SEARCH,
    SETTINGS,
    CountingMaker,
    hopeful_predictor,
    open_folder,
    read_entries,
    read_rows,
    write_photos,
)
from tests.tiny_predictor import make_photo
from tokenize_anything.data.lance_files import match_texts
from tokenize_anything.data.region_store import RegionStore
from tokenize_anything.data.region_store_check import verify_store
from tokenize_anything.downstream.token_build import TokenReport, TokenWork, build_tokens
from tokenize_anything.downstream.token_check import verify_tokens
from tokenize_anything.downstream.token_maker import TokenMaker, TokenSettings
from tokenize_anything.downstream.token_photos import FolderPhotos, read_source
from tokenize_anything.downstream.token_rows import (
    make_region_ids,
    model_identity,
    space_of_identity,
    token_columns,
)
from tokenize_anything.geometry import decode_rle

lance = pytest.importorskip("lance", reason="needs tokenize-anything[search]")
ROOT = Path(__file__).parents[2]
COUNT = 7
WORK = TokenWork(block=2, commit_photos=3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `photos` and `whole.lance`, built at once."""
    folder = tmp_path_factory.mktemp("tokens")
    write_photos(folder / "photos", COUNT)
    build_tokens(open_folder(folder / "photos"), CountingMaker(), folder / "whole.lance", WORK)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos", COUNT)


@pytest.fixture
def built(whole: Path, photos: Path) -> Path:
    """A store of `photos` to change, as if just built."""
    for ending in ("lance", "lance.photos"):
        shutil.copytree(whole / f"whole.{ending}", photos.parent / f"built.{ending}")
    return photos.parent / "built.lance"


@pytest.fixture(scope="module")
def maker() -> CountingMaker:
    return CountingMaker()


def build(folder: Path, out: Path, maker: TokenMaker, **work: Any) -> TokenReport:
    return build_tokens(open_folder(folder), maker, out, dataclasses.replace(WORK, **work))


def test_every_row_is_what_the_predictor_says(whole: Path) -> None:
    rows = read_rows(whole / "whole.lance")
    predictor = hopeful_predictor()
    start = 0
    names = open_folder(whole / "photos").names
    assert names == tuple(sorted(names))
    for name in names:
        path = whole / "photos" / name
        regions = predictor.predict_everything(path, config=SEARCH)
        end = start + len(regions)
        for column, values in (
            ("semantic_token", regions.semantic_tokens),
            ("semantic_embedding", regions.semantic_embeddings),
            ("mask_token", regions.mask_tokens),
            ("iou_score", regions.iou_scores),
            ("concept_score", regions.concept_scores[:, 0]),
            ("caption_score", regions.caption_scores),
            ("box_xyxy", regions.boxes_xyxy),
        ):
            found = np.array(rows[column][start:end])
            np.testing.assert_allclose(found, values, atol=2e-5, err_msg=column)
        assert rows["concept"][start:end] == [concepts[0] for concepts in regions.concepts]
        assert rows["caption"][start:end] == regions.captions
        assert rows["source"][start:end] == rows["image"][start:end] == [name] * len(regions)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert rows["source_hash"][start:end] == [digest] * len(regions)
        for row, mask in enumerate(regions.masks, start):
            rle = {"size": rows["mask_size_hw"][row], "counts": rows["mask_counts"][row]}
            np.testing.assert_array_equal(decode_rle(rle), mask)
            expected = hashlib.sha256(f"{name}\0{digest}\0{row - start}".encode()).hexdigest()
            assert rows["region_id"][row] == int(expected[:16], 16) // 2
        start = end
    assert start == len(rows["region_id"]) >= 10
    assert len(set(rows["caption"])) > 1
    assert verify_tokens(whole / "whole.lance", whole / "photos").problems == ()


def test_the_identity_is_that_of_the_weights_in_either_dtype() -> None:
    predictor = hopeful_predictor()
    identity = model_identity(predictor)
    assert identity.startswith("tap@")
    assert space_of_identity(identity) == ""
    assert model_identity(hopeful_predictor(shift=2.5)) != identity
    assert predictor.concepts is not None
    predictor.concepts = dataclasses.replace(predictor.concepts, space="MiniLM@12")
    assert model_identity(predictor) == f"{identity} in MiniLM@12"
    assert space_of_identity(model_identity(predictor)) == "MiniLM@12"
    once = predictor.model.config
    predictor.model.config = dataclasses.replace(once, zoom=0.5)  # other tokens from the weights
    assert not model_identity(predictor).startswith(identity)
    predictor.model.config = once
    predictor.concepts = None
    predictor.model.bfloat16()
    assert model_identity(predictor) == identity
    columns = token_columns(predictor, "float16")
    assert [(v.name, v.dim, v.dtype) for v in columns.vectors] == [
        ("semantic_token", 64, "float16"),
        ("semantic_embedding", 29, "float16"),
        ("mask_token", 64, "float16"),
    ]


# --- only what changed --------------------------------------------------------------------------


def test_a_second_run_does_nothing(photos: Path, maker: CountingMaker, tmp_path: Path) -> None:
    out = tmp_path / "a.lance"
    first = build(photos, out, maker)
    before, maker.worked_on = read_rows(out), list[str]()
    second = build(photos, out, maker)
    assert maker.worked_on == []
    assert read_rows(out) == before
    assert (first.num_done, second.num_done, second.num_removed) == (COUNT, 0, 0)
    assert (first.num_regions, first.num_photos) == (second.num_regions, second.num_photos)
    assert second.identity == maker.columns.identity


@pytest.mark.parametrize("change", ["delete", "alter", "add", "rename"])
def test_only_the_photo_that_changed_is_done(
    photos: Path, built: Path, maker: CountingMaker, tmp_path: Path, change: str
) -> None:
    before, maker.worked_on = read_rows(built, in_order=False), []
    changed = photos / "it's" / "5.png"
    if change == "delete":
        changed.unlink()
    elif change == "rename":
        changed.rename(photos / "new.png")
    else:
        name = changed if change == "alter" else photos / "new.png"
        Image.fromarray(make_photo(37, 43, 99)).save(name)
    report = build(photos, built, maker)
    expected = {"delete": [], "alter": ["it's/5.png"], "add": ["new.png"], "rename": ["new.png"]}
    assert maker.worked_on == expected[change]
    assert report.num_done == len(expected[change])
    assert report.num_removed == (change in ("delete", "rename"))
    after = read_rows(built, in_order=False)
    build(photos, tmp_path / "fresh.lance", maker)
    fresh = read_rows(tmp_path / "fresh.lance", in_order=False)
    assert_equal_but_for_rounding(after, fresh)
    old = [s for s in before["source"] if s != "it's/5.png"]
    assert sorted(s for s in after["source"] if s not in ("it's/5.png", "new.png")) == sorted(old)
    assert verify_tokens(built, photos).problems == ()
    if change == "alter":
        gone = set(before["region_id"]) - set(after["region_id"])
        assert gone == {
            i for i, s in zip(before["region_id"], before["source"], strict=True)
            if s == "it's/5.png"
        }  # fmt: skip


def assert_equal_but_for_rounding(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Caption scores depend in their last bits on the other photos of a block; so do check sums."""
    assert found.keys() == wanted.keys()
    for name in found.keys() - {"caption_score", "checksum"}:
        assert found[name] == wanted[name], name
    np.testing.assert_allclose(found["caption_score"], wanted["caption_score"], atol=2e-5)


def test_photos_without_regions_are_not_done_again(photos: Path, tmp_path: Path) -> None:
    nothing = dataclasses.replace(SEARCH, min_stability=1.0, stability_offset=99.0)
    strict = dataclasses.replace(SETTINGS, search=nothing)
    for count in (COUNT, 0):
        maker = TokenMaker(hopeful_predictor(), strict)
        report = build(photos, tmp_path / "none.lance", maker)
        assert (report.num_done, report.num_regions, report.num_photos) == (count, 0, COUNT)


def test_regions_that_were_lost_are_made_again(
    photos: Path, maker: CountingMaker, tmp_path: Path
) -> None:
    out = tmp_path / "a.lance"
    build(photos, out, maker)
    whole, maker.worked_on = read_rows(out, in_order=False), []
    source = whole["source"][0]
    lance.dataset(out).delete(f"region_id = {whole['region_id'][0]}")
    (problem,) = verify_tokens(out).problems
    assert problem.startswith(f"photo {source}: expected ")
    build(photos, out, maker)
    assert maker.worked_on == [source]
    assert_equal_but_for_rounding(read_rows(out, in_order=False), whole)


# --- kills --------------------------------------------------------------------------------------


def test_a_build_that_was_killed_twice_ends_with_the_same_store(
    whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed.lance"
    command = [sys.executable, "-m", "tests.downstream.tiny_tokens", str(whole / "photos"),
               str(out), "0.5"]  # fmt: skip
    for num_done in (2, 4):
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
            wait_for(out, num_done)
            process.kill()
        assert num_done <= len(read_entries(out)) < COUNT
    maker = CountingMaker()
    report = build(whole / "photos", out, maker)
    assert 0 < len(maker.worked_on) == report.num_done < COUNT
    assert read_rows(out) == read_rows(whole / "whole.lance")
    assert read_entries(out) == read_entries(whole / "whole.lance")
    assert verify_tokens(out, whole / "photos").problems == ()


def wait_for(out: Path, num_done: int) -> None:
    for _ in range(1200):
        time.sleep(0.1)
        if list(Path(f"{out}.photos", "_versions").glob("*.manifest")):
            if len(read_entries(out)) >= num_done:
                return
    raise AssertionError(f"fewer than {num_done} photos in time")


@pytest.mark.parametrize("moment", ["rows", "entries"])
def test_a_kill_between_rows_and_entries_leaves_nothing_twice(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Stop at the second commit, before or after its rows are in the store."""
    out, calls = tmp_path / "a.lance", []
    place = "token_ledger.PhotoLedger.add" if moment == "entries" else "token_build.join_rows"
    target = f"tokenize_anything.downstream.{place}"
    real = getattr(*_owner(target))

    def stop_at_the_second(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(target, stop_at_the_second)
        build(whole / "photos", out, CountingMaker())
    left = verify_tokens(out).problems
    assert bool(left) == (moment == "entries")
    assert all(problem.endswith("regions of a build that was stopped; run it again")
               for problem in left)  # fmt: skip
    build(whole / "photos", out, CountingMaker())
    assert read_rows(out) == read_rows(whole / "whole.lance")
    assert verify_tokens(out, whole / "photos").problems == ()


def _owner(target: str) -> tuple[Any, str]:
    from pkgutil import resolve_name

    owner, _, name = target.rpartition(".")
    return resolve_name(owner), name


# --- what is refused ----------------------------------------------------------------------------


def test_another_model_is_refused(whole: Path) -> None:
    other = TokenMaker(hopeful_predictor(shift=2.5), SETTINGS)
    first = CountingMaker().columns.identity
    with pytest.raises(ValueError) as caught:
        build(whole / "photos", whole / "whole.lance", other)
    assert f"{first!r}, expected {other.columns.identity!r}, which are not" in str(caught.value)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"captions": False}, "beams was 1, now None; captions was True, now False; use those"),
        ({"search": dataclasses.replace(SEARCH, min_iou=0.3)}, "search was {.*'min_iou': 0.2"),
        ({"vector_dtype": "float16"}, "holds other columns"),
    ],
)
def test_other_settings_are_refused(whole: Path, change: dict[str, Any], message: str) -> None:
    maker = TokenMaker(hopeful_predictor(), dataclasses.replace(SETTINGS, **change))
    with pytest.raises(ValueError, match=message):
        build(whole / "photos", whole / "whole.lance", maker)


def test_memory_and_commits_may_change(whole: Path) -> None:
    search = dataclasses.replace(SEARCH, points_per_batch=2)
    maker = TokenMaker(hopeful_predictor(), dataclasses.replace(SETTINGS, search=search))
    report = build(whole / "photos", whole / "whole.lance", maker, block=3, commit_photos=1)
    assert report.num_done == 0


def test_another_vocabulary_is_refused(whole: Path) -> None:
    predictor = hopeful_predictor()
    assert predictor.concepts is not None
    predictor.concepts = predictor.concepts.subset(["cup", "tray"])
    with pytest.raises(ValueError, match="other settings: concepts was '"):
        build(whole / "photos", whole / "whole.lance", TokenMaker(predictor, SETTINGS))


def test_photos_that_have_nothing_to_do_with_the_store_are_refused(
    whole: Path, tmp_path: Path
) -> None:
    write_photos(tmp_path / "others" / "below", 1)
    before = read_rows(whole / "whole.lance")
    with pytest.raises(ValueError, match=r"has tokens of 7 photos, such as 0.png, and none of"):
        build(tmp_path / "others", whole / "whole.lance", CountingMaker())
    assert read_rows(whole / "whole.lance") == before


def test_a_store_without_its_ledger_is_refused(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "whole.lance", tmp_path / "alone.lance")
    for use in (
        lambda: build(whole / "photos", tmp_path / "alone.lance", CountingMaker()),
        lambda: verify_tokens(tmp_path / "alone.lance"),
    ):
        with pytest.raises(FileNotFoundError, match=r"has no ledger at .*alone.lance.photos; copy"):
            use()
    (tmp_path / "alone.lance.photos").mkdir()
    (tmp_path / "alone.lance.photos" / "a.txt").touch()
    with pytest.raises(ValueError, match=r"the ledger .* is damaged or something else"):
        verify_tokens(tmp_path / "alone.lance")


@pytest.mark.parametrize("name", ["block", "threads", "commit_photos"])
def test_work_is_checked(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
        TokenWork(**{name: 0})
    with pytest.raises(ValueError, match="commit_seconds: expected at least 0, got -1"):
        TokenWork(commit_seconds=-1)


# --- photos that cannot be used -----------------------------------------------------------------


def test_bad_photos_are_left_out_and_named(
    photos: Path, maker: CountingMaker, tmp_path: Path
) -> None:
    (photos / "1.png").write_bytes(b"no picture")
    (photos / "it's" / "2.png").write_bytes((photos / "it's" / "2.png").read_bytes()[:-30])
    out = tmp_path / "a.lance"
    for num_done in (COUNT - 2, 0):  # a second run does not try them again, but names them
        report = build(photos, out, maker)
        assert (report.num_done, report.num_photos) == (num_done, COUNT - 2)
        assert [line.split(": ")[0] for line in report.problems] == ["1.png", "it's/2.png"]
        assert "expected an image, got bytes in no format" in report.problems[0]
        assert "truncated or damaged" in report.problems[1]
    assert not {"1.png", "it's/2.png"} & set(read_rows(out)["source"])
    write_photos(photos, 2)
    assert build(photos, out, maker).num_done == 1


def test_a_bad_photo_can_stop_the_build(photos: Path, maker: CountingMaker, tmp_path: Path) -> None:
    (photos / "3.png").write_bytes(b"no picture")
    out = tmp_path / "a.lance"
    message = r"photo 3.png: .*no format Pillow can read.* \(1 such photos so far\); mend it or"
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            build(photos, out, maker, stops_on_bad=True)
    assert {"0.png", "1.png"} <= set(read_rows(out)["source"])
    write_photos(photos, 4)
    assert build(photos, out, maker, stops_on_bad=True).problems == ()


def test_a_photo_that_is_gone_before_it_is_read_is_named_each_time(
    photos: Path, maker: CountingMaker, tmp_path: Path
) -> None:
    listed = FolderPhotos.under(photos, [photos / "0.png", photos / "gone.png", photos / "1.png"])
    for num_done in (2, 0):
        report = build_tokens(listed, maker, tmp_path / "a.lance", WORK)
        assert (report.num_done, report.num_photos) == (num_done, 2)
        (problem,) = report.problems
        assert problem.startswith("gone.png: [Errno 2] No such file")


def test_numbers_the_model_must_not_give_cost_one_photo_only(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = CountingMaker()
    predict = TokenMaker._predict

    def spoil(self: TokenMaker, given: Any) -> Any:
        records = predict(self, given)
        for photo, record in zip(given, records, strict=True):
            if photo.source == "1.png":
                return [dataclasses.replace(record, iou_scores=record.iou_scores * np.nan)]
        return records

    monkeypatch.setattr(CountingMaker, "_predict", spoil)
    report = build(photos, tmp_path / "a.lance", maker)
    (problem,) = report.problems
    assert problem.startswith("1.png: RegionPredictions of ")
    assert report.num_photos == COUNT - 1


def test_what_float16_cannot_hold_costs_one_photo(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = TokenMaker._predict

    def enlarge(self: TokenMaker, given: Any) -> Any:
        return [
            dataclasses.replace(record, mask_tokens=record.mask_tokens * 1e6)
            if photo.source == "1.png" else record
            for photo, record in zip(given, predict(self, given), strict=True)
        ]  # fmt: skip

    monkeypatch.setattr(TokenMaker, "_predict", enlarge)
    half = TokenMaker(hopeful_predictor(), dataclasses.replace(SETTINGS, vector_dtype="float16"))
    report = build(photos, tmp_path / "a.lance", half)
    assert report.problems == (
        "1.png: mask_token is too large for float16; build with float32 vectors",
    )
    assert report.num_photos == COUNT - 1


# --- tokens and their photos --------------------------------------------------------------------


def test_tokens_never_serve_another_photo(
    photos: Path, maker: CountingMaker, tmp_path: Path
) -> None:
    out = tmp_path / "a.lance"
    build(photos, out, maker)
    entry = read_entries(out)["0.png"]
    picture = read_source(photos, "0.png", entry.source_hash)
    np.testing.assert_array_equal(picture, np.asarray(Image.open(photos / "0.png")))
    (photos / "0.png").write_bytes((photos / "1.png").read_bytes())
    (photos / "4.png").unlink()
    with pytest.raises(
        ValueError, match=r"0\.png has changed since its tokens were made; run `tap"
    ):
        read_source(photos, "0.png", entry.source_hash)
    with pytest.raises(FileNotFoundError, match=r"no photo 4.png in .*; name the folder"):
        read_source(photos, "4.png", entry.source_hash)
    assert verify_tokens(out).problems == ()
    assert verify_tokens(out, photos).problems == (
        "photo 0.png: changed since its tokens were made; run the build again",
        f"photo 4.png: not in {photos} any more; run the build again",
    )


def test_damage_is_found(built: Path) -> None:
    lance.dataset(built).update({"caption": "'x'"}, where="source = '0.png'")
    problems = verify_tokens(built).problems
    assert problems and all("wrong check sum" in problem for problem in problems)


def test_another_region_store_is_no_token_store(tmp_path: Path) -> None:
    from tests.data.tiny_store import COLUMNS

    RegionStore.create(tmp_path / "other.lance", COLUMNS)
    with pytest.raises(ValueError, match=r"with the vectors \['embedding', 'token'\], expected"):
        verify_tokens(tmp_path / "other.lance")


# --- small parts --------------------------------------------------------------------------------


def test_roots_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert FolderPhotos.under("a", ["a/b/c.png", "a/d.png"]).names == ("b/c.png", "d.png")
    with pytest.raises(ValueError, match=r"root: b/c.png does not lie below a; name a folder"):
        FolderPhotos.under("a", ["b/c.png"])
    with pytest.raises(ValueError, match=r"expected each once, got \['c.png'\] more than once"):
        FolderPhotos.under("a", ["a/c.png", "a/../a/c.png"])


def test_ids_differ_by_photo_content_and_row() -> None:
    ids = {
        i for name in ("a", "b") for digest in ("0", "1")
        for i in make_region_ids(name, digest, [0, 1, 2])
    }  # fmt: skip
    assert len(ids) == 12
    assert all(0 <= i < 2**63 for i in ids)


def test_texts_are_quoted_for_lance() -> None:
    assert match_texts("image", ["a", "it's"]) == "image IN ('a', 'it''s')"


def test_deleting_images_leaves_the_others(tmp_path: Path) -> None:
    from tests.data.tiny_store import COLUMNS, assert_rows_equal, make_rows

    store = RegionStore.create(tmp_path / "a.lance", COLUMNS)
    ids = [3, 4, 5, 6, 7, 300]
    store.append(make_rows(ids))
    store.finish()
    names = make_rows([4, 300]).images
    store.delete_images([*names, "it's not there"])
    assert store.images() == set(make_rows([6]).images)
    kept = [6, 7]
    assert_rows_equal(store.read(kept), make_rows(kept))
    store.append(make_rows([4]))
    store.finish()
    assert_rows_equal(RegionStore.open(store.path).read([4, 7]), make_rows([4, 7]))
    assert verify_store(store.path).problems == ()


def test_settings_are_plain(maker: CountingMaker) -> None:
    facts = maker.facts("everything")
    assert json.loads(json.dumps(facts.settings)) == facts.settings
    assert facts.settings["search"]["points_per_side"] == 3
    assert maker.facts("box").settings["search"] is None
    assert TokenSettings().search.points_per_side == 16
