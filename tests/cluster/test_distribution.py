"""Shares: complete, balanced and without overlap."""

from __future__ import annotations

import itertools
import random
from fractions import Fraction

import pytest

from montage_assets.cluster.distribution import balance, calibrate, measured_speeds, shard_ranges


def test_every_item_is_given_out_exactly_once_whatever_the_costs_and_speeds() -> None:
    numbers = random.Random(3)
    for _ in range(100):
        costs = [numbers.choice([0.0, numbers.random() * 100]) for _ in range(numbers.randrange(30))]
        speeds = [numbers.uniform(0.1, 20) for _ in range(numbers.randrange(1, 9))]
        shares = balance(costs, speeds)
        assert sorted(itertools.chain.from_iterable(shares)) == list(range(len(costs)))
        assert len(shares) == len(speeds)


def test_equal_items_are_shared_by_speed() -> None:
    assert [len(share) for share in balance([1.0] * 40, [1, 2, 5])] == [5, 10, 25]


def test_the_longest_item_comes_first_so_that_no_node_ends_with_it() -> None:
    assert balance([1, 1, 1, 1, 4], [1, 1]) == [[4], [0, 1, 2, 3]]


def test_longest_first_stays_near_the_best_possible_end() -> None:
    numbers = random.Random(5)
    for _ in range(200):
        costs = [numbers.uniform(0.1, 10) for _ in range(numbers.randrange(1, 7))]
        speeds = [numbers.uniform(0.5, 4) for _ in range(3)]
        taken = max(
            sum(costs[i] for i in share) / speed for share, speed in zip(balance(costs, speeds), speeds, strict=True)
        )
        best = min(
            max(
                sum(cost for cost, who in zip(costs, choice, strict=True) if who == worker) / speeds[worker]
                for worker in range(3)
            )
            for choice in itertools.product(range(3), repeat=len(costs))
        )
        assert taken <= best * 1.5 + 1e-9  # Gonzalez, Ibarra and Sahni: 2 - 2 / (machines + 1)


def test_a_share_is_the_same_every_time() -> None:
    assert balance([3, 3, 3, 3], [1, 1]) == balance([3, 3, 3, 3], [1, 1]) == [[0, 2], [1, 3]]


@pytest.mark.parametrize("speeds", [[], [0.0], [-1.0], [float("nan")], [float("inf")]])
def test_speeds_that_mean_nothing_are_refused(speeds: list[float]) -> None:
    with pytest.raises(ValueError, match="positive"):
        balance([1.0], speeds)


def test_four_equal_nodes_get_quarters_without_gap_or_overlap() -> None:
    shards = shard_ranges(["a", "b", "c", "d"])
    assert [shard.percent for shard in shards] == ["0-25%", "25-50%", "50-75%", "75-100%"]
    assert [shard.start for shard in shards] == [0, Fraction(1, 4), Fraction(1, 2), Fraction(3, 4)]


def test_ranges_cover_the_whole_once_whatever_the_speeds() -> None:
    numbers = random.Random(7)
    for _ in range(100):
        names = [f"n{number}" for number in range(numbers.randrange(1, 12))]
        shards = shard_ranges(names, [numbers.uniform(0.01, 50) for _ in names])
        assert shards[0].start == 0
        assert shards[-1].end == 1
        assert all(first.end == second.start for first, second in itertools.pairwise(shards))
        assert all(shard.end > shard.start for shard in shards)


def test_a_node_twice_as_fast_gets_twice_as_much() -> None:
    assert [shard.percent for shard in shard_ranges(["a", "b"], [2, 1])] == ["0-66.67%", "66.67-100%"]


def test_each_node_needs_its_speed() -> None:
    with pytest.raises(ValueError, match="2 nodes"):
        shard_ranges(["a", "b"], [1.0])


def test_speeds_are_measured_over_all_work_of_a_node() -> None:
    reports = [
        {"node": "a", "cost": 100, "seconds": 10},
        {"node": "a", "cost": 300, "seconds": 10},
        {"node": "b", "cost": 50, "seconds": 10},
    ]
    assert measured_speeds(reports) == {"a": 20.0, "b": 5.0}


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"node": "a", "cost": 1},
        {"node": "a", "cost": 1, "seconds": 0},
        {"node": "a", "cost": 0, "seconds": 1},
        {"node": "a", "cost": float("nan"), "seconds": 1},
        {"node": "a", "cost": "many", "seconds": 1},
        {"node": None, "cost": 1, "seconds": 1},
        {"node": "a", "cost": True, "seconds": 1},
        {"node": "a", "cost": 1, "seconds": float("inf")},
    ],
)
def test_rows_that_say_nothing_are_passed_over(row: dict[str, object]) -> None:
    assert measured_speeds([row]) == {}


def test_measured_nodes_keep_their_proportions_and_stay_comparable_to_the_others() -> None:
    assert calibrate({"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 300.0, "b": 100.0, "gone": 7.0}) == {
        "a": pytest.approx(1.5),
        "b": pytest.approx(0.5),
        "c": 1.0,
    }


def test_without_measurements_the_stated_speeds_stay() -> None:
    assert calibrate({"a": 2.0, "b": 1.0}, {}) == {"a": 2.0, "b": 1.0}
