"""Price books as files: what is refused, in one line that names the file and the row, and prices of one's own."""

from __future__ import annotations

import time
from datetime import UTC, date, datetime
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aha.cost import EntryKind, Ledger, LedgerRow, machine_price, price_history, prices_on, token_price
from aha.cost.prices import MAX_INT64, user_prices_path
from aha.cost.prices.file import read_book
from aha.errors import ConfigError

RATE = """
[[exchange]]
currency = "CNY"
units_per_usd = "7.2"
on = 2025-01-01
source = "a bank"
source_date = 2025-01-01
confidence = "primary"
"""


def token(**changes: str) -> str:
    """A row in TOML; a change of None leaves the key out."""
    row = {
        "name": '"acme-one"',
        "provider": '"acme"',
        "model": '"one-2026"',
        "is_open_weight": "false",
        "currency": '"USD"',
        "input_per_million": '"3.00"',
        "cached_per_million": '"0.30"',
        "output_per_million": '"15.00"',
        "effective_from": "2026-01-01",
        "source": '"acme\'s page"',
        "source_date": "2026-01-01",
        "confidence": '"primary"',
    }
    rows = "\n".join(f"{key} = {value}" for key, value in (row | changes).items() if value)
    return f"[[token]]\n{rows}\n"


def machine(**changes: str) -> str:
    row = {"name": '"box-hour"', "currency": '"USD"', "per_hour": '"1.50"', "effective_from": "2026-01-01"}
    row |= {"source": '"a page"', "source_date": "2026-01-01", "confidence": '"primary"'}
    return "[[machine]]\n" + "\n".join(f"{key} = {value}" for key, value in (row | changes).items() if value) + "\n"


