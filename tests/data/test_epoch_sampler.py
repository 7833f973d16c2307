"""Order of the samples: epochs, parts of a batch, shards, starting anywhere."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from tokenize_anything.data.epoch_sampler import MIXED_SHARDS, BatchShare, EpochSampler


def take(sampler: EpochSampler, count: int) -> list[tuple[int, int]]:
    return list(itertools.islice(iter(sampler), count))


def test_each_epoch_is_a_permutation_of_its_own() -> None:
    keys = take(EpochSampler(11, seed=3), 33)
    orders = [[index for epoch, index in keys if epoch == wanted] for wanted in range(3)]
    assert [epoch for epoch, _ in keys] == [0] * 11 + [1] * 11 + [2] * 11
    assert all(sorted(order) == list(range(11)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert take(EpochSampler(11, seed=4), 33) != keys


@pytest.mark.parametrize("start", [0, 1, 10, 11, 12, 25])
def test_a_start_continues_where_it_stopped(start: int) -> None:
    assert (
        take(EpochSampler(11, seed=3, start=start), 9)
        == take(EpochSampler(11, seed=3), 40)[start : start + 9]
    )


def test_no_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="num_samples: expected at least 1, got 0"):
        EpochSampler(0)


# --- shares --------------------------------------------------------------------------------------


@pytest.mark.parametrize("world, start", [(2, 0), (3, 12), (6, 30)])
def test_the_shares_of_a_batch_make_up_the_batch(world: int, start: int) -> None:
    batch_size, num_batches = 6, 5
    count = batch_size // world
    shares = [
        take(
            EpochSampler(11, seed=3, start=start, share=BatchShare(batch_size, rank, world)),
            num_batches * count,
        )
        for rank in range(world)
    ]
    parts = [share[i : i + count] for i in range(0, num_batches * count, count) for share in shares]
    joined = list(itertools.chain.from_iterable(parts))
    assert joined == take(EpochSampler(11, seed=3, start=start), num_batches * batch_size)


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(
        ValueError, match="batch_size: expected a multiple of the 4 processes, got 6"
    ):
        BatchShare(6, 0, 4)


# --- shards --------------------------------------------------------------------------------------

SHARDS = (5, 3, 7, *[2] * 20)


def shard_of(index: int) -> int:
    stops = list(itertools.accumulate(SHARDS))
    return next(shard for shard, stop in enumerate(stops) if index < stop)


def test_shards_come_in_groups_and_their_images_mixed() -> None:
    total = sum(SHARDS)
    orders = [
        [index for _, index in take(EpochSampler(total, seed=seed, shard_sizes=SHARDS), total)]
        for seed in (1, 2)
    ]
    assert orders[0] != orders[1]
    for order in orders:
        assert sorted(order) == list(range(total))
        shards = [shard_of(index) for index in order]
        last_of_first = max(shards.index(shard) for shard in set(shards[:2]))
        assert last_of_first < total
        # A group of shards is used up before any of the next group is opened.
        seen: list[int] = list(dict.fromkeys(shards))
        first_group = set(seen[:MIXED_SHARDS])
        is_first = [shard in first_group for shard in shards]
        assert is_first == sorted(is_first, reverse=True)
        inside = [shard for shard in shards if SHARDS[shard] > 2]
        assert inside != sorted(inside)  # not one shard after another


@pytest.mark.parametrize("start", [0, 7, 60])
def test_shards_go_on_where_they_stopped(start: int) -> None:
    total = sum(SHARDS)
    options: dict[str, Any] = {"seed": 3, "shard_sizes": SHARDS}
    whole = take(EpochSampler(total, **options), start + 9)
    assert take(EpochSampler(total, start=start, **options), 9) == whole[start:]


def test_a_shard_may_be_empty() -> None:
    keys = take(EpochSampler(5, seed=3, shard_sizes=(0, 3, 0, 2)), 5)
    assert sorted(index for _, index in keys) == list(range(5))


def test_shards_of_another_total_are_refused() -> None:
    with pytest.raises(ValueError, match="shard_sizes: expected a sum of 9, got 8"):
        EpochSampler(9, shard_sizes=[3, 5])
