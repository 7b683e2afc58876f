"""Markets: what is drawn is what is promised, the best prediction is the best, and prices with gaps or wrong dates are refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtlearn.datasets.markets import (
    Prices,
    World,
    best_prediction,
    daily_google,
    monthly_stocks,
    price_fields,
    read_prices,
    sample_market,
)
from mtlearn.lab.seeds import stream


def market(days: int = 400, world: World | None = None, seed: int = 0):
    return sample_market(days, world, generator=stream(seed, "market"))


# the drawn market


def test_a_market_repeats_and_another_seed_gives_another() -> None:
    assert torch.equal(market().returns, market().returns)
    assert not torch.equal(market().returns, market(seed=1).returns)
    assert market().returns.shape == (400, 24)
    assert market().world.sector.tolist() == [0] * 12 + [1] * 12


def test_without_trend_and_noise_a_return_is_the_jump_less_what_is_taken_back() -> None:
    drawn = market(world=World(trend_sd=0.0, noise_sd=0.0, jump_probability=0.5))
    wanted = drawn.jumps.clone()
    wanted[1:] -= 0.6 * drawn.jumps[:-1]
    torch.testing.assert_close(drawn.returns, wanted[:, drawn.world.sector])
    sizes = drawn.jumps[drawn.jumps != 0].abs()
    assert 1.4 <= float(sizes.min()) < 1.5 and 2.5 < float(sizes.max()) <= 2.6
    torch.testing.assert_close(best_prediction(drawn)[1:], -0.6 * drawn.jumps[:-1][:, drawn.world.sector])


def test_trend_jumps_and_noise_have_the_promised_sizes() -> None:
    drawn = market(20_000, World(sectors=4))
    assert float(drawn.trend.std()) == pytest.approx(0.6, rel=0.1)
    first, second = drawn.trend[:-1].flatten(), drawn.trend[1:].flatten()
    assert float((first * second).mean() / (first * first).mean()) == pytest.approx(0.95, abs=0.01)
    assert float((drawn.jumps != 0).double().mean()) == pytest.approx(0.15, abs=0.005)
    sector_means = drawn.returns.view(-1, 4, 12).mean(2)[:, drawn.world.sector]
    assert float((drawn.returns - sector_means).std()) == pytest.approx(1.5 * (11 / 12) ** 0.5, rel=0.01)


def test_shocked_days_follow_the_jumps_of_the_stocks_own_sector() -> None:
    drawn = market(60, World(stocks=2))
    assert not drawn.shocked[0].any()
    assert torch.equal(drawn.shocked[1:, 0], drawn.jumps[:-1, 0] != 0)
    assert torch.equal(drawn.shocked[1:, 3], drawn.jumps[:-1, 1] != 0)


def test_the_best_prediction_is_the_conditional_mean_of_the_joint_gaussian() -> None:
    world = World(sectors=1, stocks=3, phi=0.8)
    drawn = market(7, world, seed=3)
    lag = (torch.arange(7)[:, None] - torch.arange(7)).abs()
    trend = world.trend_sd**2 * world.phi ** lag.double()  # covariance of u
    seen = trend + world.noise_sd**2 / 3 * torch.eye(7, dtype=torch.float64)  # and of the sector mean without its jumps
    back = torch.zeros(7, dtype=torch.float64)
    back[1:] = -world.reversion * drawn.jumps[:-1, 0]
    values = drawn.returns.mean(1) - drawn.jumps[:, 0] - back
    for day in range(7):
        mean = trend[day, :day] @ torch.linalg.solve(seen[:day, :day], values[:day]) if day else torch.tensor(0.0)
        assert float(best_prediction(drawn)[day, 0]) == pytest.approx(float(mean + back[day]), abs=1e-10)


def test_the_best_prediction_knows_nothing_of_the_day_it_predicts_and_cannot_be_improved_by_scaling() -> None:
    drawn = market(3000)
    best = best_prediction(drawn)
    changed = drawn.returns.clone()
    changed[1500:] += torch.randn(1500, 24, generator=stream(0, "noise"), dtype=torch.float64)
    other = best_prediction(type(drawn)(drawn.world, changed, drawn.trend, drawn.jumps))
    assert torch.equal(best[:1501], other[:1501]) and not torch.equal(best[1501], other[1501])

    def error(prediction: torch.Tensor) -> float:
        return float((drawn.returns - prediction).square().mean())

    assert error(best) < min(error(0.7 * best), error(1.3 * best), error(torch.zeros_like(best)))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(2, 5), st.integers(2, 30), st.integers(0, 1000))
def test_any_market_is_finite_and_of_its_shape(sectors: int, stocks: int, days: int, seed: int) -> None:
    drawn = market(days, World(sectors, stocks), seed)
    assert drawn.returns.shape == (days, sectors * stocks) and bool(drawn.returns.isfinite().all())
    assert bool(best_prediction(drawn).isfinite().all())


def test_bars_enclose_open_and_close_and_follow_the_returns() -> None:
    drawn = market(100)
    fields = price_fields(drawn.returns, generator=stream(0, "bars"))
    assert set(fields) == {"close", "open", "high", "low", "vwap", "volume"}
    torch.testing.assert_close(fields["close"][1:] / fields["close"][:-1] - 1, drawn.returns[1:] / 100)
    assert bool((fields["high"] >= torch.maximum(fields["open"], fields["close"])).all())
    assert bool((fields["low"] <= torch.minimum(fields["open"], fields["close"])).all())
    assert bool((fields["low"] > 0).all()) and bool((fields["volume"] > 0).all())
    assert bool(((fields["vwap"] >= fields["low"]) & (fields["vwap"] <= fields["high"])).all())


# real prices


def test_the_monthly_stocks_are_those_that_ship_with_matplotlib() -> None:
    prices = monthly_stocks()
    assert prices.names == ("IBM", "AAPL", "MSFT", "XRX", "ADBE", "^GSPC", "^IXIC")
    assert str(prices.dates[0]) == "1990-01-01" and str(prices.dates[-1]) == "2022-06-01" and len(prices.dates) == 390
    assert prices.log_returns.shape == (389, 7)
    assert int((prices.dates[1:] < np.datetime64("2010-01-01")).sum()) == 239
    assert float(prices.log_returns[0, 0]) == pytest.approx(100 * np.log(11.554415702819824 / 10.970438003540039))


def test_one_stock_day_by_day_has_bars_in_order() -> None:
    dates, fields = daily_google()
    assert len(dates) == 1047 and bool((np.diff(dates).astype(int) > 0).all())
    assert set(fields) == {"close", "open", "high", "low", "volume"}
    assert all(field.shape == (1047, 1) for field in fields.values())
    assert bool((fields["high"] >= fields["low"]).all())


CSV = "# a comment\nDate,A,B\n2001-01-31,1,2\n2001-02-15,,\n2001-02-28,1.5,3\n2001-03-31,2,3.5\n"


def test_a_table_of_prices_is_read_and_blank_rows_and_a_repeated_last_row_are_left_out() -> None:
    prices = read_prices((CSV + "2001-04-02,2,3.5\n").splitlines(keepends=True))
    assert prices.names == ("A", "B") and [str(date) for date in prices.dates] == ["2001-01-31", "2001-02-28", "2001-03-31"]
    assert prices.close.tolist() == [[1, 2], [1.5, 3], [2, 3.5]]


def test_a_stock_with_a_gap_is_refused_by_name_and_date_or_left_out() -> None:
    lines = (CSV + "2001-04-30,2.5,\n").splitlines(keepends=True)
    with pytest.raises(ValueError, match=r"B has no price on 2001-04-30: prices must be positive and without gaps"):
        read_prices(lines)
    assert read_prices(lines, gaps="drop stocks").names == ("A",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Day,A\n2001-01-31,1\n", "must have a column Date"),
        ("", "must have a column Date"),
        ("Date,A\n2001-01-31,\n", "and rows"),
        ("Date,A\nJanuary,1\n", "'January' is not a date of the form"),
        ("Date,A\n2001-01-31,one\n", "A has the price 'one' on 2001-01-31"),
        ("Date,A\n2001-01-31,-1\n", "A has the price -1.0 on 2001-01-31"),
        ("Date,A\n2001-01-31,inf\n", "A has the price inf"),
        ("Date,A\n2001-01-31,1\n2001-01-31,2\n", "dates must increase: 2001-01-31 comes twice"),
        ("Date,A\n2001-02-28,1\n2001-01-31,2\n", "2001-01-31 comes after 2001-02-28"),
    ],
)
def test_a_bad_table_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_prices(text.splitlines(keepends=True))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: World(sectors=1, stocks=1), "at least 2 stocks, got 1 sectors of 1"),
        (lambda: World(phi=1.0), "phi must lie between -1 and 1, got 1.0"),
        (lambda: World(jump_probability=1.5), "jump_probability must lie in 0..1"),
        (lambda: World(noise_sd=float("nan")), "noise_sd must be 0 or more, got nan"),
        (lambda: market(1), "days must be at least 2, got 1"),
        (lambda: read_prices(CSV.splitlines(), gaps="fill"), "gaps must be 'error' or 'drop stocks', got 'fill'"),
        (lambda: Prices(("A",), np.array(["2001-01-31"], dtype="datetime64[D]"), torch.ones(1, 2)), r"got \(1, 2\)"),
    ],
)
def test_bad_input_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
