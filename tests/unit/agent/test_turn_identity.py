"""What tells turns apart: ids made of requests and callers, keys, tags, fingerprints."""

import uuid
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_service.turns.identity import TurnKey, fingerprint, identified, key_of
from agent_service.types import Caller, RequestId, TurnId
from tests.support.answerers import CALLER, REQUEST

UUID = "0b0e6c1e-6f2a-4a34-9d6f-3a53f5b7a111"
REQUEST_IDS = st.text(alphabet="ABCabc012._-", min_size=1, max_size=128)


def turn_of(request_id: str, caller: Caller = CALLER) -> str:
    return identified(replace(REQUEST, request_id=RequestId(request_id), caller=caller))[0].turn_id


def test_a_request_id_that_is_a_uuid_is_the_turns_id() -> None:
    assert turn_of(UUID) == UUID


@pytest.mark.parametrize("spelling", [UUID.upper(), UUID.replace("-", ""), f"{UUID}-", "r1"])
def test_any_other_request_id_makes_a_uuid(spelling: str) -> None:
    made = turn_of(spelling)

    assert str(uuid.UUID(made)) == made != UUID


@given(request_id=REQUEST_IDS)
def test_the_same_request_names_the_same_turn_on_every_replica(request_id: str) -> None:
    assert turn_of(request_id) == turn_of(request_id)


@given(one=REQUEST_IDS, other=REQUEST_IDS)
def test_different_requests_name_different_turns(one: str, other: str) -> None:
    assert (turn_of(one) == turn_of(other)) == (one == other)


def test_a_request_without_an_id_gets_one_that_is_the_turns_id() -> None:
    first, second = (identified(replace(REQUEST, request_id=RequestId(""))) for _ in range(2))

    assert str(first[0].turn_id) == str(first[1].request_id)
    assert str(uuid.UUID(first[0].turn_id)) == first[0].turn_id
    assert first[0].turn_id != second[0].turn_id


@pytest.mark.parametrize("other", [Caller("bob", "acme"), Caller("ada", "globex"), Caller("a", "daacme")])
def test_the_same_id_of_somebody_else_is_another_turn(other: Caller) -> None:
    mine, theirs = key_of(CALLER, TurnId(UUID)), key_of(other, TurnId(UUID))

    assert mine != theirs
    assert mine.tag != theirs.tag
    assert turn_of("r1") != turn_of("r1", other)


def test_groups_do_not_make_another_turn_but_another_request() -> None:
    grouped = replace(REQUEST, caller=replace(CALLER, groups=("staff",)))

    assert identified(grouped)[0] == identified(REQUEST)[0]
    assert fingerprint(grouped) != fingerprint(REQUEST)


def test_a_tag_names_nobody_and_is_bounded() -> None:
    tag = TurnKey("acme", "ada", TurnId("x" * 128)).tag

    assert "ada" not in tag
    assert "acme" not in tag
    assert len(tag) == 161


def test_any_text_can_be_fingerprinted() -> None:
    assert fingerprint(replace(REQUEST, message="\ud800")) != fingerprint(REQUEST)
