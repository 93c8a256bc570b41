"""Metrics against values worked out by hand or by brute force."""

import math

import numpy as np
import pytest

from copilot.tasks import (
    accuracy,
    bootstrap_interval,
    discounted_gains,
    hit_at_k,
    ndcg_at_k,
    paired_bootstrap,
    ranks_in_lists,
)

RANKS = [1.0, 3.0, 6.0, math.inf]


def test_accuracy_is_the_share_of_correct_answers() -> None:
    assert accuracy([True, False, True, True]) == 0.75


def test_ranks_count_from_one_and_absent_targets_are_at_infinity() -> None:
    ranks = ranks_in_lists([[5, 7, 9], [5, 7, 9], [5], []], [5, 9, 7, 1])
    assert ranks.tolist() == [1.0, 3.0, math.inf, math.inf]


def test_ranks_work_on_items_named_by_text() -> None:
    assert ranks_in_lists([["item_3", "item_1"]], ["item_1"]).tolist() == [2.0]


def test_an_item_ranked_twice_counts_at_its_better_place() -> None:
    assert ranks_in_lists([[4, 2, 2]], [2]).tolist() == [2.0]


@pytest.mark.parametrize(("k", "hit"), [(1, 0.25), (2, 0.25), (3, 0.5), (5, 0.5), (6, 0.75), (100, 0.75)])
def test_hit_is_the_share_of_targets_among_the_first_k(k: int, hit: float) -> None:
    assert hit_at_k(RANKS, k) == hit


def test_ndcg_discounts_by_the_logarithm_of_the_place() -> None:
    assert ndcg_at_k(RANKS, 5) == pytest.approx((1 + 1 / math.log2(4)) / 4)
    assert ndcg_at_k(RANKS, 10) == pytest.approx((1 + 1 / math.log2(4) + 1 / math.log2(7)) / 4)
    assert discounted_gains(RANKS, 5).tolist() == [1.0, 0.5, 0.0, 0.0]


def test_ndcg_agrees_with_the_general_formula_over_relevance_lists() -> None:
    generator = np.random.default_rng(0)
    rankings = [generator.permutation(30).tolist() for _ in range(50)]
    targets = generator.integers(30, size=50).tolist()
    total = 0.0
    for ranking, target in zip(rankings, targets, strict=True):
        gain = sum((item == target) / math.log2(place + 2) for place, item in enumerate(ranking[:10]))
        ideal = 1 / math.log2(2)
        total += gain / ideal
    assert ndcg_at_k(ranks_in_lists(rankings, targets), 10) == pytest.approx(total / 50)


def test_a_bootstrap_interval_agrees_with_a_plain_loop() -> None:
    values = np.random.default_rng(0).normal(size=40)
    generator = np.random.default_rng(7)
    means = [values[generator.integers(40, size=40)].mean() for _ in range(2000)]
    interval = bootstrap_interval(values, samples=2000, seed=7, level=0.9)
    assert interval.mean == pytest.approx(values.mean())
    assert [interval.low, interval.high] == pytest.approx(np.quantile(means, [0.05, 0.95]))


def test_a_bootstrap_interval_of_a_proportion_has_the_width_of_the_normal_one() -> None:
    values = np.arange(1000) % 2
    interval = bootstrap_interval(values)
    assert (interval.high - interval.low) == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(1000), rel=0.05)


def test_more_examples_than_one_chunk_holds_are_resampled_too() -> None:
    # 3 resamples fit into a chunk here; the interval must still be one of 20 independent resamples.
    interval = bootstrap_interval(np.arange(1_300_000) % 2, samples=20)
    assert 0.497 < interval.low < 0.5 < interval.high < 0.503


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    values = np.random.default_rng(0).normal(size=100)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)


def test_a_higher_level_gives_a_wider_interval() -> None:
    values = np.random.default_rng(0).normal(size=100)
    narrow, wide = (bootstrap_interval(values, level=level) for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_a_paired_bootstrap_reports_the_gain_of_the_second_over_the_first() -> None:
    result = paired_bootstrap([0, 0, 1, 1], [1, 0, 1, 1])
    assert (result.a.mean, result.b.mean, result.difference.mean) == (0.5, 0.75, 0.25)
    assert result.difference.low <= 0.25 <= result.difference.high


def test_pairing_removes_the_variation_both_systems_share() -> None:
    hardness = np.random.default_rng(0).normal(size=200)
    result = paired_bootstrap(hardness, hardness + 0.1)
    assert result.difference.low == pytest.approx(0.1)
    assert result.difference.high == pytest.approx(0.1)
    assert result.a.high - result.a.low > 0.2


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    intervals = [bootstrap_interval(generator.normal(size=100), samples=500, seed=trial) for trial in range(300)]
    covered = sum(interval.low <= 0 <= interval.high for interval in intervals) / 300
    assert 0.90 < covered < 0.98


def test_arguments_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"correct has shape \(0,\)"):
        accuracy([])
    with pytest.raises(ValueError, match="k is 0; accepted is 1 or more"):
        hit_at_k(RANKS, 0)
    with pytest.raises(ValueError, match=r"ranks holds 0\.0; accepted is 1 or more"):
        ndcg_at_k([0.0, 1.0], 5)
    with pytest.raises(ValueError, match="ranks holds nan"):
        hit_at_k([math.nan], 5)
    with pytest.raises(ValueError, match="rankings has 1 lists; accepted is one for each of the 2 targets"):
        ranks_in_lists([[1]], [1, 2])
    with pytest.raises(ValueError, match="b has 2 values; accepted is one for each of the 1 values of a"):
        paired_bootstrap([1], [1, 0])
    with pytest.raises(ValueError, match="values holds nan"):
        bootstrap_interval([math.nan])
    with pytest.raises(ValueError, match="samples is 0"):
        bootstrap_interval([1.0], samples=0)
    with pytest.raises(ValueError, match="level is 95; accepted is above 0 and below 1"):
        bootstrap_interval([1.0], level=95)
