from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from answerdesk.v1 import conversation_pb2 as pb
from answerdesk.v1 import knowledge_service_pb2 as knowledge_pb
from hypothesis import given
from hypothesis import strategies as st

from agent_service.errors import InvalidRequestError
from agent_service.rpc import ingest_client
from agent_service.rpc.convert_knowledge import (
    INGEST_STATUSES,
    document_from_proto,
    document_to_proto,
    hit_to_proto,
    info_to_proto,
    page_from_proto,
    search_from_proto,
)
from agent_service.rpc.interceptors import LOCAL
from agent_service.types import (
    Access,
    Caller,
    CollectionName,
    DocumentId,
    DocumentInfo,
    IngestStatus,
    Passage,
    PassageId,
    Question,
    ScoredPassage,
    SourceDocument,
    Span,
)

CALLER = Caller("ada", "acme", ("staff",))
GRIN = "\U0001f600"


def search(**fields: Any) -> knowledge_pb.SearchRequest:
    return knowledge_pb.SearchRequest(**({"query": "why?"} | fields))


def test_a_query_alone_is_a_search_with_the_contracts_defaults() -> None:
    assert search_from_proto(search(), CALLER) == (Question("why?", "", CALLER), (), 8)


def test_every_field_of_a_search_arrives() -> None:
    request = search(previous_query="what?", collections=["billing", "policy"], top_k=3)
    assert len(request.ListFields()) == len(request.DESCRIPTOR.fields), "a new field: does the conversion know it?"

    question, collections, top_k = search_from_proto(request, CALLER)

    assert question == Question("why?", "what?", CALLER)
    assert collections == ("billing", "policy")
    assert top_k == 3


