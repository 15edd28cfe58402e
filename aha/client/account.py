"""The money: what is spent, what is reserved for requests under way, and what may still go out.

The rule that keeps a budget: a request's worst case is reserved before it is sent, and nothing is sent unless
spent + reserved + its worst case fits. Afterwards the reservation becomes what the request did cost. Where that is
not known (no reply came, or its counts cannot be true), it becomes the worst case.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from decimal import Decimal

from aha.client.endpoint import BudgetExceededError, Reply
from aha.client.journal import Journal
from aha.cost import TokenPrice
from aha.cost.prices import NANO_PER_USD
from aha.errors import ConfigError
from aha.types import Usage

MAX_BUDGET_USD = 1_000_000_000


def read_budget(budget_usd: float | None, *, price: TokenPrice | None) -> int | None:
    """The budget in nano-dollars; None without one.

    Raises:
        ConfigError: not an amount, or nothing to hold requests against.
    """
    if budget_usd is None:
        return None
    amount = Decimal(str(budget_usd))
    if not amount.is_finite() or not 0 <= amount <= MAX_BUDGET_USD:
        raise ConfigError(f"budget_usd must be a number from 0 to {MAX_BUDGET_USD:,}, got {budget_usd!r}")
    if price is None:
        raise ConfigError(
            "budget_usd needs the endpoint's price, which is unknown; give price=NAME of the price book (aha cost "
            "prices lists them, e.g. deepseek-r1@2025-01-20) or your own dollars per million tokens with "
            "custom_token_price"
        )
    return int(amount * NANO_PER_USD)


class Account:
    """Reservations and spending of one client. For one event loop: its single thread makes it exact.

    Args:
        price: None prices everything at 0.
        journal: None keeps no books across runs.
        say: takes (kind, text) of something that the user should know, once a kind.
    """

    def __init__(
        self,
        price: TokenPrice | None,
        *,
        budget_nano_usd: int | None,
        journal: Journal | None,
        say: Callable[[str, str], None],
    ) -> None:
        self._price = price
        self._budget = budget_nano_usd
        self._say = say
        self._excess = 0
        """Nano-dollars by which a request has cost more than its worst case (hidden instructions, thinking that is not
        held to max_tokens). Later requests reserve as much more."""
        self._freed = asyncio.Event()
        self.journal = journal
        self.spent_nano_usd = journal.total_nano_usd if journal else 0
        self.reserved_nano_usd = 0

    async def reserve(self, worst: Usage, *, waits: bool) -> Charge:
        """Set the worst case of a request aside.

        Args:
            waits: whether to wait where only the reservations of others stand in the way, since most of them turn out
                cheaper; else it is refused at once.

        Raises:
            BudgetExceededError: it does not fit, or its prompt may be longer than any that the price is of.
        """
        if self._budget is not None and self._is_too_long(worst):
            raise BudgetExceededError(self._length_refusal(worst))
        cost = self._worst_cost(worst) + self._excess
        while self._budget is not None and self.spent_nano_usd + self.reserved_nano_usd + cost > self._budget:
            can_fit = self.reserved_nano_usd > 0 and self.spent_nano_usd + cost <= self._budget
            if not (waits and can_fit):
                raise BudgetExceededError(self._refusal(worst, cost))
            await self._freed.wait()
        self.reserved_nano_usd += cost
        return Charge(self, cost)

    def claim(self, usage: Usage, *, worst_nano_usd: int) -> int:
        """What to enter for counted tokens. More than the worst case is believed, as far as the budget goes."""
        cost = self._cost(usage)
        if self._is_too_long(usage):
            self._say("unpriced", self._length_refusal(usage))
        if cost <= worst_nano_usd:
            return cost
        self._excess += cost - worst_nano_usd
        self._say("dearer", "the endpoint counts more tokens than a request can have; later ones reserve more")
        if self._budget is None:
            return cost
        return max(
            worst_nano_usd, min(cost, self._budget - self.spent_nano_usd - self.reserved_nano_usd + worst_nano_usd)
        )

    def free(self, reserved_nano_usd: int, *, spent_nano_usd: int) -> None:
        """Turn a reservation into spending and wake those who wait for room."""
        assert spent_nano_usd >= 0, "what is spent never becomes less"
        self.reserved_nano_usd -= reserved_nano_usd
        self.spent_nano_usd += spent_nano_usd
        self._freed.set()
        self._freed = asyncio.Event()

    def _cost(self, usage: Usage) -> int:
        if self._price is None:
            return 0
        write = self._price.pico_usd_per_cache_write_token
        # Endpoints do not count what they wrote to their cache. Where that costs more, all that was not read from it is
        # taken as written: a budget stops early rather than late.
        is_dearer = write is not None and write > self._price.pico_usd_per_input_token
        return self._price.cost_nano_usd(
            usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=usage.cached_tokens,
            cache_write_tokens=usage.prompt_tokens - usage.cached_tokens if is_dearer else 0,
        )

    def _is_too_long(self, usage: Usage) -> bool:
        limit = None if self._price is None else self._price.prompt_tokens_up_to
        return limit is not None and usage.prompt_tokens > limit

    def _length_refusal(self, usage: Usage) -> str:
        assert self._price is not None
        return (
            f"a prompt of up to {usage.prompt_tokens:,} tokens has no price: {self._price.price_id} is of prompts of "
            f"up to {self._price.prompt_tokens_up_to:,}; give the price of long ones by its id, see aha cost prices"
        )

    def _worst_cost(self, worst: Usage) -> int:
        """Also for a price book that charges more for cached tokens than for others."""
        all_cached = Usage(worst.prompt_tokens, worst.completion_tokens, cached_tokens=worst.prompt_tokens)
        return max(self._cost(worst), self._cost(all_cached))

    def _refusal(self, worst: Usage, cost: int) -> str:
        assert self._budget is not None
        left = self._budget - self.spent_nano_usd - self.reserved_nano_usd
        return (
            f"budget_usd={_usd(self._budget)} has {_usd(max(0, left))} left and this request may cost {_usd(cost)} "
            f"(at most {worst.prompt_tokens:,} prompt and {worst.completion_tokens:,} completion tokens); "
            "raise budget_usd or lower max_tokens"
        )


class Charge:
    """One request's reservation. Exactly one of `pay`, `lose` and `release` ends it."""

    def __init__(self, account: Account, worst_nano_usd: int) -> None:
        self.worst_nano_usd = worst_nano_usd
        self._account = account
        self._journal_id: int | None = None
        self._is_sent = False
        self._is_open = True

    def send(self, key: str) -> None:
        """The request goes out now: from here on it counts, also when this process is killed."""
        if self._account.journal:
            self._journal_id = self._account.journal.write_sent(key, worst_nano_usd=self.worst_nano_usd)
        self._is_sent = True

    def cost_of(self, usage: Usage | None) -> int:
        """What to enter: the worst case where the tokens are not known."""
        if usage is None:
            return self.worst_nano_usd
        return self._account.claim(usage, worst_nano_usd=self.worst_nano_usd)

    def pay(self, reply: Reply, *, key: str, is_kept: bool) -> None:
        """The request was answered. With `is_kept`, its reply is on disk when this returns."""
        journal = self._account.journal
        if journal and self._journal_id is not None and is_kept:
            journal.write_reply(self._journal_id, key=key, reply=reply)
        elif journal and self._journal_id is not None:
            journal.write_lost(self._journal_id, cost_nano_usd=reply.cost_nano_usd, why="streamed")
        self._end(reply.cost_nano_usd)

    def lose(self, cost_nano_usd: int, *, why: str) -> None:
        """The request gave nothing; 0 where it cannot have cost anything."""
        self._end(cost_nano_usd)  # first: others may wait for the room, also when the disk is full
        if self._account.journal and self._journal_id is not None:
            self._account.journal.write_lost(self._journal_id, cost_nano_usd=cost_nano_usd, why=why)

    def close(self) -> None:
        """Whatever happened in between: an open charge ends at its worst case if it was sent, else at nothing."""
        if self._is_open:
            self.lose(self.worst_nano_usd if self._is_sent else 0, why="interrupted")

    def _end(self, cost_nano_usd: int) -> None:
        assert self._is_open, "a charge ends once"
        self._is_open = False
        self._account.free(self.worst_nano_usd, spent_nano_usd=cost_nano_usd)


def _usd(nano_usd: int) -> str:
    return f"${Decimal(nano_usd) / NANO_PER_USD:f}"