def test_the_book_of_the_package_is_valid_and_its_ids_are_unique() -> None:
    text = resources.files("aha.cost").joinpath("prices.toml").read_text(encoding="utf-8")
    book = read_book(text, file="prices.toml")
    ids = [row.price_id for row in book.tokens] + [row.price_id for row in book.machines]
    assert len(ids) == len(set(ids)) > 120
    assert all(0 < row.pico_usd_per_output_token <= MAX_INT64 for row in book.tokens)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_per_million": '"-1"'}, "input_per_million must be an amount in plain digits such as '0.55', got '-1'"),
        ({"output_per_million": '"nan"'}, "output_per_million must be an amount in plain digits"),
        ({"output_per_million": '"1e999999999"'}, "output_per_million must be an amount in plain digits"),
        ({"output_per_million": "0.1"}, "output_per_million must be text, so that it is exact, e.g. '0.55'; got 0.1"),
        ({"output_per_million": '"10000000000000"'}, "10000000000000 is more than 64 bits can hold"),
        ({"output_per_million": '"0.0000001"'}, "has more digits than can be kept; the smallest step is 0.000001"),
        ({"output_per_million": ""}, "output_per_million is missing"),
        ({"cached_per_million": '"3.01"'}, "cached_per_million 3.01 is above input_per_million 3.00"),
        ({"curency": '"USD"'}, "unknown key 'curency'; did you mean 'currency'?"),
        ({"currency": '"CNY"'}, "unknown rate of exchange '' for CNY; known: none; add an"),
        ({"currency": '"CNY"', "exchange": '"CNY@2025-01-02"'}, "unknown rate of exchange 'CNY@2025-01-02' for CNY"),
        ({"exchange": '"CNY@2025-01-01"'}, "dollars need no exchange"),
        ({"effective_to": "2026-01-01"}, "effective_to 2026-01-01 is not after effective_from 2026-01-01"),
        ({"effective_from": "2026-01-01T10:00:00"}, "effective_from must be a day or a moment with a time zone"),
        ({"effective_from": '"2026-01-01"'}, "effective_from must be a day or a moment with a time zone"),
        ({"effective_from": "0001-01-01"}, "effective_from must lie between 1990 and 2200"),
        ({"source_date": "2026-01-01T10:00:00Z"}, "source_date must be a day"),
        ({"source": '""'}, "source is empty"),
        ({"source": '"red \\u001b[31m"'}, "source must be one line of text"),
        ({"name": '"Acme One"'}, "name must be of small letters"),
        ({"is_open_weight": '"no"'}, "is_open_weight must be true or false, got 'no'"),
        ({"confidence": '"sure"'}, "unknown confidence 'sure'; choose from: assumption, primary, third-party, user"),
        ({"id": '"other@2026-01-01"'}, "id must begin with acme-one@"),
        ({"prompt_tokens_up_to": "0"}, "prompt_tokens_up_to must be a whole number above 0, got 0"),
        ({"prompt_tokens_above": "9", "prompt_tokens_up_to": "9"}, "prompt_tokens_up_to 9 is not above"),
        ({"hours": '["16:30-00:30"]'}, "hours need a window"),
        ({"window": '"night"'}, "window 'night' needs hours"),
        (
            {"window": '"night"', "hours": '["16:30-24:30"]'},
            "hours are written '16:30-00:30' in UTC, got '16:30-24:30'",
        ),
        ({"window": '"night"', "hours": '["16:30-16:30"]'}, "are empty"),
        ({"window": '"n"', "hours": '["01:00-04:00", "03:00-05:00"]'}, "overlap one another"),
        ({"window": '"n"', "hours": '["22:00-02:00", "01:00-03:00"]'}, "overlap one another"),
        ({"window": '"n"', "hours": '["01:00-04:00"]', "weekdays": '["lundi"]'}, "unknown weekday 'lundi'"),
        ({"window": '"n"', "hours": '["01:00-04:00"]', "except_days": '["xmas"]'}, "must be a list of days"),
    ],
)
def test_row_that_cannot_be_used_is_refused_with_its_file_and_number(changes: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_book(token(name='"good"') + token(**changes), file="my.toml")
    text = str(error.value)
    assert message in text
    assert text.startswith("my.toml: [[token]] number 2")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[token]\n", "my.toml is not TOML"),
        ("x = " + "[" * 100_000, "my.toml is not TOML"),
        ("token = 3\n", "my.toml: write each row as [[token]]"),
        ("[[tokens]]\n", "my.toml: unknown table 'tokens'; did you mean 'token'?"),
        (machine(per_hour='"-2"'), "my.toml: [[machine]] number 1 ('box-hour'): per_hour must be an amount"),
        (RATE.replace("7.2", "0"), "units_per_usd must be above 0"),
        (token() + token(), "my.toml: 'acme-one@2026-01-01' is there twice"),
        (machine() + machine(), "my.toml: 'box-hour@2026-01-01' is there twice"),
    ],
)
def test_file_that_is_no_price_book_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_book(text, file="my.toml")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("key", ["prompt_tokens_up_to", "is_open_weight", "input_per_million", "source_date"])
def test_number_too_long_to_be_shown_is_refused_all_the_same(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} must be .*got a number of thousands of digits"):
        read_book(token(**{key: "0x" + "F" * 6000}), file="f.toml")


def test_long_history_and_many_hours_are_read_at_once() -> None:
    clock = [f"{minute // 60:02}:{minute % 60:02}" for minute in range(0, 24 * 60, 3)]
    spans = zip(clock, [*clock[1:], clock[0]], strict=True)
    windows = [token(window=f"'w{n}'", hours=f"['{start}-{end}']") for n, (start, end) in enumerate(spans)]
    history = [token(name="'old'", effective_from=f"{1990 + n // 12}-{n % 12 + 1:02}-01") for n in range(1200)]
    started = time.process_time()
    book = read_book("".join(windows + history), file="f.toml")
    assert len(book.tokens) == 1680
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "second",
    [
        token(effective_from="2026-03-01"),  # the first says that it lasts till June
        token(effective_from="2026-03-01", prompt_tokens_up_to="1000"),
    ],
)
def test_rows_that_say_two_things_of_one_moment_are_refused(second: str) -> None:
    with pytest.raises(ConfigError, match="my.toml: .*'acme-one@2026-01-01' and 'acme-one@2026-03-01' overlap"):
        read_book(token(effective_to="2026-06-01") + second, file="my.toml")


