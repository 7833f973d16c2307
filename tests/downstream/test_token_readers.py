"""Stored tokens read by NumPy, PyTorch, pandas and Hugging Face, and from object storage."""

from __future__ import annotations

import logging
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tests.downstream.tiny_tokens import (
    CountingMaker,
    open_folder,
    read_entries,
    read_rows,
    write_photos,
)
from tokenize_anything.data.region_store import RegionStore, exclusive_writer
from tokenize_anything.downstream.token_build import TokenWork, build_tokens
from tokenize_anything.downstream.token_check import verify_tokens
from tokenize_anything.downstream.token_readers import TokenDataset, TokenSample, read_column

lance = pytest.importorskip("lance", reason="needs tokenize-anything[search]")
COUNT = 5


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("readers") / "photos", COUNT)


@pytest.fixture(scope="module")
def maker() -> CountingMaker:
    return CountingMaker()


@pytest.fixture(scope="module")
def place(photos: Path, maker: CountingMaker) -> Path:
    build_tokens(open_folder(photos), maker, photos.parent / "a.lance")
    return photos.parent / "a.lance"


@pytest.mark.parametrize("name", ["semantic_token", "box_xyxy", "iou_score", "caption"])
def test_a_column_for_numpy(place: Path, name: str) -> None:
    expected = np.array(read_rows(place)[name])
    found = read_column(place, name)
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)


def test_an_unknown_column_is_named(place: Path) -> None:
    with pytest.raises(ValueError, match=r"name: expected one of \['region_id', .*got 'tokens'"):
        read_column(place, "tokens")


def test_samples_for_pytorch(place: Path) -> None:
    rows, dataset = read_rows(place), TokenDataset(place)
    assert len(dataset) == len(rows["region_id"])
    for row in (0, len(dataset) - 1):
        sample = dataset[row]
        assert sample.region_id == rows["region_id"][row]
        for name in ("semantic_token", "semantic_embedding", "mask_token"):
            vector = getattr(sample, name)
            assert vector.dtype == torch.float32
            assert vector.tolist() == rows[name][row]
        for name in ("concept", "caption", "source"):
            assert getattr(sample, name) == rows[name][row]
    with pytest.raises(IndexError):
        dataset[len(dataset)]


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_for_pytorch(place: Path, workers: int) -> None:
    rows = read_rows(place)
    loader = DataLoader(
        TokenDataset(place), batch_size=4, num_workers=workers,
        multiprocessing_context="forkserver" if workers else None,
    )  # fmt: skip
    batches = list(loader)
    assert all(isinstance(batch, TokenSample) for batch in batches)
    tokens = torch.cat([batch.mask_token for batch in batches])
    assert tokens.tolist() == rows["mask_token"]
    assert [name for batch in batches for name in batch.caption] == rows["caption"]
    assert torch.cat([batch.region_id for batch in batches]).tolist() == rows["region_id"]


def test_pandas_and_arrow(place: Path) -> None:
    frame = lance.dataset(place).to_table().to_pandas()
    rows = read_rows(place)
    assert frame["concept"].tolist() == rows["concept"]
    np.testing.assert_array_equal(np.stack(frame["semantic_token"]), rows["semantic_token"])


def test_hugging_face(place: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the package datasets")
    table = datasets.table.InMemoryTable(lance.dataset(place).to_table())
    dataset = datasets.Dataset(table).with_format("torch")
    rows = read_rows(place)
    assert dataset[2]["caption"] == rows["caption"][2]
    assert dataset[2]["semantic_embedding"].tolist() == rows["semantic_embedding"][2]


# --- object storage -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket of a local server that speaks S3."""
    server_module = pytest.importorskip("moto.server", reason="needs moto with its server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT": address, "AWS_ALLOW_HTTP": "true",
        }.items():  # fmt: skip
            environment.setenv(name, value)
        request = urllib.request.Request(f"{address}/tokens", method="PUT")
        with urllib.request.urlopen(request):
            yield "s3://tokens"
    server.stop()


def test_a_build_into_object_storage(
    photos: Path, place: Path, maker: CountingMaker, bucket: str
) -> None:
    url = f"{bucket}/folder/a.lance"
    few = open_folder(photos).names[:3]
    part = type(open_folder(photos))(photos, few)
    build_tokens(part, maker, url, TokenWork(commit_photos=1))
    maker.worked_on = []
    report = build_tokens(open_folder(photos), maker, url)
    assert (report.num_done, maker.worked_on) == (2, list(open_folder(photos).names[3:]))
    assert build_tokens(open_folder(photos), maker, url).num_done == 0
    found, wanted = read_rows(url, in_order=False), read_rows(place, in_order=False)
    for name in wanted.keys() - {"caption_score", "checksum"}:
        assert found[name] == wanted[name], name
    assert read_entries(url).keys() == read_entries(place).keys()
    assert verify_tokens(url, photos).problems == ()
    assert len(TokenDataset(url)) == report.num_regions


def test_object_storage_keeps_a_second_writer_out_and_says_what_is_missing(bucket: str) -> None:
    url = f"{bucket}/other.lance"
    with exclusive_writer(url):
        with pytest.raises(BlockingIOError, match="another process is writing to s3://tokens/oth"):
            with exclusive_writer(url):
                pass
    with pytest.raises(ValueError, match=r"s3://tokens/other.lance is not one, or"):
        RegionStore.open(url)
