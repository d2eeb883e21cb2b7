"""TLS on the agent's port: who gets in, what a person reads where a file is wrong, and how a certificate is renewed."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from answerdesk.v1 import agent_service_pb2 as pb
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from agent_service import __main__ as main_module
from agent_service import commands
from agent_service.errors import StartupError
from agent_service.rpc.tls import ServerCertificates, client_tls
from agent_service.settings import Settings
from tests.support.certificates import HERE, Authority, make_authority, make_certificate
from tests.support.processes import free_port
from tests.support.served import WAIT_S, Client, failure_of, on_one_loop, serving
from tests.support.shelf import Shelf
from tests.support.tokens import internal_token, key_pair

PLANS = "# Plans\n\nThe Enterprise plan costs EUR 1,200 a month.\n"
QUESTION = "What does the Enterprise plan cost?"
PRIVATE, PUBLIC = key_pair()
PLANTED = "planted-0123456789"


@dataclass
class Machine:
    """A folder with the files that settings name."""

    folder: Path
    authority: Authority

    def pair(self, name: str = "agent", names: tuple[str, ...] = HERE, **made: Any) -> dict[str, Any]:
        """A certificate of the authority, as settings."""
        cert, key = make_certificate(self.authority, names, **made).write(self.folder, name)
        return {"tls_cert": cert, "tls_key": key}

    def file(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path

    @property
    def ca(self) -> Path:
        return self.file("ca.pem", self.authority.pem)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path, make_authority())


@asynccontextmanager
async def calling(port: int, credentials: grpc.ChannelCredentials | None) -> AsyncIterator[Client]:
    client = Client(port, credentials)
    try:
        yield client
    finally:
        await client.channel.close()


def trusting(authority: Authority, shown: Authority | None = None) -> grpc.ChannelCredentials:
    """A client's credentials; `shown`: whose certificate it shows."""
    own = make_certificate(shown, ("edge.internal",)) if shown else None
    return grpc.ssl_channel_credentials(authority.pem, own.key if own else None, own.pem if own else None)


async def shelf() -> Shelf:
    filled = Shelf()
    await filled.put("plans.md", PLANS, collection="billing")
    return filled


async def answer(client: Client) -> str:
    """What a caller without a token is told."""
    return "".join(event.token.content for event in await client.chat(QUESTION))


async def refused_at(port: int, credentials: grpc.ChannelCredentials | None) -> bool:
    """Whether a client gets no further than the connection."""
    async with calling(port, credentials) as client:
        failure = await failure_of(client.health())
    return failure.code is grpc.StatusCode.UNAVAILABLE and not failure.kinds


# Who gets in


@on_one_loop
async def test_a_chat_over_tls_is_of_the_local_caller_on_loopback(machine: Machine) -> None:
    async with (
        serving(await shelf(), **machine.pair()) as served,
        calling(served.client.port, trusting(machine.authority)) as client,
    ):
        assert "1,200" in await answer(client)
        assert await client.health() == "SERVING"


@on_one_loop
async def test_who_speaks_in_clear_or_trusts_another_authority_gets_no_connection(machine: Machine) -> None:
    async with serving(Shelf(), **machine.pair()) as served:
        assert await refused_at(served.client.port, None)
        assert await refused_at(served.client.port, trusting(make_authority()))


@on_one_loop
async def test_a_certificate_of_another_name_is_not_taken(machine: Machine) -> None:
    async with serving(Shelf(), **machine.pair(names=("agent.internal",))) as served:
        assert await refused_at(served.client.port, trusting(machine.authority))


@on_one_loop
async def test_with_an_authority_for_clients_only_theirs_get_in(machine: Machine) -> None:
    clients = make_authority()
    given = machine.pair() | {"tls_client_ca": machine.file("clients.pem", clients.pem)}
    async with serving(await shelf(), **given) as served:
        port = served.client.port
        assert await refused_at(port, trusting(machine.authority))
        assert await refused_at(port, trusting(machine.authority, shown=machine.authority))

        async with calling(port, trusting(machine.authority, shown=clients)) as client:
            assert "1,200" in await answer(client)


@on_one_loop
async def test_tls_and_a_clients_certificate_are_no_token(machine: Machine) -> None:
    given = machine.pair() | {"tls_client_ca": machine.ca, "verify_key": PUBLIC}
    credentials = trusting(machine.authority, shown=machine.authority)
    async with serving(Shelf(), **given) as served, calling(served.client.port, credentials) as client:
        for token, code in ((internal_token(PRIVATE, subject="ada"), None), ("x.y.z", "UNAUTHENTICATED")):
            call = client.agent.ListAgents(
                pb.ListAgentsRequest(), metadata=(("authorization", f"Bearer {token}"),), timeout=WAIT_S
            )
            if code is None:
                assert (await call).agents
            else:
                assert (await failure_of(call)).reason == code


