"""One writer for many threads: what they ask for while a commit is under way shares the next one (group commit).

A commit with synchronous = FULL waits for the disk, and that is nearly all of what a write costs. So whoever finds
the connection free takes everything that is waiting, does it in one transaction and commits once; the others wake up
to find theirs done. Each job has a savepoint: one that fails takes nobody else's with it.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from aha.cost.ledger.schema import LedgerError, errors_explained, explain
from aha.errors import AhaError

T = TypeVar("T")


class _Ticket(Generic[T]):
    """A job that waits for its turn, and what came of it."""

    def __init__(self, job: Callable[[sqlite3.Connection], T]) -> None:
        self._job = job
        self._value: T
        self.error: BaseException | None = None
        self.is_done = False
        self.woken = threading.Event()
        """Set when it is done, or when its thread is to lead."""

    def attempt(self, connection: sqlite3.Connection) -> None:
        """Do it within the open transaction. An error of its own undoes it alone."""
        connection.execute("SAVEPOINT job")
        try:
            self._value = self._job(connection)
        except Exception as error:  # whatever it is, it is of this job alone
            self.error = error
            if not connection.in_transaction:  # a full disk has undone everybody's
                raise
            connection.execute("ROLLBACK TO job")
        connection.execute("RELEASE job")

    def result(self, location: str) -> T:
        """What the job returned, or its error."""
        if self.error is None:
            return self._value
        if isinstance(self.error, sqlite3.Error) or not isinstance(self.error, Exception):
            raise LedgerError(explain(location, self.error)) from self.error
        raise self.error


class GroupWriter:
    """Does jobs on a connection, each in a transaction that is on the disk when `run` returns.

    At most one thread leads: it commits all that waits, its own job among it, and hands the lead to the first thread
    that has come meanwhile.
    """

    def __init__(self, connection: sqlite3.Connection, *, location: str) -> None:
        self._connection = connection
        self._location = location
        self._using = threading.Lock()
        self._queue = threading.Lock()
        self._waiting: list[_Ticket[object]] = []
        self._has_leader = False
        self.num_commits = 0

    def run(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """Do a job and return what it returns, once it is committed.

        Raises:
            LedgerError: SQLite refused it, the disk is full, or the file is locked for too long. Nothing is written.
        """
        ticket: _Ticket[T] = _Ticket(job)
        with self._queue:
            self._waiting.append(ticket)  # type: ignore[arg-type]
            leads, self._has_leader = not self._has_leader, True
        if not leads:
            self._wait(ticket)
        if not ticket.is_done:
            self._lead(ticket)
        return ticket.result(self._location)

    def read(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """A job that only reads, on the same connection."""
        with self._using, errors_explained(self._location):
            return job(self._connection)

    def close(self) -> None:
        with self._using:
            self._connection.close()

    def _wait(self, ticket: _Ticket[T]) -> None:
        """Until the ticket is done, or its thread is to lead."""
        try:
            ticket.woken.wait()
        except BaseException:  # Ctrl-C: what waits is withdrawn, and a lead that has just come is passed on
            with self._queue:
                is_to_lead = ticket.woken.is_set() and not ticket.is_done
                self._waiting = [other for other in self._waiting if other is not ticket]
            if is_to_lead:
                self._pass_on()
            raise

    def _lead(self, ticket: _Ticket[T]) -> None:
        try:
            with self._using:
                self._commit_waiting()
        finally:
            with self._queue:  # Ctrl-C before its turn: a thread that has gone must not be handed the lead
                self._waiting = [other for other in self._waiting if other is not ticket]
            self._pass_on()

    def _pass_on(self) -> None:
        with self._queue:
            self._has_leader = bool(self._waiting)
            if self._waiting:
                self._waiting[0].woken.set()

    def _commit_waiting(self) -> None:
        with self._queue:
            group, self._waiting = self._waiting, []
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            for ticket in group:
                ticket.attempt(self._connection)
            self._connection.execute("COMMIT")
            self.num_commits += 1
        except BaseException as error:
            self._undo()
            for ticket in group:
                ticket.error = error
            if not isinstance(error, (sqlite3.Error, AhaError)):
                raise
        finally:
            for ticket in group:
                ticket.is_done = True
                ticket.woken.set()

    def _undo(self) -> None:
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error:
            return  # closed, or lost: then there is nothing to undo, and the first error is the one to show
