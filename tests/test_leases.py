"""Leases of energy domains, on a clock of their own."""

import pytest

from leanwatt.executor._leases import LEASE_SECONDS, WAITING_SECONDS, Leases


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def leases(clock: Clock) -> Leases:
    return Leases(clock)


def test_shares_of_a_domain_never_exceed_the_whole(leases: Leases) -> None:
    assert [leases.take("host", f"job {i}", 1 / 3) for i in range(4)] == [True, True, True, False]
    leases.give("job 1")
    assert leases.take("host", "job 3", 1 / 3)


def test_who_wants_the_whole_waits_for_all_others_and_they_for_it(leases: Leases) -> None:
    assert leases.take("host", "grade", 0.5)
    assert not leases.take("host", "weigh", 1.0)
    leases.give("grade")
    assert leases.take("host", "weigh", 1.0)
    assert not leases.take("host", "another", 0.5)


def test_domains_know_nothing_of_each_other(leases: Leases) -> None:
    assert leases.take("one", "weigh", 1.0)
    assert leases.take("two", "weigh too", 1.0)
    assert leases.holders("one") == ["weigh"]


def test_nobody_is_overtaken(leases: Leases) -> None:
    leases.take("host", "first", 0.5)
    assert not leases.take("host", "whole", 1.0)
    assert not leases.take("host", "late", 0.5), "there would be room, but the whole was asked for before"
    leases.give("first")
    assert leases.take("host", "whole", 1.0)


def test_who_stops_asking_is_waited_for_no_more(leases: Leases, clock: Clock) -> None:
    leases.take("host", "first", 0.5)
    leases.take("host", "whole", 1.0)
    clock.now += WAITING_SECONDS + 1
    assert leases.take("host", "late", 0.5)


def test_who_withdraws_is_waited_for_no_more(leases: Leases) -> None:
    leases.take("host", "first", 0.5)
    leases.take("host", "whole", 1.0)
    leases.give("whole")
    assert leases.take("host", "late", 0.5)


def test_a_holder_that_falls_silent_loses_its_share_and_is_told(leases: Leases, clock: Clock) -> None:
    leases.take("host", "silent", 1.0)
    clock.now += LEASE_SECONDS + 1
    assert leases.take("host", "next", 1.0)
    assert not leases.keep("host", "silent", 1.0)


def test_a_holder_that_speaks_keeps_its_share(leases: Leases, clock: Clock) -> None:
    leases.take("host", "weigh", 1.0)
    for _ in range(5):
        clock.now += LEASE_SECONDS - 1
        assert leases.keep("host", "weigh", 1.0)
    assert not leases.take("host", "next", 0.1)


def test_after_a_restart_those_who_hold_a_share_are_heard_before_anybody_gets_one(clock: Clock) -> None:
    leases = Leases(clock, forgot=True)
    assert not leases.take("host", "next", 1.0)
    assert leases.keep("host", "weigh", 1.0), "it held the lease before the restart"
    clock.now += LEASE_SECONDS - 1
    assert leases.keep("host", "weigh", 1.0)
    clock.now += 2
    assert not leases.take("host", "next", 1.0)
    leases.give("weigh")
    assert leases.take("host", "next", 1.0)
    assert not leases.keep("host", "too late", 1.0)


def test_to_ask_again_for_what_one_has_changes_nothing(leases: Leases) -> None:
    assert leases.take("host", "job", 0.5)
    assert leases.take("host", "job", 0.5)
    assert leases.take("host", "other", 0.5)


def test_who_was_ended_is_told_and_gets_nothing_again(leases: Leases) -> None:
    assert leases.take("a", "one", 0.5)
    assert not leases.take("a", "two", 1.0)
    assert not leases.take("a", "three", 0.5)
    for holder in ("one", "two"):
        leases.end(holder)
    assert leases.take("a", "three", 0.5), "two waits no more"
    assert leases.take("a", "two", 1.0) is None
    assert not leases.keep("a", "one", 0.5)
    assert leases.holders("a") == ["one", "three"], "its job may still run"
    leases.give("one")
    assert leases.take("a", "one", 0.5) is None
