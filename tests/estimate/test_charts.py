"""Charts: axes by hand and by property, names that never cover each other, waterfalls that add up."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import date
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aha.estimate.charts import (
    DESK,
    PHONE,
    Axis,
    Band,
    Box,
    Curve,
    Dot,
    Level,
    Name,
    Plane,
    Spot,
    Tick,
    day_axis,
    draw_plane,
    draw_waterfall,
    linear_axis,
    log_axis,
    place,
    place_names,
    stack,
    text_width,
    thinned,
)


def show(value: float) -> str:
    return f"{value:g}"


def test_log_axis_of_january_2025_ends_on_1_2_5_of_a_decade() -> None:
    axis = log_axis([0.28, 2.19, 60.0], show=show, num_ticks=9)
    assert [tick.value for tick in axis.ticks] == pytest.approx([0.2, 0.5, 1, 2, 5, 10, 20, 50, 100])
    assert (axis.lowest, axis.highest) == (0.2, 100.0)


def test_log_axis_takes_fewer_ticks_when_decades_are_many() -> None:
    axis = log_axis([0.01, 60.0], show=show, num_ticks=9)
    assert [tick.value for tick in axis.ticks] == pytest.approx([0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100])
    wide = log_axis([1e-6, 1e6], show=show, num_ticks=7)
    assert [math.log10(tick.value) for tick in wide.ticks] == pytest.approx([-6, -4, -2, 0, 2, 4, 6])


def test_log_axis_gives_every_tenfold_the_same_length() -> None:
    axis = log_axis([0.1, 100.0], show=show)
    assert [axis.share(value) for value in (0.1, 1, 10, 100)] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert axis.share(math.sqrt(0.1 * 100)) == pytest.approx(0.5)


@given(st.lists(st.floats(1e-9, 1e12), min_size=1, max_size=6), st.integers(3, 12))
def test_log_axis_encloses_its_values_and_keeps_to_its_ticks(values: list[float], num_ticks: int) -> None:
    axis = log_axis(values, show=show, num_ticks=num_ticks)
    assert axis.lowest <= min(values) * (1 + 1e-9)
    assert axis.highest >= max(values) * (1 - 1e-9)
    assert 1 <= len(axis.ticks) <= num_ticks
    assert all(-1e-9 <= axis.share(tick.value) <= 1 + 1e-9 for tick in axis.ticks)
    ordered = sorted(values)
    assert all(axis.share(a) <= axis.share(b) for a, b in pairwise(ordered))


def test_log_axis_has_no_place_for_a_price_of_nothing() -> None:
    with pytest.raises(AssertionError, match="no place for 0"):
        log_axis([0.0, 1.0], show=show)


def test_linear_axis_encloses_scores() -> None:
    axis = linear_axis([9.3, 79.8, 100.0], show=show)
    assert (axis.lowest, axis.highest) == (0.0, 100.0)


def test_day_axis_has_quarters_and_names_years() -> None:
    axis = day_axis(date(2025, 1, 20), last=date(2026, 11, 25), num_ticks=9)
    assert [tick.text for tick in axis.ticks] == ["Apr", "Jul", "Oct", "2026", "Apr", "Jul", "Oct"]
    assert axis.share(date(2025, 1, 20).toordinal()) == 0.0
    assert axis.share(date(2026, 11, 25).toordinal() + 1) == 1.0


def test_ticks_without_room_are_thinned_evenly_and_years_stay() -> None:
    ticks = day_axis(date(2024, 9, 1), last=date(2026, 11, 25), num_ticks=9).ticks
    kept = thinned(ticks, fits=lambda kept: len(kept) <= 4)
    assert [tick.text for tick in kept] == ["2025", "Jul", "2026", "Jul"]
    assert thinned(ticks, fits=lambda kept: True) == ticks
    assert not thinned(ticks, fits=lambda kept: False)


def test_name_of_what_is_past_is_left_out_rather_than_written_over_a_line() -> None:
    frame, lines = Box(0.0, 0.0, 60.0, 14.0), [Box(0.0, 6.0, 60.0, 8.0)]
    names = [Name(text="past", x=2.0, y=7.0, style="main", rank=1)]
    assert not place(names, frame=frame, lines=lines)
    assert place([replace(names[0], rank=0)], frame=frame, lines=lines)


def test_day_axis_of_eight_thousand_years_has_few_ticks() -> None:
    ticks = day_axis(date(2024, 7, 1), last=date.max, num_ticks=9).ticks
    assert 2 <= len(ticks) <= 9
    assert all(tick.is_major for tick in ticks)


def test_day_axis_of_one_day_does_not_divide_by_nothing() -> None:
    assert day_axis(date(2025, 2, 1), last=date(2025, 2, 1), num_ticks=5).share(date(2025, 2, 1).toordinal()) == 0.0


def test_text_width_counts_wide_letters_as_wide() -> None:
    assert text_width("価格") == 22.0 > text_width("ab")


FRAME = Box(40.0, 10.0, 360.0, 300.0)
POINTS = st.tuples(st.floats(40, 250), st.floats(10, 300), st.text("abcdefgh-.0123", min_size=1, max_size=18))


@settings(max_examples=60)
@given(st.lists(POINTS, max_size=40), st.sampled_from(["around", "edge"]))
def test_placed_names_never_cover_each_other_or_leave_the_frame(points: list[tuple[float, float, str]], side) -> None:  # type: ignore[no-untyped-def]
    taken = [Box(x - 3, y - 3, x + 3, y + 3) for x, y, _ in points]
    names = [Name(text=text, x=x, y=y, style="main", side=side) for x, y, text in points]
    placed = place(names, frame=FRAME, taken=taken if side == "around" else ())
    for one, other in combinations([done.box for done in placed], 2):
        assert not one.overlaps(other)
    for done in placed:
        assert FRAME.top - 0.01 <= done.box.top
        assert done.box.bottom <= FRAME.bottom + 0.01
        if side == "around":
            assert FRAME.holds(done.box)
            assert not any(done.box.overlaps(mark) for mark in taken)


def test_name_that_finds_no_place_is_left_out_and_the_first_rank_stays() -> None:
    frame = Box(0.0, 0.0, 60.0, 14.0)
    names = [Name(text="second", x=2.0, y=7.0, style="main", rank=1), Name(text="first", x=2.0, y=7.0, style="main")]
    assert [done.name.text for done in place(names, frame=frame)] == ["first"]


def plane() -> Plane:
    return Plane(
        x=Axis(kind="linear", lowest=0, highest=10, ticks=(Tick(value=0, text="0"), Tick(value=10, text="10"))),
        y=log_axis([1.0, 100.0], show=show, title="<$> & more"),
        curves=(Curve(spots=(Spot(0, 1), Spot(5, 10), Spot(10, 100)), style="main", label="<b>up</b>", shape="steps"),),
        dots=(Dot(spot=Spot(5, 10), style="second", tip='"><script>', label="here", mark="hollow"),),
        bands=(Band(lower=(Spot(0, 1), Spot(10, 2)), upper=(Spot(0, 3), Spot(10, 4)), style="main"),),
        levels=(Level(y=10.0, label="level"),),
    )


def test_plane_escapes_every_text() -> None:
    drawn = draw_plane(plane(), title="<title>", size=DESK)
    assert "<script>" not in drawn
    assert "<b>" not in drawn
    assert "&lt;b&gt;up" in drawn
    assert 'aria-label="&lt;title&gt;"' in drawn


def test_steps_hold_a_value_until_the_next() -> None:
    drawn = draw_plane(plane(), title="t", size=DESK)
    (line,) = [part for part in drawn.split("<") if part.startswith("polyline")]
    places = [tuple(map(float, pair.split(","))) for pair in line.split('points="')[1].split('"')[0].split()]
    assert len(places) == 5
    assert places[0][1] == places[1][1] > places[2][1] == places[3][1] > places[4][1]
    assert places[1][0] == places[2][0]


def test_names_of_a_plane_stand_within_the_drawing() -> None:
    for size in (DESK, PHONE):
        for done in place_names(plane(), size=size):
            assert 0 <= done.box.left < done.box.right <= size.width


def test_waterfall_begins_each_part_where_the_one_before_ends() -> None:
    parts = stack([("a", 2.0, "$2", ""), ("b", 3.0, "$3", ""), ("c", 0.5, "$0.5", "")], style="main")
    assert [(part.start, part.start + part.amount) for part in parts] == [(0.0, 2.0), (2.0, 5.0), (5.0, 5.5)]
    drawn = draw_waterfall(parts, title="sum <of> parts", size=PHONE)
    assert drawn.count("<rect") == 3
    assert "sum &lt;of&gt; parts" in drawn
