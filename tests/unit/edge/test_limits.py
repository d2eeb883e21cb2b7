"""Keys of addresses, and the buckets of one process: exact, and never more memory than they say."""

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from limits import RateLimitItemPerMinute, RateLimitItemPerSecond

from edge_api import limits
from edge_api.errors import RateLimitedError
from edge_api.limits import Bucket, LocalWindows, RateLimits, address_key

MAPPED = int(IPv6Address("::ffff:0:0"))

ipv4 = st.integers(0, 2**32 - 1).map(IPv4Address)
# The upper half of an address; 0 is left out, because IPv4 is mapped into it.
households = st.integers(1, 2**64 - 1)
interface_ids = st.integers(0, 2**64 - 1)


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@given(households, st.lists(interface_ids, min_size=2))
def test_all_addresses_of_a_household_have_one_key(household: int, hosts: list[int]) -> None:
    addresses = [IPv6Address(household << 64 | host) for host in hosts]

    (key,) = {address_key(str(address)) for address in addresses}

    assert IPv6Network(key).prefixlen == 64
    assert all(address in IPv6Network(key) for address in addresses)


@given(st.lists(households, min_size=2, unique=True), interface_ids)
def test_households_have_different_keys(different: list[int], host: int) -> None:
    keys = {address_key(str(IPv6Address(household << 64 | host))) for household in different}

    assert len(keys) == len(different)


@given(ipv4)
def test_an_ipv4_address_is_its_own_key_also_at_a_socket_for_both(address: IPv4Address) -> None:
    mapped = IPv6Address(MAPPED | int(address))

    assert address_key(str(address)) == address_key(str(mapped)) == address_key(mapped.exploded) == str(address)


@given(st.none() | st.text())
def test_only_what_is_no_address_is_unknown(host: str | None) -> None:
    try:
        ip_address(host or "")
    except ValueError:
        assert address_key(host) == "unknown"
    else:
        assert address_key(host) != "unknown"


@pytest.mark.parametrize(
    ("host", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:0:1:2:3:4:5", "2001:db8:0:1::/64"),
        ("2001:DB8:0:1::", "2001:db8:0:1::/64"),
        ("::1", "::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("192.0.2.1:443", "unknown"),
        ("testclient", "unknown"),
        ("", "unknown"),
        (None, "unknown"),
    ],
)
def test_keys_of_addresses(host: str | None, key: str) -> None:
    assert address_key(host) == key


@given(amount=st.integers(1, 4), pauses_s=st.lists(st.integers(0, 30), max_size=60))
def test_no_sixty_seconds_hold_more_than_the_rate_and_nobody_waits_longer_than_told(
    amount: int, pauses_s: list[int]
) -> None:
    clock = Clock()
    windows = LocalWindows(RateLimitItemPerMinute(amount), clock)
    passed: list[float] = []

    for pause_s in pauses_s:
        clock.now_s += pause_s
        if wait_s := windows.hit("key"):
            clock.now_s += wait_s
            assert windows.hit("key") == 0, "the wait was too short"
            assert clock.now_s == passed[-amount] + 60, "the wait was too long"
        passed.append(clock.now_s)

    assert all(later - earlier >= 60 for earlier, later in zip(passed, passed[amount:], strict=False))


async def test_a_burst_at_the_end_of_a_minute_counts_in_the_next(clock: Clock) -> None:
    buckets = RateLimits({"user": "3/minute"}, clock=clock)
    clock.now_s = 1_019.9
    for _ in range(3):
        await buckets.hit("user", "anna")

    clock.now_s = 1_020.1
    with pytest.raises(RateLimitedError) as refused:
        await buckets.hit("user", "anna")

    assert refused.value.retry_after_s == pytest.approx(59.8)


def test_a_wait_is_never_zero_however_clocks_are_rounded(clock: Clock) -> None:
    windows = LocalWindows(RateLimitItemPerSecond(1), clock)
    windows.hit("key")

    clock.now_s += 1 - 1e-9

    assert windows.hit("key") == limits.SOONEST_S


def test_a_crowd_is_forgotten_when_its_window_is_over(clock: Clock) -> None:
    windows = LocalWindows(RateLimitItemPerMinute(60), clock)
    for number in range(100_000):
        windows.hit(f"visitor {number}")
    assert len(windows) == 100_000

    clock.now_s += 60
    for _ in range(100_000 // limits.FORGET_AT_ONCE):
        windows.hit("regular")

    assert len(windows) == 1


def test_a_key_in_use_stays_counted_while_others_are_forgotten(clock: Clock) -> None:
    windows = LocalWindows(RateLimitItemPerMinute(2), clock)
    windows.hit("regular")
    windows.hit("visitor")
    clock.now_s += 59
    windows.hit("regular")

    clock.now_s += 0.5

    assert windows.hit("regular") == pytest.approx(0.5)


def test_keys_beyond_the_bound_push_out_the_quietest(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_KEYS", 10)
    windows = LocalWindows(RateLimitItemPerMinute(1), clock)

    for number in range(1_000):
        windows.hit(f"visitor {number}")
        assert len(windows) <= 10

    assert windows.hit("visitor 999") > 0


def test_a_key_is_no_larger_than_its_rate(clock: Clock) -> None:
    windows = LocalWindows(RateLimitItemPerSecond(3), clock)

    for _ in range(1_000):
        windows.hit("key")
        clock.now_s += 0.25

    assert len(windows._times["key"]) == 3


@pytest.mark.parametrize("text", ["", "never", "60", "0/minute", "10/second;60/minute", "OFF"])
def test_what_is_no_rate_is_refused_at_once(text: str) -> None:
    with pytest.raises(ValueError, match="rate"):
        RateLimits({"user": text})


@pytest.mark.parametrize("bucket", ["user", "address", "login", "guest"])
async def test_a_refusal_says_what_there_was_too_much_of_and_not_who(bucket: Bucket) -> None:
    buckets = RateLimits({bucket: "1/minute"})
    await buckets.hit(bucket, "anna")

    with pytest.raises(RateLimitedError) as refused:
        await buckets.hit(bucket, "anna")

    assert str(refused.value) == limits.MESSAGES[bucket]


@pytest.mark.parametrize(
    "url", ["redis://127.0.0.1", "redis://:secret@127.0.0.1:6379/1", "rediss://127.0.0.1:6380/0", "unix:///tmp/r.sock"]
)
async def test_every_kind_of_address_the_settings_take_is_taken(url: str) -> None:
    await RateLimits({"user": "1/minute"}, redis_url=url).close()
