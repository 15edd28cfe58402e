"""A price is asked for at a time: edges of windows, days on which it changes, tiers, prompt lengths, aliases."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aha.cost import machine_price, price_history, prices_on, token_price, token_prices
from aha.cost.prices import machine_names, token_names
from aha.cost.prices.hours import read_hours
from aha.errors import ConfigError

SECOND = timedelta(seconds=1)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def output(name: str, on: datetime) -> float:
    return token_price(name, on=on).pico_usd_per_output_token / 1e6


@pytest.mark.parametrize(
    ("moment", "before", "after"),
    [
        ("2025-02-26T16:30", 2.19, 0.55),  # the first night
        ("2025-03-01T00:30", 0.55, 2.19),  # past midnight, into Saturday
        ("2025-03-01T16:30", 2.19, 0.55),  # at weekends too
        ("2025-03-30T16:30", 2.19, 0.55),  # the Sunday on which Europe's clocks went forward: UTC does not
        ("2025-09-05T00:30", 0.55, 2.19),  # the last morning
    ],
)
def test_r1_changes_its_price_to_the_second_at_the_edges_of_the_night(moment: str, before: float, after: float) -> None:
    assert output("deepseek-r1", utc(moment) - SECOND) == before
    assert output("deepseek-r1", utc(moment)) == after


def test_promotion_of_v3_and_its_nights_end_when_deepseek_said() -> None:
    assert output("deepseek-v3", utc("2025-02-08T15:59:59")) == 0.28
    assert output("deepseek-v3", utc("2025-02-08T16:00")) == 1.10
    assert token_price("deepseek-v3", on=utc("2025-02-09T00:00")).price_id == "deepseek-v3@2025-02-08"
    # The night discount of 2025-09-05 would have begun at 16:30: the list had ended half an hour before.
    assert output("deepseek-chat", utc("2025-09-05T15:59:59")) == 1.10
    assert output("deepseek-chat", utc("2025-09-05T16:30")) == 1.68


@pytest.mark.parametrize(
    ("moment", "dollars"),
    [
        ("2026-11-25T00:59:59", 0.60),  # a Wednesday
        ("2026-11-25T01:00:00", 1.20),
        ("2026-11-25T03:59:59", 1.20),
        ("2026-11-25T04:00:00", 0.60),
        ("2026-11-25T06:00:00", 1.20),
        ("2026-11-25T09:59:59", 1.20),
        ("2026-11-25T10:00:00", 0.60),
        ("2026-11-28T02:00:00", 0.60),  # Saturday
        ("2026-11-29T07:00:00", 0.60),  # Sunday
        ("2026-11-30T02:00:00", 1.20),  # Monday
        ("2026-10-01T02:00:00", 0.60),  # National Day, a Thursday
        ("2026-10-08T02:00:00", 1.20),  # the first working day after it
        ("2026-09-25T07:00:00", 0.60),  # Mid-Autumn Festival, a Friday
    ],
)
def test_flash_costs_twice_as_much_in_the_peak_hours_of_working_days(moment: str, dollars: float) -> None:
    assert output("deepseek-flash", utc(moment)) == dollars


def test_peak_hours_held_at_the_weekend_in_their_first_week_only() -> None:
    assert output("deepseek-v4-pro", utc("2026-08-22T02:00")) == 3.96  # Saturday
    assert output("deepseek-v4-pro", utc("2026-08-29T02:00")) == 1.98  # Saturday a week later


def test_moment_in_another_time_zone_is_the_same_moment() -> None:
    beijing = timezone(timedelta(hours=8))
    assert token_price("deepseek-r1", on=datetime(2025, 2, 27, 0, 30, tzinfo=beijing)).window == "off-peak"
    assert token_price("deepseek-r1", on=datetime(2025, 2, 27, 0, 29, 59, tzinfo=beijing)).window == ""


def test_moment_without_a_time_zone_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"2025-03-01T17:00:00 has no time zone; write 2025-03-01T17:00:00Z for UTC"):
        token_price("deepseek-r1", on=datetime(2025, 3, 1, 17))


def test_day_whose_price_depends_on_the_hour_names_the_choices() -> None:
    with pytest.raises(
        ConfigError, match=r"depends on the hour of 2025-03-01: .*from 00:30Z deepseek-r1@2025-01-20, "
    ) as e:
        token_price("deepseek-r1", on=date(2025, 3, 1))
    assert "from 16:30Z deepseek-r1@2025-02-26T16:30Z+off-peak" in str(e.value)
    assert "2025-03-01T12:00Z" in str(e.value)
    rows = token_prices("deepseek-r1", on=date(2025, 3, 1))
    assert {row.window for row in rows} == {"", "off-peak"}


def test_day_on_which_the_price_changes_names_the_choices() -> None:
    with pytest.raises(
        ConfigError, match=r"2025-02-08: from 00:00Z deepseek-v3@2024-12-26, from 16:00Z deepseek-v3@2025-02-08;"
    ):
        token_price("deepseek-v3", on=date(2025, 2, 8))
    with pytest.raises(ConfigError, match=r"2025-09-05: .*from 16:00Z unknown"):
        token_price("deepseek-r1", on=date(2025, 9, 5))
    with pytest.raises(ConfigError, match="is not known for 2025-01-19T23:59:59Z"):
        token_price("deepseek-r1", on=utc("2025-01-19T23:59:59"))


def test_weekend_day_without_peak_hours_has_one_price() -> None:
    assert token_price("deepseek-flash", on=date(2026, 11, 28)).window == ""


def test_service_tiers_have_their_own_price_and_unknown_ones_list_the_choices() -> None:
    day = date(2026, 11, 1)
    standard, batch, fast = (token_price("gpt-6-luna", on=day, tier=t) for t in ("standard", "batch", "fast"))
    assert batch.pico_usd_per_output_token * 2 == standard.pico_usd_per_output_token
    assert fast.pico_usd_per_output_token == 2 * standard.pico_usd_per_output_token
    assert batch.price_id == "openai-gpt-6-luna@2026-09-22+batch"
    with pytest.raises(ConfigError, match=r"'openai-o1' \(for 'o1'\) has no tier 'flex'; choose from: standard"):
        token_price("o1", on=day, tier="flex")


def test_long_prompts_have_their_own_price_or_none() -> None:
    day = date(2026, 11, 1)
    at_limit, above = (token_price("gpt-6-astra", on=day, prompt_tokens=n) for n in (272_000, 272_001))
    assert (at_limit.pico_usd_per_input_token, above.pico_usd_per_input_token) == (10_000_000, 20_000_000)
    assert token_price("gpt-6-astra", on=day) == at_limit, "without a length: the price of short prompts"
    assert above.price_id == "openai-gpt-6-astra@2026-09-03+above-272000"
    with pytest.raises(
        ConfigError, match=r"'openai-gpt-6-sol' .*not known for a prompt of 272,001 tokens, only for: openai-gpt-6-sol@"
    ):
        token_price("gpt-6-sol", on=day, prompt_tokens=272_001)


def test_names_may_leave_out_their_provider_and_aliases_follow_the_time() -> None:
    assert token_price("o1", on=date(2025, 1, 31)).name == "openai-o1"
    assert token_price("r1", on=date(2025, 1, 31)).name == "deepseek-r1"
    days = {"2025-01-31": "deepseek-v3", "2025-09-10": "deepseek-v3.1", "2025-10-01": "deepseek-v3.2-exp"}
    days |= {"2026-01-01": "deepseek-v3.2", "2026-05-01": "deepseek-v4-flash"}
    assert {day: token_price("deepseek-chat", on=date.fromisoformat(day)).name for day in days} == days
    with pytest.raises(
        ConfigError, match=r"'deepseek-chat' is no one model on 2026-11-01; it has been: deepseek-v3 \(2024"
    ):
        token_price("deepseek-chat", on=date(2026, 11, 1))
    with pytest.raises(ConfigError, match="'deepseek-chat' is no one model; it has been"):
        price_history("deepseek-chat")


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(token_names()), st.datetimes(datetime(2023, 1, 1), datetime(2027, 1, 1)))
def test_at_any_moment_a_name_has_one_price_or_an_error(name: str, moment: datetime) -> None:
    on = moment.replace(tzinfo=UTC)
    listed = [row for row in prices_on(on) if row.name == name and not row.prompt_tokens_above]
    try:
        assert [token_price(name, on=on)] == listed
    except ConfigError:
        assert listed == []


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(token_names()), st.dates(date(2023, 1, 1), date(2027, 1, 1)))
def test_a_price_of_a_day_is_the_price_of_each_of_its_minutes(name: str, day: date) -> None:
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    try:
        price = token_price(name, on=day)
    except ConfigError:
        return
    assert all(token_price(name, on=start + timedelta(minutes=m)) == price for m in range(0, 24 * 60, 30))


def test_machines_are_asked_for_at_a_time_too() -> None:
    assert machine_price("h100-index-hour", on=utc("2026-02-28T23:59:59")).usd_per_hour == 1.70
    assert machine_price("h100-index-hour", on=utc("2026-03-01T00:00")).usd_per_hour == 2.35
    with pytest.raises(ConfigError, match="'h100-aws-hour' is not known for 2025-07-01"):
        machine_price("h100-aws-hour", on=date(2025, 7, 1))
    assert {"a100-hour", "l40s-hour", "4090-hour", "b200-hour", "h200-spot-hour"} <= set(machine_names())


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 1439), st.integers(0, 1439), st.sets(st.integers(0, 6), min_size=1), st.data())
def test_hours_are_those_of_a_slow_count_of_minutes(
    start: int, end: int, weekdays: set[int], data: st.DataObject
) -> None:
    if start == end:
        return
    names = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
    span = f"{start // 60:02}:{start % 60:02}-{end // 60:02}:{end % 60:02}"
    hours = read_hours([span], label="night", weekdays=[names[day] for day in weekdays])
    length = (end - start) % 1440
    inside = {(day * 1440 + start + minute) % 10080 for day in weekdays for minute in range(length)}
    minute = data.draw(st.integers(0, 10079))
    monday = datetime(2026, 11, 23, tzinfo=UTC)
    assert hours.contains(monday + timedelta(minutes=minute, seconds=59)) == (minute in inside)