def test_hours_that_meet_are_refused_and_hours_that_do_not_are_no_overlap() -> None:
    night = token(window='"night"', hours='["22:00-06:00"]')
    early = token(window='"early"', hours='["05:00-07:00"]')
    with pytest.raises(ConfigError, match=r"\+early' and 'acme-one@2026-01-01\+night' overlap"):
        read_book(token() + night + early, file="my.toml")
    weekend = token(window='"early"', hours='["05:00-07:00"]', weekdays='["sun"]')
    monday_night = token(window='"night"', hours='["22:00-06:00"]', weekdays='["mon"]')
    assert len(read_book(token() + weekend + monday_night, file="my.toml").tokens) == 3
    sunday_night = token(window='"night"', hours='["22:00-06:00"]', weekdays='["sun"]')
    monday = token(window='"early"', hours='["05:00-07:00"]', weekdays='["mon"]')
    with pytest.raises(ConfigError, match="overlap"):  # past Sunday's midnight
        read_book(token() + monday + sunday_night, file="my.toml")


def test_open_row_ends_where_the_next_begins_and_lengths_share_a_time() -> None:
    book = read_book(token() + token(effective_from="2026-03-01T16:00:00Z", output_per_million='"9"'), file="my.toml")
    assert [str(row.effective_to) for row in book.tokens] == ["2026-03-01 16:00:00+00:00", "None"]
    lengths = token(prompt_tokens_up_to="1000") + token(prompt_tokens_above="1000", output_per_million='"30"')
    assert len(read_book(lengths, file="my.toml").tokens) == 2


def test_hours_go_before_the_rows_without_them_whatever_the_length_of_the_prompt() -> None:
    lengths = token(prompt_tokens_up_to="1000") + token(prompt_tokens_above="1000", output_per_million='"30"')
    night = token(window='"night"', hours='["22:00-06:00"]', output_per_million='"1"')
    write_own((lengths + night).replace("confidence", "# confidence"))
    at = {hour: datetime(2026, 6, 1, hour, tzinfo=UTC) for hour in (12, 23)}
    outputs = [token_price("one", on=at[h], prompt_tokens=n).pico_usd_per_output_token for h in at for n in (9, 2000)]
    assert outputs == [15_000_000, 30_000_000, 1_000_000, 1_000_000]


def test_other_currency_is_converted_by_the_rate_that_the_row_names() -> None:
    yuan = token(currency='"CNY"', exchange='"CNY@2025-01-01"', input_per_million='"4"', cached_per_million='"1"')
    (row,) = read_book(RATE + yuan, file="my.toml").tokens
    # 4 / 7.2 = 0.5555..., 1 / 7.2 = 0.13888..., 15 / 7.2 = 2.08333... dollars, to the nearest millionth
    assert (row.pico_usd_per_input_token, row.pico_usd_per_cached_token) == (555_556, 138_889)
    assert row.pico_usd_per_output_token == 2_083_333
    assert dict(row.listed_per_million) == {"input": "4", "cached": "1", "output": "15.00"}
    assert (row.currency, row.exchange_id) == ("CNY", "CNY@2025-01-01")
    (hour,) = read_book(RATE + machine(currency='"CNY"', exchange='"CNY@2025-01-01"'), file="my.toml").machines
    assert hour.nano_usd_per_hour == 208_333_333


def test_alias_must_be_a_new_name_for_a_known_one() -> None:
    alias = '[[alias]]\nalias = "uno"\nname = "{}"\neffective_from = 2026-01-01\nsource = "us"\n'
    assert read_book(token() + alias.format("acme-one"), file="my.toml").aliases[0].alias == "uno"
    with pytest.raises(ConfigError, match="my.toml: alias 'uno' for 'acme-two' must be a new name for a known one"):
        read_book(token() + alias.format("acme-two"), file="my.toml")


