"""What tells turns apart: their ids, whose they are, and what was asked under a request id."""

import hashlib
import json
import uuid
from dataclasses import replace
from typing import NamedTuple

from agent_service.types import Caller, RequestId, TurnId, TurnRequest


class TurnKey(NamedTuple):
    """Names a turn. The same id of another subject or tenant is another turn."""

    tenant: str
    subject: str
    turn_id: TurnId

    @property
    def tag(self) -> str:
        """The turn's name among replicas: its id, and a digest of whose it is. At most 161 characters."""
        return f"{self.turn_id}:{_digest(self.tenant, self.subject).hex()}"


def identified(request: TurnRequest) -> tuple[TurnKey, TurnRequest]:
    """The key of a request's turn, and the request, which gets an id where it had none.

    The turn's id is the request's where that is a UUID, so that a caller can name the turn before it exists; else it
    is made from the caller and the request's id, so that every replica comes to the same.
    """
    if not request.request_id:
        request = replace(request, request_id=RequestId(str(uuid.uuid4())))
    caller, given = request.caller, request.request_id
    turn_id = given if _is_uuid(given) else str(uuid.UUID(bytes=_digest(caller.tenant, caller.subject, given)))
    return key_of(caller, TurnId(turn_id)), request


def key_of(caller: Caller, turn_id: TurnId) -> TurnKey:
    """The key of a caller's turn."""
    return TurnKey(caller.tenant, caller.subject, turn_id)


def fingerprint(request: TurnRequest) -> str:
    """Tells requests under one id apart: a digest of all that decides the answer, the caller's groups included."""
    asked = (request.message, request.agent, request.history, request.state, request.max_output_tokens)
    return hashlib.sha256(repr((asked, request.caller.groups)).encode("utf-8", "surrogatepass")).hexdigest()


def _is_uuid(given: str) -> bool:
    """Whether a text is a UUID as such are usually written: its other spellings would be other turns."""
    try:
        return str(uuid.UUID(given)) == given
    except ValueError:
        return False


def _digest(*parts: str) -> bytes:
    # As JSON, so that ("ab", "c") and ("a", "bc") are not the same.
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).digest()
