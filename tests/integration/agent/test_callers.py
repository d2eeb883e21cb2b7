"""Who shows a token sees their own documents and turns, and nothing of anybody else's. Over a real channel."""

from collections.abc import AsyncIterator, Sequence

import grpc
import pytest
import pytest_asyncio
from answerdesk.v1 import agent_service_pb2 as pb
from answerdesk.v1 import conversation_pb2 as conversation_pb
from answerdesk.v1 import knowledge_service_pb2 as knowledge_pb

from agent_service.types import DocumentInfo
from tests.support.served import WAIT_S, Client, Served, failure_of, on_one_loop, serving
from tests.support.shelf import BILLING, POLICY, TECHNICAL, Shelf
from tests.support.tokens import internal_token, key_pair

pytestmark = on_one_loop

PRIVATE, PUBLIC = key_pair()
COLLECTIONS = {"billing": BILLING, "technical": TECHNICAL, "policy": POLICY}
"""Agent and collection; hybrid, rag and cag."""

QUESTION = "What is the vault code?"
CODES = {"acme": "QK4711ZW", "umbrella": "UX0815YB", "acme-staff": "ST1337FF"}
CREATED, REPLACED, UNCHANGED, REJECTED = (
    knowledge_pb.IngestDocumentsResponse.STATUS_CREATED,
    knowledge_pb.IngestDocumentsResponse.STATUS_REPLACED,
    knowledge_pb.IngestDocumentsResponse.STATUS_UNCHANGED,
    knowledge_pb.IngestDocumentsResponse.STATUS_REJECTED,
)


class Person:
    """A client of the agent who shows a token with every call; with no subject, none."""

    def __init__(self, client: Client, subject: str = "", tenant: str = "default", groups: Sequence[str] = ()) -> None:
        self._client = client
        token = internal_token(PRIVATE, subject=subject, tenant=tenant, groups=groups) if subject else ""
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()

    async def chat(self, **fields: object) -> list[pb.ChatResponse]:
        request = pb.ChatRequest(**({"message": QUESTION} | fields))  # type: ignore[arg-type]
        return [event async for event in self._client.agent.Chat(request, metadata=self._metadata, timeout=WAIT_S)]

    async def search(self) -> list[str]:
        request = knowledge_pb.SearchRequest(query=QUESTION, top_k=50)
        found = await self._client.knowledge.Search(request, metadata=self._metadata, timeout=WAIT_S)
        return [passage.text for passage in found.passages]

    async def list(self) -> list[knowledge_pb.DocumentInfo]:
        request = knowledge_pb.ListDocumentsRequest()
        reply = await self._client.knowledge.ListDocuments(request, metadata=self._metadata, timeout=WAIT_S)
        return list(reply.documents)

    async def read(self, document_id: str) -> str:
        request = knowledge_pb.GetDocumentRequest(id=document_id)
        reply = await self._client.knowledge.GetDocument(request, metadata=self._metadata, timeout=WAIT_S)
        return reply.text

    async def delete(self, document_id: str) -> int:
        request = knowledge_pb.DeleteDocumentRequest(id=document_id)
        reply = await self._client.knowledge.DeleteDocument(request, metadata=self._metadata, timeout=WAIT_S)
        return reply.passages

    async def ingest(self, uri: str, text: str, *groups: str, tenant: str = "") -> knowledge_pb.IngestDocumentsResponse:
        access = conversation_pb.Access(tenant=tenant, groups=groups)
        document = knowledge_pb.Document(uri=uri, collection=BILLING, text=text, access=access)

        async def requests() -> AsyncIterator[knowledge_pb.IngestDocumentsRequest]:
            yield knowledge_pb.IngestDocumentsRequest(document=document)

        call = self._client.knowledge.IngestDocuments(requests(), metadata=self._metadata, timeout=WAIT_S)
        (answer,) = [answer async for answer in call]
        return answer


