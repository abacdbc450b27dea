"""Intervals of differences, their rate of false alarms, and correlation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pytest

from tmt_d2.experiments.statistics import (
    Cell,
    Difference,
    _one_hot,
    _variance_of_mean,
    correlation,
    paired_difference,
    spread,
)

T_2 = 4.30265  # 97.5 % of t with 2 degrees of freedom; below with 3
T_3 = 3.18245


def cells_of(pairs: int, seeds: int) -> list[Cell]:
    return [((f"{pair:02}", "t"), seed) for pair in range(pairs) for seed in range(seeds)]


def difference(values: Mapping[Cell, float]) -> Difference:
    """To a baseline of 0."""
    result = paired_difference(values, dict.fromkeys(values, 0.0))
    assert result is not None
    return result


def of_table(rows: Iterable[Iterable[float]]) -> Difference:
    """A row for each pair, a column for each seed."""
    table = np.array([list(row) for row in rows])
    return difference(dict(zip(cells_of(*table.shape), table.ravel().tolist())))


def half_width(result: Difference) -> float:
    assert result.low is not None and result.high is not None
    assert result.mean - result.low == pytest.approx(result.high - result.mean)
    return (result.high - result.low) / 2


# --- by hand


def test_spread_by_hand() -> None:
    assert spread([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))
    assert spread([5.0]) == (5.0, None)


def test_correlation() -> None:
    assert correlation([1, 2, 3], [10, 20, 60]) == (1.0, pytest.approx(0.9449, abs=1e-4))
    assert correlation([1, 2], [1, 2]) is None
    assert correlation([1, 1, 1], [1, 2, 3]) is None


def test_differences_are_paired() -> None:
    """Pairs differ by far more than methods; only what both methods have counts."""
    base = {((str(i), "t"), 1): 10.0 * i for i in range(6)}
    better = {key: value + 1 for key, value in base.items()} | {(("x", "t"), 1): 99.0}
    result = paired_difference(better, base)
    assert result is not None
    assert (result.mean, result.low, result.high, result.n) == (1.0, 1.0, 1.0, 6)
    assert result.is_clear
    assert paired_difference(base, {}) is None


def test_three_pairs_by_hand() -> None:
    """1, 2, 6: mean 3, sample variance 7. The bootstrap called this clear, from 1 to 6."""
    result = of_table([[1.0], [2.0], [6.0]])
    assert result.mean == 3
    assert half_width(result) == pytest.approx(T_2 * (7 / 3) ** 0.5, rel=1e-5)
    assert not result.is_clear


def test_pairs_and_seeds_by_hand() -> None:
    """Means by pair 1, 2, 3 (variance 1), by seed 0, 2, 4 (variance 4), and noise whose rows and columns sum to 0."""
    sums = np.array([[-1.0], [0.0], [1.0]]) + [0.0, 2.0, 4.0]
    noise = np.array([[1, -1, 0], [-1, 1, 0], [0, 0, 0]])  # 4 squares by 4 degrees of freedom: variance 1
    assert half_width(of_table(sums)) == pytest.approx(T_2 * (1 / 3 + 4 / 3) ** 0.5, rel=1e-5)
    assert half_width(of_table(sums + noise)) == pytest.approx(T_2 * (1 / 3 + 4 / 3 - 1 / 9) ** 0.5, rel=1e-5)
    # Much noise, of variance 36: the sum less noise would be negative, and the larger side stands.
    assert half_width(of_table(sums + 6 * noise)) == pytest.approx(T_2 * (4 / 3) ** 0.5, rel=1e-5)


def test_degrees_of_freedom_are_those_of_the_side_that_varies_more() -> None:
    pairs, seeds = np.array([[-1.0], [0.0], [0.0], [1.0]]), np.array([-1.0, 0.0, 1.0])  # variances 2/3 and 1
    assert half_width(of_table(3 * pairs + seeds)) == pytest.approx(T_3 * (9 / 6 + 1 / 3) ** 0.5, rel=1e-5)
    assert half_width(of_table(pairs + 3 * seeds)) == pytest.approx(T_2 * (1 / 6 + 9 / 3) ** 0.5, rel=1e-5)


# --- relations


def test_pairs_and_seeds_are_crossed() -> None:
    """Neither is within the other: exchanging them changes nothing."""
    table = np.random.default_rng(0).normal(size=(4, 6))
    assert of_table(table)[:3] == pytest.approx(of_table(table.T)[:3])


@pytest.mark.parametrize("transposed", [False, True])
def test_copies_are_no_evidence(transposed: bool) -> None:
    """Pairs whose seeds all say the same count once, and so do seeds that say the same in all pairs."""
    table = np.repeat([[1.0], [2.0], [6.0]], 10, axis=1)
    assert half_width(of_table(table.T if transposed else table)) == pytest.approx(T_2 * (7 / 3) ** 0.5, rel=1e-5)


def test_fewer_than_three_seeds_are_averaged() -> None:
    result = of_table([[0.0, 2.0], [5.0, -1.0], [6.0, 6.0]])
    assert result[:3] == of_table([[1.0], [2.0], [6.0]])[:3]
    assert result.n == 6


def test_one_pair_is_compared_over_its_seeds() -> None:
    assert of_table([[1.0, 2.0, 6.0]])[:3] == of_table([[1.0], [2.0], [6.0]])[:3]


@pytest.mark.parametrize("pairs, seeds", [(1, 1), (1, 2), (2, 1), (2, 2), (2, 3), (2, 10)])
def test_too_few_have_no_interval(pairs: int, seeds: int) -> None:
    result = difference({cell: 1.0 + index for index, cell in enumerate(cells_of(pairs, seeds))})
    assert (result.mean, result.n) == ((1 + pairs * seeds) / 2, pairs * seeds)
    assert (result.low, result.high, result.is_clear) == (None, None, False)


@pytest.mark.parametrize("pairs, seeds", [(3, 1), (1, 3), (3, 3), (20, 3)])
def test_equal_methods_do_not_differ(pairs: int, seeds: int) -> None:
    """A method that does nothing repeats the baseline to the last bit."""
    values = {cell: 50.1 + 0.1 * index for index, cell in enumerate(cells_of(pairs, seeds))}
    result = paired_difference(dict(values), values)
    assert result is not None
    assert (result.mean, result.low, result.high, result.is_clear) == (0.0, 0.0, 0.0, False)


# --- cells that are missing


@pytest.mark.parametrize("sizes", [(3, 3, 3), (3, 3, 1), (1, 2, 3, 4), (20, 4, 4)])
def test_variance_over_groups_of_any_size_has_no_bias(sizes: tuple[int, ...]) -> None:
    """Of a quadratic form, the expectation over independent effects is the sum over effects of 1 in one group."""
    groups = _one_hot(np.repeat(range(len(sizes)), sizes).tolist())
    estimates = [_variance_of_mean(effect, groups) for effect in groups.T]
    shares = np.array(sizes) / sum(sizes)
    assert sum(variance for variance, _ in estimates) == pytest.approx(np.square(shares).sum())
    freedom = {round(each, 9) for _, each in estimates}
    assert len(freedom) == 1
    assert (len(set(sizes)) == 1) == (freedom == {len(sizes) - 1.0})
    assert max(freedom) <= len(sizes) - 1


def test_a_missing_cell_changes_little() -> None:
    values = dict(zip(cells_of(8, 3), np.random.default_rng(0).normal(size=24).tolist()))
    whole = half_width(difference(values))
    for cell in values:
        some = difference({key: value for key, value in values.items() if key != cell})
        assert 0.75 * whole < half_width(some) < 1.5 * whole


def test_seeds_that_few_pairs_have_are_averaged() -> None:
    """Two more seeds of four pairs in twenty do not turn one seed into a sample of seeds."""
    seed_0 = dict(zip(cells_of(20, 1), np.random.default_rng(0).normal(size=20).tolist()))
    more = {
        ((pair, target), seed): value for (pair, target), _ in list(seed_0)[:4] for seed, value in ((1, 0.5), (2, 1.0))
    }
    assert half_width(difference(seed_0 | more)) < 1.5 * half_width(difference(seed_0))


# --- how often noise is called a difference


def false_alarms(cells: list[Cell], draws: int, pair: float = 0.0, seed: float = 0.0, noise: float = 1.0) -> float:
    """The share of intervals that leave out 0; pair, seed, noise: standard deviations of normal effects around 0."""
    rng = np.random.default_rng(0)
    pairs, seeds = (_one_hot([cell[side] for cell in cells]) for side in (0, 1))
    values = rng.normal(0, noise, (draws, len(cells)))
    values += rng.normal(0, pair, (draws, pairs.shape[1])) @ pairs.T
    values += rng.normal(0, seed, (draws, seeds.shape[1])) @ seeds.T
    return float(np.mean([difference(dict(zip(cells, row))).is_clear for row in values.tolist()]))


@pytest.mark.parametrize("pairs", [3, 6, 20])
def test_one_seed_calls_noise_clear_in_five_percent(pairs: int) -> None:
    """The percentile bootstrap does in 25, 14 and 8 %."""
    assert 0.03 < false_alarms(cells_of(pairs, 1), 1000) < 0.07


@pytest.mark.parametrize("pairs", [3, 20])
def test_three_seeds_call_noise_clear_in_seven_percent_at_most(pairs: int) -> None:
    """5 % where one side prevails, at most 7 % in between, less where all is noise; within two standard errors."""
    cells = cells_of(pairs, 3)
    assert 0.002 < false_alarms(cells, 500) < 0.04
    assert 0.03 < false_alarms(cells, 500, pair=10.0) < 0.07
    assert 0.03 < false_alarms(cells, 500, seed=10.0) < 0.07
    assert false_alarms(cells, 1000, pair=0.5, seed=0.4) < 0.085


def test_missing_cells_call_noise_clear_no_more_often() -> None:
    cells = [cell for cell in cells_of(12, 3) if cell[1] < 2 or int(cell[0][0]) < 6]
    assert false_alarms(cells, 500, seed=0.5) < 0.085