# Renewal


@on_one_loop
async def test_a_renewed_certificate_is_taken_without_a_restart(machine: Machine) -> None:
    async with serving(Shelf(), **machine.pair()) as served:
        port, before = served.client.port, machine.authority
        async with calling(port, trusting(before)) as open_one:
            assert await open_one.health() == "SERVING"
            machine.authority = make_authority()
            machine.pair()

            assert await open_one.health() == "SERVING", "who is connected stays so"
        assert await refused_at(port, trusting(before))
        async with calling(port, trusting(machine.authority)) as client:
            assert await client.health() == "SERVING"


def test_half_of_a_renewal_is_not_used(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    # Other tests of this process may have set another level.
    caplog.set_level(logging.WARNING)
    pair = machine.pair()
    certificates = ServerCertificates(pair["tls_cert"], pair["tls_key"])
    assert certificates.renewed() is None

    new = make_certificate(machine.authority)
    pair["tls_cert"].write_bytes(new.pem)
    assert certificates.renewed() is None
    assert "AGENT_TLS_KEY: is not the key of" in caplog.text
    caplog.clear()
    assert certificates.renewed() is None
    assert caplog.text == "", "said once"

    pair["tls_key"].write_bytes(new.key)
    assert certificates.renewed() is not None
    assert certificates.renewed() is None


def test_files_that_are_taken_away_leave_the_certificate_as_it_was(machine: Machine) -> None:
    pair = machine.pair()
    certificates = ServerCertificates(pair["tls_cert"], pair["tls_key"])

    pair["tls_cert"].unlink()

    assert certificates.renewed() is None


# Settings that cannot be used


def read(given: dict[str, Any]) -> str:
    with pytest.raises(StartupError) as refused:
        ServerCertificates(given["tls_cert"], given["tls_key"], given.get("tls_client_ca"))
    return str(refused.value)


@pytest.mark.parametrize("field", ["tls_cert", "tls_key", "tls_client_ca"])
@pytest.mark.parametrize("content", [None, b"", b"planted", b"-----BEGIN CERTIFICATE-----\nplanted\n", b"\xff\x00"])
def test_a_file_that_is_missing_or_something_else_is_told_by_its_variable(
    machine: Machine, field: str, content: bytes | None
) -> None:
    wrong = machine.folder / "wrong.pem"
    if content is not None:
        wrong.write_bytes(content)

    said = read(machine.pair() | {field: wrong})

    assert said.startswith(f"AGENT_{field.upper()}: ")
    assert "planted" not in said


def test_a_key_in_place_of_its_path_is_not_repeated(machine: Machine) -> None:
    for text in (f"-----BEGIN PRIVATE KEY-----\n{PLANTED}", PLANTED * 500, f"{PLANTED}\0"):
        said = read(machine.pair() | {"tls_key": Path(text)})

        assert said.startswith("AGENT_TLS_KEY: is not the path of a file")
        assert PLANTED not in said


def test_a_key_of_another_certificate_is_refused(machine: Machine) -> None:
    said = read(machine.pair() | {"tls_key": machine.pair("other")["tls_key"]})

    assert said == "AGENT_TLS_KEY: is not the key of the first certificate of AGENT_TLS_CERT"


ENCRYPTED = ec.generate_private_key(ec.SECP256R1())


def test_a_key_with_a_passphrase_is_refused(machine: Machine) -> None:
    pem = ENCRYPTED.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))

    assert "AGENT_TLS_KEY: is encrypted" in read(machine.pair(key=ENCRYPTED) | {"tls_key": machine.file("e.key", pem)})


@pytest.mark.parametrize(
    "key", [ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP521R1())], ids=["Ed25519", "P-521"]
)
def test_a_kind_of_key_that_grpc_cannot_use_is_refused(machine: Machine, key: Any) -> None:
    """Else the service would start, and every handshake fail."""
    assert "AGENT_TLS_KEY: must be an RSA key, or an EC key of P-256 or P-384" in read(machine.pair(key=key))


@on_one_loop
@pytest.mark.parametrize(
    "key", [rsa.generate_private_key(65_537, 2_048), ec.generate_private_key(ec.SECP384R1())], ids=["RSA", "P-384"]
)
async def test_the_other_kinds_of_keys_work(machine: Machine, key: Any) -> None:
    async with (
        serving(Shelf(), **machine.pair(key=key)) as served,
        calling(served.client.port, trusting(machine.authority)) as client,
    ):
        assert await client.health() == "SERVING"