class Desk:
    """Two tenants at one agent, with a document each in every collection, and one for the staff of the first."""

    def __init__(self, served: Served, shelf: Shelf) -> None:
        self.shelf = shelf
        self.client = served.client
        self.staff = Person(self.client, "ada", "acme", ["staff"])
        self.any = Person(self.client, "bob", "acme", ["sales"])
        self.other = Person(self.client, "eve", "umbrella", ["staff"])
        self.local = Person(self.client)
        self.documents: dict[tuple[str, str], DocumentInfo] = {}

    async def fill(self) -> "Desk":
        for whose, code in CODES.items():
            tenant, _, group = whose.partition("-")
            for collection in COLLECTIONS.values():
                text = f"# Vault\n\nThe vault code of {whose} is {code}.\n"
                groups = (group,) if group else ()
                self.documents[whose, collection] = await self.shelf.put(
                    f"{whose}.md", text, collection=collection, tenant=tenant, groups=groups
                )
        return self

    def readers(self) -> dict[str, tuple[Person, set[str]]]:
        return {
            "staff": (self.staff, {"acme", "acme-staff"}),
            "any": (self.any, {"acme"}),
            "other": (self.other, {"umbrella"}),
            "local": (self.local, set()),
        }


@pytest_asyncio.fixture(loop_scope="session")
async def desk() -> AsyncIterator[Desk]:
    shelf = Shelf(*COLLECTIONS.values())
    async with serving(shelf, verify_key=PUBLIC) as served:
        yield await Desk(served, shelf).fill()


def shown(what: object) -> set[str]:
    """Whose documents show in something."""
    return {whose for whose, code in CODES.items() if code in repr(what)}


def completed(events: Sequence[pb.ChatResponse]) -> pb.Completed:
    return events[-1].completed


PEOPLE = ["staff", "any", "other", "local"]


@pytest.mark.parametrize("name", PEOPLE)
async def test_search_and_list_show_callers_their_own(desk: Desk, name: str) -> None:
    person, own = desk.readers()[name]

    assert shown(await person.search()) == own
    assert {info.uri.removesuffix(".md") for info in await person.list()} == own
    assert len(await person.list()) == len(own) * len(COLLECTIONS)


@pytest.mark.parametrize("name", PEOPLE)
async def test_documents_of_others_can_be_neither_read_nor_deleted(desk: Desk, name: str) -> None:
    person, own = desk.readers()[name]

    for (whose, _), info in desk.documents.items():
        if whose in own:
            assert shown(await person.read(info.id)) == {whose}
            continue
        for failure in (await failure_of(person.read(info.id)), await failure_of(person.delete(info.id))):
            assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_DOCUMENT")
            assert shown(failure.everything) == set()
    for (whose, _), info in desk.documents.items():
        if whose in own:
            assert await person.delete(info.id) == 1
    assert sum((await desk.shelf.store.collections()).values()) == (len(CODES) - len(own)) * len(COLLECTIONS)


@pytest.mark.parametrize("agent", COLLECTIONS)
@pytest.mark.parametrize("name", PEOPLE)
async def test_a_turn_shows_callers_their_own(desk: Desk, name: str, agent: str) -> None:
    person, own = desk.readers()[name]

    events = await person.chat(agent=agent)

    assert shown(events) == own
    assert {citation.uri.removesuffix(".md") for citation in completed(events).citations} <= own
    assert bool(completed(events).citations) is bool(own)


@pytest.mark.parametrize("agent", COLLECTIONS)
@pytest.mark.parametrize("name", ["any", "other", "local"])
async def test_passages_that_another_callers_turn_kept_are_dropped(desk: Desk, name: str, agent: str) -> None:
    person, own = desk.readers()[name]
    kept = completed(await desk.staff.chat(agent=agent)).state
    assert bool(kept.cached) is (agent == "billing"), "hybrid alone keeps passages"
    foreign = {desk.documents[whose, COLLECTIONS[agent]].id for whose in CODES if whose not in own}
    forged = conversation_pb.State(agent=agent, cached=kept.cached)
    for whose in CODES:
        info = desk.documents[whose, COLLECTIONS[agent]]
        for passage in await desk.shelf.passages(info):
            forged.cached.add(document_id=info.id, version=info.version, passage_id=passage.id)

    events = await person.chat(agent=agent, state=forged, message="And the code of the vault?")

    assert shown(events) == own
    assert foreign.isdisjoint(entry.document_id for entry in completed(events).state.cached)