def write_own(text: str) -> Path:
    path = user_prices_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AHA_HOME", str(tmp_path / "home"))


def test_prices_of_your_own_join_the_book_and_reach_the_ledger() -> None:
    write_own(token(confidence="") + machine(confidence=""))
    price = token_price("one", on=date(2026, 6, 1))
    assert (price.name, price.confidence, price.price_id) == ("acme-one", "user", "acme-one@2026-01-01")
    assert price in prices_on(date(2026, 6, 1))
    box = machine_price("box-hour", on=date(2026, 6, 1))
    with Ledger.open(None) as ledger:
        ledger.record(LedgerRow(kind=EntryKind.TRAINING, run_id="r", phase="p", price=box, cost_nano_usd=1, wall_ms=1))


def test_your_own_row_takes_over_from_an_open_one_of_the_package_and_leaves_its_id_alone() -> None:
    before = token_price("openai-o1", on=date(2026, 6, 1))
    write_own(token(name='"openai-o1"', provider='"openai"', effective_from="2026-07-01", confidence=""))
    assert token_price("openai-o1", on=date(2026, 7, 1)).pico_usd_per_output_token == 15_000_000
    assert token_price("openai-o1", on=date(2026, 6, 30)).price_id == before.price_id
    assert [row.confidence for row in price_history("o1")] == ["third-party", "user"]


def test_key_of_many_dots_is_refused_before_it_is_read() -> None:
    write_own("a" + ".a" * 100_000 + " = 1")
    with pytest.raises(ConfigError, match=r"a line may have 1,000 characters; write a list on several lines"):
        prices_on(date(2026, 1, 1))


def test_change_of_your_own_file_is_seen_and_its_removal_too() -> None:
    path = write_own(token(confidence=""))
    assert token_price("acme-one", on=date(2026, 6, 1)).pico_usd_per_output_token == 15_000_000
    write_own(token(confidence="", output_per_million='"16.000"'))
    assert token_price("acme-one", on=date(2026, 6, 1)).pico_usd_per_output_token == 16_000_000
    path.unlink()
    with pytest.raises(ConfigError, match="unknown token price 'acme-one'"):
        token_price("acme-one", on=date(2026, 6, 1))


def test_same_id_with_other_amounts_is_refused_and_with_the_same_ones_is_no_harm() -> None:
    mine = {"name": '"openai-o1"', "provider": '"openai"', "effective_from": "2025-01-01", "confidence": ""}
    path = write_own(token(**mine))
    with pytest.raises(ConfigError, match="'openai-o1@2025-01-01' is already in the book with other amounts") as error:
        token_price("deepseek-r1", on=date(2025, 1, 31))
    assert str(error.value).startswith(str(path))
    same = {"input_per_million": '"15.00"', "cached_per_million": '"7.50"', "output_per_million": '"60"'}
    write_own(token(**mine, **same))
    assert token_price("openai-o1", on=date(2025, 1, 31)).confidence == "third-party"


def test_file_of_your_own_may_not_call_itself_primary() -> None:
    path = write_own(token())
    with pytest.raises(ConfigError, match=r"number 1 \('acme-one'\): confidence must be 'user' in a file of your own"):
        token_price("o1", on=date(2025, 1, 31))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        token_price("o1", on=date(2025, 1, 31))
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match=r"must be a file of at most 1,000,000 bytes"):
        token_price("o1", on=date(2025, 1, 31))


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=200) | st.binary(max_size=60).map(lambda raw: raw.decode("utf-8", "replace")))
def test_text_that_is_no_price_book_is_an_error_of_one_line_and_never_anything_else(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_book(f'[[token]]\nname = "x"\n{text}', file="my.toml")
    assert "\n" not in str(error.value)