def test_main_exits_with_2_and_the_variable(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in os.environ:
        if name.startswith(("AGENT_", "OPENAI_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AGENT_DATA_DIR", str(machine.folder / "data"))
    monkeypatch.setenv("AGENT_TLS_CERT", str(machine.folder / "nowhere.pem"))

    assert main_module.main(["serve"]) == 2
    assert "agent_service: AGENT_TLS_KEY: must be set" in capsys.readouterr().err

    monkeypatch.setenv("AGENT_TLS_KEY", str(machine.folder / "nowhere.key"))
    assert main_module.main(["serve"]) == 2
    assert "agent_service: AGENT_TLS_CERT: is not the path of a file" in capsys.readouterr().err


# The command line as a client


@pytest.fixture
def documents(tmp_path: Path) -> commands.IngestOptions:
    (tmp_path / "docs" / "billing").mkdir(parents=True)
    (tmp_path / "docs" / "billing" / "plans.md").write_text(PLANS)
    return commands.IngestOptions([tmp_path / "docs"])


def settings(machine: Machine, **given: Any) -> Settings:
    return Settings(data_dir=machine.folder / "data", listen=f"127.0.0.1:{free_port()}", offline_delay_s=0, **given)


@on_one_loop
@pytest.mark.parametrize("names", [("agent.internal",), ("*.internal",), ("10.0.0.1",), ()], ids=str)
async def test_ingest_and_search_find_the_own_agent_by_its_certificate_alone(
    machine: Machine, documents: commands.IngestOptions, names: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever name that has: the address called is this machine's."""
    pair = machine.pair(names=names)
    own = settings(machine, **pair)
    async with serving(Shelf(), listen=own.listen, **pair):
        assert await commands.ingest(own, documents, None) == 0
        assert await commands.search(own, QUESTION, 1, None) == 0

    assert "plans.md" in capsys.readouterr().out
    assert not own.data_dir.exists(), "the store was not opened beside the agent"


@on_one_loop
async def test_ingest_shows_its_certificate_to_an_agent_that_wants_one(
    machine: Machine, documents: commands.IngestOptions
) -> None:
    given = machine.pair() | {"tls_client_ca": machine.ca}
    async with serving(Shelf(), **given) as served:
        client = settings(machine, tls_ca=machine.ca, **machine.pair("operator", ("operator",)))
        assert await commands.ingest(client, documents, served.client.target) == 0

        nobody = settings(machine, tls_ca=machine.ca)
        with pytest.raises(StartupError, match="no agent service answers there with TLS"):
            await commands.ingest(nobody, documents, served.client.target)


@on_one_loop
async def test_a_target_is_trusted_by_its_authority_and_name(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving(await shelf(), **machine.pair()) as served:
        target = served.client.target
        assert await commands.search(settings(machine, tls_ca=machine.ca), QUESTION, 1, target) == 0
        assert "plans.md" in capsys.readouterr().out

        other = settings(machine, tls_ca=machine.file("other.pem", make_authority().pem))
        with pytest.raises(StartupError, match="AGENT_TLS_CA"):
            await commands.search(other, QUESTION, 1, target)
        with pytest.raises(StartupError, match="without TLS"):
            await commands.search(settings(machine), QUESTION, 1, target)
    async with serving(Shelf(), **machine.pair(names=("agent.internal",))) as served:
        with pytest.raises(StartupError, match="that names it"):
            await commands.search(settings(machine, tls_ca=machine.ca), QUESTION, 1, served.client.target)


@on_one_loop
async def test_a_target_elsewhere_without_tls_is_warned_of(
    machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nobody(*_: object) -> bool:
        return False

    monkeypatch.setattr(commands, "serving", nobody)
    warned = {}
    for target in ("agent.internal:50051", "127.0.0.1:50051", "[::1]:50051", "localhost:50051", "unix:/run/agent.sock"):
        for name, given in (("clear", {}), ("tls", {"tls_ca": machine.ca})):
            with pytest.raises(StartupError):
                await commands.search(settings(machine, **given), QUESTION, 1, target)
            warned[target, name] = "in clear; set AGENT_TLS_CA" in capsys.readouterr().err

    assert [case for case, said in warned.items() if said] == [("agent.internal:50051", "clear")]


@pytest.mark.parametrize("content", [None, b"", b"planted"])
def test_an_authority_that_is_none_is_told_by_its_variable(machine: Machine, content: bytes | None) -> None:
    wrong = machine.folder / "wrong.pem"
    if content is not None:
        wrong.write_bytes(content)

    with pytest.raises(StartupError, match=r"^AGENT_TLS_CA: "):
        client_tls(wrong, None, None)


def test_without_settings_there_is_no_tls() -> None:
    assert client_tls(None, None, None) is None


@on_one_loop
async def test_many_connections_at_once_are_all_let_in(machine: Machine) -> None:
    """The certificate is asked for in grpc's threads, at every handshake."""
    async with serving(Shelf(), **machine.pair()) as served:

        async def connect() -> str:
            async with calling(served.client.port, trusting(machine.authority)) as client:
                return await client.health()

        assert set(await asyncio.gather(*(connect() for _ in range(20)))) == {"SERVING"}
