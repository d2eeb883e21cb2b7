"""TLS between the edge and the agent service: what is let through, and what a person reads where a setting is wrong."""

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from pydantic import SecretStr

from edge_api.agent_client.tls import read_tls
from edge_api.errors import StartupError
from edge_api.settings import Settings
from edge_api.wiring import read_secrets
from tests.integration.edge.conftest import SECRET, StartEdge
from tests.support.certificates import HERE, Authority, make_authority, make_certificate
from tests.support.scripted_agent import ScriptedAgent
from tests.support.tokens import key_pair

QUESTION = {"message": "What does the Enterprise plan cost?"}
SIGNING_KEY = SecretStr(key_pair()[0])
ENCRYPTED = ed25519.Ed25519PrivateKey.generate().private_bytes(
    Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
)


@dataclass
class Secured:
    """An agent service with TLS, and the files that the edge's settings name."""

    agent: ScriptedAgent
    authority: Authority
    clients: Authority
    folder: Path

    async def restart(self, names: tuple[str, ...] = HERE, *, mutual: bool = False) -> None:
        """Let the agent show a certificate with these names; `mutual`: and want one of the authority for clients."""
        own = make_certificate(self.authority, names)
        await self.agent.stop()
        self.agent.credentials = grpc.ssl_server_credentials(
            [(own.key, own.pem)], self.clients.pem if mutual else None, require_client_auth=mutual
        )
        await self.agent.start()

    def trusting(self, authority: Authority | None = None) -> dict[str, Any]:
        ca = self.folder / "ca.pem"
        ca.write_bytes((authority or self.authority).pem)
        return {"agent_tls_ca": ca}

    def showing(self, authority: Authority) -> dict[str, Any]:
        cert, key = make_certificate(authority, ("edge.internal",)).write(self.folder, "edge")
        return {"agent_tls_cert": cert, "agent_tls_key": key}


@pytest.fixture
async def secured(agent: ScriptedAgent, tmp_path: Path) -> Secured:
    one = Secured(agent, make_authority(), make_authority(), tmp_path)
    await one.restart()
    return one


async def answers(http: httpx.AsyncClient) -> bool:
    """Whether a question is answered; else that it is a 503, and that /readyz says why."""
    reply = await http.post("/chat", json=QUESTION)
    # What was seen is kept for a moment.
    async with asyncio.timeout(10):
        while (ready := await http.get("/readyz")).status_code != reply.status_code:
            pass
    if reply.status_code == 200:
        assert "event: complete\n" in reply.text
        return True
    assert reply.status_code == 503
    assert {ready.json()["checks"][part] for part in ("agent", "knowledge")} == {"unreachable"}
    return False


async def test_a_question_is_answered_over_tls(secured: Secured, start_edge: StartEdge) -> None:
    async with start_edge(**secured.trusting()) as edge:
        assert await answers(edge.http)


async def test_in_clear_or_with_another_authority_the_agent_is_unreachable(
    secured: Secured, start_edge: StartEdge
) -> None:
    async with start_edge() as edge:
        assert not await answers(edge.http)
    async with start_edge(**secured.trusting(make_authority())) as edge:
        assert not await answers(edge.http)
    assert secured.agent.calls == []


async def test_tls_does_not_fall_back_to_an_agent_in_clear(secured: Secured, start_edge: StartEdge) -> None:
    await secured.agent.stop()
    secured.agent.credentials = None
    await secured.agent.start()

    async with start_edge(**secured.trusting()) as edge:
        assert not await answers(edge.http)


async def test_an_agent_that_wants_certificates_answers_who_has_one(secured: Secured, start_edge: StartEdge) -> None:
    await secured.restart(mutual=True)

    async with start_edge(**secured.trusting()) as edge:
        assert not await answers(edge.http)
    async with start_edge(**secured.trusting(), **secured.showing(secured.authority)) as edge:
        assert not await answers(edge.http)
    async with start_edge(**secured.trusting(), **secured.showing(secured.clients)) as edge:
        assert await answers(edge.http)