@pytest.mark.parametrize(
    "request_",
    [
        search(query=GRIN * 8_000),
        search(previous_query=GRIN * 8_000),
        search(previous_query="  "),
        search(collections=[f"c{n}" for n in range(16)]),
        search(top_k=1),
        search(top_k=50),
    ],
    ids=lambda request: request.ListFields()[-1][0].name,
)
def test_a_search_at_its_bounds_is_taken(request_: knowledge_pb.SearchRequest) -> None:
    question, collections, top_k = search_from_proto(request_, CALLER)

    assert question.text == request_.query
    assert list(collections) == list(request_.collections)
    assert top_k == (request_.top_k or 8)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (knowledge_pb.SearchRequest(), "query"),
        (search(query=" \n"), "query"),
        (search(query="x" * 8_001), "query"),
        (search(query=GRIN * 8_001), "query"),
        (search(previous_query="x" * 8_001), "previous_query"),
        (search(collections=[f"c{n}" for n in range(17)]), "collections"),
        (search(top_k=51), "top_k"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_search_beyond_a_bound_is_refused_by_the_fields_name(
    request_: knowledge_pb.SearchRequest, field: str
) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        search_from_proto(request_, CALLER)

    assert [violation.field for violation in raised.value.violations] == [field]


def test_a_collection_named_twice_is_searched_once() -> None:
    assert search_from_proto(search(collections=["b", "a", "b"]), CALLER)[1] == ("b", "a")


def test_a_document_belongs_to_its_callers_tenant_by_default() -> None:
    document = knowledge_pb.Document(uri="u", collection="billing", title="T", text="x")

    assert document_from_proto(document, CALLER) == SourceDocument(
        "u", CollectionName("billing"), "T", "x", Access("acme", ()), CALLER
    )


def test_a_document_is_written_with_its_callers_rights_and_the_operators_without_a_token() -> None:
    document = knowledge_pb.Document(uri="u", collection="billing", title="T", text="x")
    same_names = Caller(LOCAL.subject, LOCAL.tenant)
    assert same_names == LOCAL

    assert document_from_proto(document, LOCAL).writer is None
    assert document_from_proto(document, same_names).writer is same_names


def test_a_document_keeps_its_groups() -> None:
    document = knowledge_pb.Document(uri="u", access=pb.Access(tenant="acme", groups=["legal", "staff"]))

    assert document_from_proto(document, CALLER).access == Access("acme", ("legal", "staff"))


def test_a_document_for_another_tenant_is_refused() -> None:
    document = knowledge_pb.Document(uri="u", access=pb.Access(tenant="umbrella"))

    with pytest.raises(InvalidRequestError) as raised:
        document_from_proto(document, CALLER)

    assert [violation.field for violation in raised.value.violations] == ["document.access.tenant"]


@given(st.text(), st.text(), st.text(), st.lists(st.text(max_size=8), max_size=4))
def test_a_document_that_is_sent_arrives_as_it_was(uri: str, title: str, text: str, groups: list[str]) -> None:
    clean = [value.encode("utf-8", "replace").decode() for value in (uri, title, text, *groups)]
    access = Access("acme", tuple(clean[3:]))
    document = SourceDocument(clean[0], CollectionName("billing"), clean[1], clean[2], access, CALLER)

    wire = knowledge_pb.Document.FromString(document_to_proto(document).SerializeToString())

    assert document_from_proto(wire, CALLER) == document


def test_what_is_known_of_a_document_is_sent_whole() -> None:
    at = datetime(2026, 11, 21, 12, 30, 15, 250_000, tzinfo=timezone(timedelta(hours=2)))
    info = DocumentInfo(
        DocumentId("d"), "v", "T", "u", CollectionName("billing"), Access("acme", ("staff",)), 10, 2, at
    )

    message = info_to_proto(info)

    assert len(message.ListFields()) == len(message.DESCRIPTOR.fields)
    assert message.ingested_at.ToDatetime(UTC) == at
    assert (message.id, message.version, message.title, message.uri) == ("d", "v", "T", "u")
    assert (message.collection, message.characters, message.passages) == ("billing", 10, 2)
    assert message.access == pb.Access(tenant="acme", groups=["staff"])


def test_a_hit_is_sent_with_its_score_and_without_a_number() -> None:
    passage = Passage(
        PassageId("p"), DocumentId("d"), "v", CollectionName("c"), "T", "u", "h", 0, Span(2, 702), GRIN * 700
    )

    message = hit_to_proto(ScoredPassage(passage, 3.25))

    assert message == pb.Passage(
        document_id="d",
        version="v",
        title="T",
        uri="u",
        heading="h",
        span=pb.Span(start=2, end=702),
        text=GRIN * 700,
        score=3.25,
        collection="c",
    )


def test_a_page_has_the_contracts_defaults() -> None:
    assert page_from_proto(knowledge_pb.ListDocumentsRequest()) == ((), None, 50)


def test_every_field_of_a_page_request_arrives() -> None:
    request = knowledge_pb.ListDocumentsRequest(collection="billing", page_size=200, page_token="d")

    assert page_from_proto(request) == (("billing",), "d", 200)


def test_a_page_of_more_than_200_is_refused() -> None:
    with pytest.raises(InvalidRequestError) as raised:
        page_from_proto(knowledge_pb.ListDocumentsRequest(page_size=201))

    assert [violation.field for violation in raised.value.violations] == ["page_size"]


def test_the_statuses_of_ingestion_are_total() -> None:
    statuses = knowledge_pb.IngestDocumentsResponse.Status
    known = set(statuses.values()) - {statuses.Value("STATUS_UNSPECIFIED")}

    assert set(INGEST_STATUSES) == set(IngestStatus)
    assert set(INGEST_STATUSES.values()) == known - {statuses.Value("STATUS_REJECTED")}
    assert set(ingest_client.STATUS_WORDS) == known
    for status, number in INGEST_STATUSES.items():
        assert statuses.Name(number) == f"STATUS_{status.name}"
        assert ingest_client.STATUS_WORDS[number] == status.value