async def test_a_request_id_of_another_caller_begins_a_turn_of_its_own(desk: Desk) -> None:
    namesakes = [
        desk.staff,
        Person(desk.client, "bob", "acme", ["staff"]),
        Person(desk.client, "ada", "umbrella", ["staff"]),
        desk.local,
    ]
    turns = [await person.chat(agent="billing", request_id="same") for person in namesakes]
    again = await desk.staff.chat(agent="billing", request_id="same")

    assert len({events[0].turn_id for events in turns}) == len(namesakes)
    assert [shown(events) for events in turns] == [{"acme", "acme-staff"}] * 2 + [{"umbrella"}, set()]
    assert again == turns[0]


# --- writing ---


async def test_a_document_is_its_writers_and_everybodys_of_the_tenant(desk: Desk) -> None:
    answer = await desk.any.ingest("new.md", "# New\n\nZeppelins fly.\n")

    assert answer.status == CREATED
    assert (answer.document.access.tenant, list(answer.document.access.groups)) == ("acme", [])
    assert "Zeppelins" in await desk.staff.read(answer.document.id)
    assert (await failure_of(desk.other.read(answer.document.id))).code is grpc.StatusCode.NOT_FOUND


async def test_the_same_uri_of_two_tenants_is_two_documents(desk: Desk) -> None:
    one = await desk.staff.ingest("new.md", "# New\n\nZeppelins fly.\n")
    other = await desk.other.ingest("new.md", "# New\n\nZeppelins fly.\n")

    assert (one.status, other.status) == (CREATED, CREATED)
    assert one.document.id != other.document.id


async def test_a_document_for_another_tenant_is_rejected(desk: Desk) -> None:
    answer = await desk.any.ingest("new.md", "Zeppelins.\n", tenant="umbrella")

    assert answer.status == REJECTED
    assert answer.problem.startswith("document.access.tenant")


async def test_a_document_for_a_group_of_others_is_rejected_and_the_operators_is_not(desk: Desk) -> None:
    rejected = await desk.any.ingest("new.md", "Zeppelins.\n", "sales", "staff")
    own = await desk.any.ingest("new.md", "Zeppelins.\n", "sales")
    operator = await desk.local.ingest("new.md", "Zeppelins.\n", "staff")
    namesake = await Person(desk.client, "local", "default").ingest("other.md", "Zeppelins.\n", "staff")

    assert (rejected.status, own.status, operator.status, namesake.status) == (REJECTED, CREATED, CREATED, REJECTED)
    assert rejected.problem == "document.access.groups: must be groups that the caller is in"


@pytest.mark.parametrize("groups", [(), ("sales",)])
async def test_a_document_that_the_caller_cannot_read_is_not_overwritten(desk: Desk, groups: tuple[str, ...]) -> None:
    secret = desk.documents["acme-staff", BILLING]

    answer = await desk.any.ingest(secret.uri, "# Vault\n\nThere is no vault.\n", *groups)

    assert answer.status == REJECTED
    assert shown(answer) == set()
    assert not answer.document.id
    assert shown(await desk.staff.read(secret.id)) == {"acme-staff"}


async def test_a_member_and_the_operator_replace_a_groups_document(desk: Desk) -> None:
    first = await desk.local.ingest("new.md", "Zeppelins.\n", "staff")
    member = Person(desk.client, "ada", "default", ["staff"])

    assert first.status == CREATED
    assert (await member.ingest("new.md", "Zeppelins fly.\n", "staff")).status == REPLACED
    assert (await desk.local.ingest("new.md", "Zeppelins fly.\n", "staff")).status == UNCHANGED
    # Created for all who may read it: the operator without a token is in no group.
    assert (await desk.local.ingest("new.md", "Zeppelins land.\n")).document.id == first.document.id


async def test_a_caller_in_as_many_groups_as_may_be_is_known_by_all_of_them(desk: Desk) -> None:
    # As long as the edge can make it: an access token has 8 KiB, and these names become three times as much.
    groups = ["staff", *(f"{number:02}{'ü' * 38}" for number in range(63))]

    person = Person(desk.client, "ada", "acme", groups)

    assert len(repr(person._metadata)) > 16_000
    assert shown(await person.search()) == {"acme", "acme-staff"}
