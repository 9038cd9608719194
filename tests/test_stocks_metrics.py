"""Errors, skill, tests and intervals of forecasts, against closed forms and simulation."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from stocks.evaluation import intervals, plots
from stocks.evaluation.forecast_metrics import (
    diebold_mariano,
    price_errors,
    rank_information_coefficient,
    repetition,
    skill,
    skill_interval,
)
from stocks.evaluation.sections import verdict


def test_errors_of_the_naive_forecast_are_those_of_the_price_moves():
    last, actual = np.array([100.0, 50.0, 20.0, 10.0]), np.array([103.0, 46.0, 20.0, 10.5])
    errors = price_errors(actual, last, last)
    assert errors['mse'] == pytest.approx((9 + 16 + 0 + 0.25) / 4)
    assert errors['rmse'] == pytest.approx(math.sqrt(25.25 / 4))
    assert errors['mae'] == pytest.approx(7.5 / 4)
    assert errors['mape'] == pytest.approx((3 / 103 + 4 / 46 + 0 + 0.5 / 10.5) / 4)
    assert errors['relative_rmse'] == pytest.approx(math.sqrt((0.03**2 + 0.08**2 + 0.05**2) / 4))
    assert errors['directional_accuracy'] == 0.5
    assert skill(last - actual, last - actual) == 0


def test_direction_counts_only_prices_that_moved():
    last, actual = np.full(4, 10.0), np.array([11.0, 9.0, 10.0, 12.0])
    assert price_errors(actual, np.array([12.0, 12.0, 99.0, 10.5]), last)['directional_accuracy'] == pytest.approx(
        2 / 3
    )


def test_skill_of_half_the_error_is_one_half():
    naive = np.random.default_rng(0).normal(size=50)
    assert skill(naive / 2, naive) == pytest.approx(0.5)
    assert skill(2 * naive, naive) == pytest.approx(-1)
    assert math.isnan(skill(naive, np.zeros(50)))


def test_one_step_diebold_mariano_is_a_t_test_of_the_mean_difference():
    random = np.random.default_rng(1)
    errors, naive = random.normal(size=120), random.normal(size=120) * 1.2
    found = diebold_mariano(errors, naive, np.arange(120), horizon=1)
    expected = stats.ttest_1samp(naive**2 - errors**2, 0)
    assert found['statistic'] == pytest.approx(expected.statistic)
    assert found['p_value'] == pytest.approx(expected.pvalue)


def test_longer_diebold_mariano_follows_the_papers_formula():
    random = np.random.default_rng(2)
    n, h = 90, 4
    errors, naive = random.normal(size=n), random.normal(size=n) * 1.1
    d = naive**2 - errors**2
    gamma = [sum((d[t] - d.mean()) * (d[t - k] - d.mean()) for t in range(k, n)) / n for k in range(h)]
    s1 = d.mean() / math.sqrt((gamma[0] + 2 * sum(gamma[1:])) / n)
    corrected = s1 * math.sqrt((n + 1 - 2 * h + h * (h - 1) / n) / n)
    found = diebold_mariano(errors, naive, np.arange(n), horizon=h)
    assert found['statistic'] == pytest.approx(corrected)
    assert found['p_value'] == pytest.approx(2 * stats.t.cdf(-abs(corrected), n - 1))


def test_diebold_mariano_averages_the_tickers_of_a_day():
    random = np.random.default_rng(3)
    errors, naive = random.normal(size=(40, 5)), random.normal(size=(40, 5))
    found = diebold_mariano(errors.ravel(), naive.ravel(), np.repeat(np.arange(40), 5), horizon=1)
    expected = stats.ttest_1samp((naive**2 - errors**2).mean(axis=1), 0)
    assert found['statistic'] == pytest.approx(expected.statistic)


def test_diebold_mariano_errs_as_often_as_it_says():
    random = np.random.default_rng(4)
    p_values = []
    for _ in range(600):
        shocks = random.normal(size=(2, 102))
        errors, naive = shocks[:, 2:] + shocks[:, 1:-1] + shocks[:, :-2]  # overlapping, as three-step errors are
        p_values.append(diebold_mariano(errors, naive, np.arange(100), horizon=3)['p_value'])
    assert 0.02 < np.mean(np.array(p_values) < 0.05) < 0.09


@pytest.mark.parametrize(('days', 'horizon'), [(1, 1), (5, 20), (10, 20), (20, 20)])
def test_diebold_mariano_tells_nothing_of_fewer_days_than_the_horizon(days, horizon):
    errors, naive = np.random.default_rng(11).normal(size=(2, days))
    assert diebold_mariano(errors, naive, np.arange(days), horizon=horizon) == {'statistic': 0.0, 'p_value': 1.0}


def test_equal_forecasts_are_no_different():
    errors = np.random.default_rng(5).normal(size=30)
    rounded = errors * (1 + 1e-15)
    assert diebold_mariano(rounded, errors, np.arange(30), horizon=1) == {'statistic': 0.0, 'p_value': 1.0}


def test_bootstrap_interval_holds_the_true_skill_as_often_as_it_says():
    random, inside = np.random.default_rng(6), 0
    days = np.repeat(np.arange(250), 4)
    for trial in range(200):
        market = random.normal(size=(250, 1))
        naive = (market + random.normal(size=(250, 4))).ravel()
        errors = 0.9 * naive + random.normal(size=1000) * math.sqrt(2 * 0.19)  # of the same variance: skill 0
        low, high = skill_interval(errors, naive, days, horizon=1, seed=trial)
        inside += low <= 0 <= high
    assert 0.89 <= inside / 200 <= 0.99


@pytest.mark.parametrize(('days', 'horizon'), [(60, 1), (30, 5), (100, 20)])
def test_bootstrap_interval_of_few_blocks_is_not_too_narrow(days, horizon):
    inside = 0
    for trial in range(400):
        random = np.random.default_rng(trial)
        shocks = np.lib.stride_tricks.sliding_window_view(random.normal(size=(2, days + horizon - 1)), horizon, axis=1)
        naive, other = shocks.sum(axis=-1)
        errors = 0.95 * naive + math.sqrt(1 - 0.95**2) * other  # overlapping and of the same variance: skill 0
        low, high = skill_interval(errors, naive, np.arange(days), horizon=horizon, seed=trial)
        inside += low <= 0 <= high
    assert 0.87 <= inside / 400 <= 0.98  # with percentiles 2.5 and 97.5: 0.89, 0.81, 0.76


@pytest.mark.parametrize(('days', 'horizon'), [(1, 1), (7, 1), (20, 20), (79, 20)])
def test_fewer_than_four_blocks_of_days_have_no_interval(days, horizon):
    errors, naive = np.random.default_rng(12).normal(size=(2, days))
    assert skill_interval(errors, naive, np.arange(days), horizon=horizon) is None


def test_bootstrap_of_days_agrees_with_drawing_blocks_one_by_one():
    random = np.random.default_rng(7)
    errors, naive = random.normal(size=8), random.normal(size=8)
    low, high = skill_interval(errors, naive, np.arange(8), horizon=1)
    draws = []
    for _ in range(20000):
        rows = np.concatenate([(start + np.arange(2)) % 8 for start in random.integers(8, size=4)])
        draws.append(skill(errors[rows], naive[rows]))
    tail = stats.norm.cdf(stats.t.ppf(0.025, 3) * math.sqrt(4 / 3))  # as far out as Student's t for four blocks
    np.testing.assert_allclose([low, high], np.quantile(draws, [tail, 1 - tail]), atol=0.12)


def test_bootstrap_draws_a_day_with_all_its_tickers_wherever_these_lie():
    errors, naive = np.random.default_rng(13).normal(size=(2, 60))
    alone = skill_interval(errors, naive, np.arange(60), horizon=1)
    alike = [np.tile(values, 5) for values in (errors, naive, np.arange(60))]  # one ticker after the other
    assert skill_interval(*alike, horizon=1) == pytest.approx(alone)


def test_rank_correlation_is_the_mean_over_days_with_enough_tickers():
    random = np.random.default_rng(8)
    said, came = random.normal(size=(2, 6, 25))
    said[4] = 0.01  # equal forecasts for all
    came[5] = 0.0  # a day without trade
    enough = np.ones((6, 25), bool)
    enough[3, 19:] = False
    days = np.repeat(np.arange(6), 25)[enough.ravel()]
    found = rank_information_coefficient(said[enough], came[enough], days)
    # Without ties it is the correlation of the ranks.
    ranks = [values[:3].argsort(axis=1).argsort(axis=1) for values in (said, came)]
    daily = [np.corrcoef(s, c)[0, 1] for s, c in zip(*ranks, strict=True)]
    mean, deviation = np.mean(daily), np.std(daily)
    assert found == pytest.approx(
        {'mean': mean, 'standard_deviation': deviation, 'information_ratio': mean / deviation, 'days': 3}
    )
    assert rank_information_coefficient(said[0, :19], came[0, :19], days[:19]) is None


def records_of(returns, volatility, last=100.0):
    return pd.DataFrame({'last_close': last, 'actual': last * (1 + returns), 'volatility': volatility})


def test_conformal_intervals_cover_as_they_promise_across_calm_and_storm():
    random = np.random.default_rng(9)

    def draw(count, level):
        volatility = level * np.exp(random.normal(0, 0.5, count))
        return records_of(volatility * random.standard_t(4, count), volatility)

    calm, storm = draw(4000, 0.01), draw(20000, 0.05)
    half_widths = intervals.calibrate(intervals.scores(calm, calm['last_close'].to_numpy()))
    found = intervals.coverage(storm, storm['last_close'].to_numpy(), half_widths)
    for level, figures in zip((0.80, 0.90, 0.95), found.values(), strict=True):
        assert figures['coverage'] == pytest.approx(level, abs=0.015)
    assert list(found) == ['80%', '90%', '95%']


def test_conformal_rank_has_the_finite_sample_correction():
    widths = intervals.calibrate(np.arange(1.0, 20.0)[::-1])  # 19 scores: ranks 16, 18 and 19 of 20
    assert widths == {0.80: 16.0, 0.90: 18.0, 0.95: 19.0}
    assert intervals.calibrate(np.arange(10.0))[0.95] == math.inf


def test_intervals_reach_as_far_as_the_volatility_says_and_not_below_zero():
    records = records_of(np.zeros(2), np.array([0.01, 0.5]))
    lower, upper = intervals.bounds(records, np.full(2, 100.0), 3.0)
    np.testing.assert_allclose([lower, upper], [[97, 0], [103, 250]])
    width = intervals.coverage(records, np.full(2, 100.0), {0.9: 3.0})['90%']['mean_relative_width']
    assert width == pytest.approx((0.06 + 2.5) / 2)


def test_predicted_returns_are_drawn_over_those_to_come_and_those_just_seen():
    records = records_of(np.array([0.01, -0.02, 0.03]), 0.02).assign(
        predicted=[101.0, 102.0, 103.0], last_return=[0.1, 0.2, 0.3]
    )
    figure = plots.returns(records, {'correlation_with_next': 0.1, 'correlation_with_last': None})
    ahead, seen = (axes.collections[0].get_offsets().data for axes in figure.axes)
    predicted = np.log([1.01, 1.02, 1.03])
    np.testing.assert_allclose(ahead, np.column_stack([np.log([1.01, 0.98, 1.03]), predicted]))
    np.testing.assert_allclose(seen, np.column_stack([[0.1, 0.2, 0.3], predicted]))


@pytest.mark.parametrize(
    ('skill', 'ends', 'said'),
    [(0.02, [0.01, 0.03], 'beats'), (-0.02, [-0.03, -0.01], 'is worse than'), (0.02, [-0.01, 0.05], 'cannot be told')],
)
def test_the_verdict_goes_by_the_interval(skill, ends, said):
    figures = {'skill': skill, 'intervals_95': {'skill': ends}}
    assert f'The model {said}' in verdict({**figures, 'diebold_mariano': {'statistic': 1.0, 'p_value': 0.3}})


def test_a_forecast_that_repeats_the_last_close_is_called_so():
    random = np.random.default_rng(10)
    returns, seen = random.normal(0, 0.02, (2, 2000))
    records = records_of(returns, 0.02).assign(last_return=seen)
    last, actual = records['last_close'].to_numpy(), records['actual'].to_numpy()
    assert 'repeats the last close' in repetition(records, last)['sentence']
    assert repetition(records, last)['relative_amplitude'] == 0
    lagging = repetition(records, last * np.exp(-0.5 * seen))
    assert 'not towards the price to come' in lagging['sentence']
    assert lagging['correlation_with_last'] == pytest.approx(-1)
    young = records.assign(last_return=np.where(np.arange(2000) < 5, np.nan, seen))
    assert repetition(young, last * np.exp(-0.5 * seen))['correlation_with_last'] == pytest.approx(-1)
    assert 'just seen undefined' in repetition(young[:5], last[:5] * np.exp(-0.5 * seen[:5]))['sentence']
    seer = repetition(records, last + 0.5 * (actual - last))
    assert 'departs from the last close, towards' in seer['sentence']
    assert seer['correlation_with_next'] > 0.99