async def test_the_name_in_the_certificate_must_be_the_one_asked_for(secured: Secured, start_edge: StartEdge) -> None:
    await secured.restart(names=("agent.internal",))

    async with start_edge(**secured.trusting()) as edge:
        assert not await answers(edge.http)
    async with start_edge(**secured.trusting(), agent_tls_name="other.internal") as edge:
        assert not await answers(edge.http)
    async with start_edge(**secured.trusting(), agent_tls_name="agent.internal") as edge:
        assert await answers(edge.http)


async def test_several_agents_are_told_by_the_name_that_all_have(secured: Secured, start_edge: StartEdge) -> None:
    await secured.restart(names=("agent.internal",))
    second = ScriptedAgent()
    second.credentials = secured.agent.credentials
    await second.start()
    try:
        async with start_edge(
            target=f"ipv4:127.0.0.1:{secured.agent.port},127.0.0.1:{second.port}",
            **secured.trusting(),
            agent_tls_name="agent.internal",
        ) as edge:
            for _ in range(8):
                assert await answers(edge.http)
    finally:
        await second.stop()

    assert secured.agent.calls
    assert second.calls


async def test_an_agent_that_comes_back_is_found_again_over_tls(secured: Secured, start_edge: StartEdge) -> None:
    async with start_edge(**secured.trusting()) as edge:
        assert await answers(edge.http)
        await secured.restart()
        async with asyncio.timeout(20):
            while (await edge.http.post("/chat", json=QUESTION)).status_code != 200:
                pass
        assert await answers(edge.http)


# Settings that cannot be used


@pytest.mark.parametrize("variable", ["CA", "CERT", "KEY"])
@pytest.mark.parametrize("content", [None, b"", b"planted", b"\xff\x00"])
def test_a_file_that_is_missing_or_something_else_is_told_by_its_variable(
    tmp_path: Path, variable: str, content: bytes | None
) -> None:
    authority = make_authority()
    cert, key = make_certificate(authority).write(tmp_path, "edge")
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    wrong = tmp_path / "wrong.pem"
    if content is not None:
        wrong.write_bytes(content)
    files = {"CA": tmp_path / "ca.pem", "CERT": cert, "KEY": key} | {variable: wrong}

    with pytest.raises(StartupError) as refused:
        read_tls(files["CA"], files["CERT"], files["KEY"], None)

    assert str(refused.value).startswith(f"EDGE_AGENT_TLS_{variable}: ")
    assert "planted" not in str(refused.value)


@pytest.mark.parametrize("case", ["of another certificate", "encrypted", "of another kind", "the key itself"])
def test_a_key_that_is_of_no_use_is_told(tmp_path: Path, case: str) -> None:
    authority = make_authority()
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    cert, key = make_certificate(authority).write(tmp_path, "edge")
    says = ""
    match case:
        case "of another certificate":
            key.write_bytes(make_certificate(authority).key)
            says = "is not the key of"
        case "encrypted":
            key.write_bytes(ENCRYPTED)
            says = "is encrypted"
        case "of another kind":
            cert, key = make_certificate(authority, key=ed25519.Ed25519PrivateKey.generate()).write(tmp_path, "edge")
            says = "must be an RSA key"
        case _:
            key = Path(key.read_text() + "\0")
            says = "is not the path of a file"

    with pytest.raises(StartupError, match=rf"^EDGE_AGENT_TLS_KEY: {says}") as refused:
        read_tls(tmp_path / "ca.pem", cert, key, None)
    assert "BEGIN" not in str(refused.value)


@pytest.mark.parametrize(
    ("target", "tls", "warned"),
    [
        ("127.0.0.1:50051", False, False),
        ("agent.internal:50051", False, True),
        ("agent.internal:50051", True, False),
        ("ipv4:127.0.0.1:50051,10.0.0.2:50051", False, True),
    ],
)
def test_an_edge_whose_words_travel_in_clear_warns_once(
    tmp_path: Path, target: str, tls: bool, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "ca.pem").write_bytes(make_authority().pem)
    settings = Settings(
        agent_target=target,
        agent_signing_key=SIGNING_KEY,
        jwt_secret=SecretStr(SECRET),
        agent_tls_ca=tmp_path / "ca.pem" if tls else None,
    )

    with caplog.at_level(logging.WARNING):
        secrets = read_secrets(settings)

    assert (secrets.agent_tls is not None) == tls
    assert ["EDGE_AGENT_TLS_CA" in record.getMessage() for record in caplog.records] == [True] * warned
