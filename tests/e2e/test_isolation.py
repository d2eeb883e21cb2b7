"""What belongs to a tenant or a group is found by nobody else, whichever way they come.

Every document states the same kind of fact with a marker of its own, so that a caller who may read some of them is
answered from those, and the others would be just as good an answer.
"""

import itertools
import json
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.conftest import tool
from tests.e2e.conftest import PASSWORD, edge_command, edge_main, sign_in
from tests.support.processes import Pair, running_pair
from tests.support.tokens import internal_token, key_pair
from tests.unit.edge.sse_parser import parse

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

COLLECTIONS = {"billing": "hybrid", "technical": "rag", "policy": "cag"}
"""The specialists' collections, which are named like them, and their strategies."""

QUESTION = "What is the quokka surcharge?"
FOLLOW_UP = "And who has said that about the quokka surcharge?"


@dataclass(frozen=True)
class Account:
    name: str
    tenant: str
    groups: tuple[str, ...] = ()


ACCOUNTS = (
    Account("ann", "acme", ("legal",)),
    Account("bob", "acme"),
    Account("cem", "acme", ("sales",)),
    Account("dora", "globex", ("legal",)),
    Account("eve", "default", ("legal",)),
    Account("finn", "default"),
    Account("gil", "hooli", ("legal",)),
)
GUEST = Account("guest", "default")
CALLERS = (*ACCOUNTS, GUEST)


@dataclass(frozen=True)
class Owned:
    """A document, who put it in, and the groups that may read it; no groups: the tenant."""

    marker: str
    owner: Account
    groups: tuple[str, ...]
    collection: str

    def is_for(self, caller: Account) -> bool:
        return caller.tenant == self.owner.tenant and (not self.groups or bool({*self.groups} & {*caller.groups}))

    @property
    def body(self) -> dict[str, Any]:
        where = "-".join((self.owner.tenant, *self.groups))
        text = f"# Quokka surcharge\n\nThe quokka surcharge is 17 florins, as {self.marker} has said.\n"
        uri = f"quokka/{where}.md"
        return {"uri": uri, "collection": self.collection, "text": text, "groups": list(self.groups)}


def owned() -> list[Owned]:
    """A document for every tenant and group, in every collection, with new markers."""
    by_name = {account.name: account for account in ACCOUNTS}
    shelves = [
        ("ann", ("legal",)),
        ("bob", ()),
        ("cem", ("sales",)),
        ("dora", ("legal",)),
        ("dora", ()),
        ("eve", ("legal",)),
        ("eve", ()),
    ]
    return [
        Owned(f"marker{uuid4().hex[:12]}", by_name[name], groups, collection)
        for name, groups in shelves
        for collection in COLLECTIONS
    ]


@dataclass
class House:
    """A pair, a client for each caller, and everything that was ever put in."""

    pair: Pair
    keys: tuple[str, str]
    clients: dict[str, httpx.Client]
    ids: dict[str, str] = field(default_factory=dict)
    shelf: list[Owned] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)

    def put(self, who: str, **body: Any) -> httpx.Response:
        return self.clients[who].post("/api/documents", json=body)

    def fill(self) -> None:
        """Put a document everywhere; from the second time on as a new version with another marker."""
        self.replaced += [each.marker for each in self.shelf]
        self.shelf = owned()
        for each in self.shelf:
            reply = self.put(each.owner.name, **each.body)
            assert reply.status_code in {200, 201}, reply.text
            self.ids[each.marker] = reply.json()["id"]

    def markers_in(self, text: str) -> set[str]:
        """Which documents, also replaced ones, speak from a text."""
        return {marker for marker in (*self.replaced, *(each.marker for each in self.shelf)) if marker in text}

    def may_read(self, caller: Account, *collections: str) -> set[str]:
        wanted = collections or tuple(COLLECTIONS)
        return {each.marker for each in self.shelf if each.is_for(caller) and each.collection in wanted}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    keys = key_pair()
    settings = {"EDGE_AGENT_SIGNING_KEY": keys[0], "AGENT_VERIFY_KEY": keys[1], "AGENT_OFFLINE_DELAY_S": "0"}
    with running_pair(tmp_path_factory.mktemp("house"), settings) as pair, ExitStack() as stack:
        for account in ACCOUNTS:
            add(pair, account)
        headers = {account.name: sign_in(pair, account.name) for account in ACCOUNTS} | {GUEST.name: pair.guest()}
        clients = {name: stack.enter_context(client(pair, found)) for name, found in headers.items()}
        found = House(pair, keys, clients)
        found.fill()
        yield found


def client(pair: Pair, headers: Mapping[str, str]) -> httpx.Client:
    return httpx.Client(base_url=pair.url, headers=headers, timeout=30, trust_env=False)


def add(pair: Pair, account: Account) -> None:
    groups = [word for group in account.groups for word in ("--group", group)]
    scopes = ["--scope", "chat", "--scope", "documents:write"]
    edge_main(pair, "users", "add", account.name, "--tenant", account.tenant, *groups, *scopes, stdin=f"{PASSWORD}\n")


def ask(http: httpx.Client, message: str, *, stream: bool, **body: Any) -> tuple[str, str]:
    """A turn. Returns all that came of it, as text, and its session."""
    accept = {"Accept": "text/event-stream" if stream else "application/json"}
    reply = http.post("/api/chat", json={"message": message, **body}, headers=accept)
    assert reply.status_code == 200, reply.text
    if not stream:
        return reply.text, reply.json()["session_id"]
    frames = parse(reply.text)
    assert frames[-1].type == "complete", reply.text
    # Tokens cut words; their text is put together again.
    answer = "".join(frame.json["content"] for frame in frames if frame.type == "token")
    return answer + reply.text, frames[0].json["session_id"]


@pytest.mark.parametrize("caller", CALLERS, ids=lambda caller: caller.name)
def test_search_finds_what_the_caller_may_read_and_nothing_else(house: House, caller: Account) -> None:
    http = house.clients[caller.name]

    everywhere = http.get("/api/search", params={"q": QUESTION, "top_k": 50}).raise_for_status().text
    each = {c: http.get("/api/search", params={"q": QUESTION, "collection": c, "top_k": 50}).text for c in COLLECTIONS}
    # Nobody finds it by its own words either.
    by_name = {
        marker: http.get("/api/search", params={"q": marker}).raise_for_status().text
        for marker in house.may_read(ACCOUNTS[0]) | house.may_read(ACCOUNTS[3]) | house.may_read(ACCOUNTS[4])
    }

    assert house.markers_in(everywhere) == house.may_read(caller)
    for collection, found in each.items():
        assert house.markers_in(found) == house.may_read(caller, collection)
    for marker, found in by_name.items():
        assert (marker in found) is (marker in house.may_read(caller))
        assert house.markers_in(found) <= house.may_read(caller)


@pytest.mark.parametrize("owners_first", [True, False], ids=["owners-first", "others-first"])
def test_no_agent_answers_from_what_the_caller_may_not_read(house: House, owners_first: bool) -> None:
    # New versions: nothing of them is prepared or cached yet, so the first to ask is the first.
    house.fill()
    callers = CALLERS if owners_first else CALLERS[::-1]

    for agent, caller, stream in itertools.product((*COLLECTIONS, None), callers, (False, True)):
        may_read = house.may_read(caller, *([agent] if agent else []))
        seen, session = ask(house.clients[caller.name], QUESTION, stream=stream, agent=agent)
        later, _ = ask(house.clients[caller.name], FOLLOW_UP, stream=stream, session_id=session)
        again, _ = ask(house.clients[caller.name], QUESTION, stream=stream, session_id=session, agent=agent)
        stored = house.clients[caller.name].get(f"/api/session/{session}/messages").raise_for_status().text

        said = (agent, caller.name, "stream" if stream else "json")
        for text in (seen, again):
            assert house.markers_in(text) <= may_read, said
            assert bool(house.markers_in(text)) is bool(may_read), said
        for text in (later, stored):
            assert house.markers_in(text) <= house.may_read(caller), said


@pytest.mark.parametrize("caller", CALLERS, ids=lambda caller: caller.name)
def test_documents_of_others_are_neither_listed_nor_read_nor_deleted(house: House, caller: Account) -> None:
    http = house.clients[caller.name]

    listed = {each["id"] for each in pages(http)}
    replies = {each: http.get(f"/api/documents/{house.ids[each.marker]}") for each in house.shelf}

    readable = {each for each in house.shelf if each.is_for(caller)}
    assert listed & set(house.ids.values()) == {house.ids[each.marker] for each in readable}
    for each, reply in replies.items():
        if each in readable:
            assert each.marker in reply.raise_for_status().json()["text"]
            continue
        deleted = http.delete(f"/api/documents/{house.ids[each.marker]}")
        assert (reply.status_code, reply.json()["code"]) == (404, "unknown_document")
        assert house.markers_in(reply.text + deleted.text) == set()
        expected = (403, "missing_scope") if caller is GUEST else (404, "unknown_document")
        assert (deleted.status_code, deleted.json()["code"]) == expected
        owner = house.clients[each.owner.name]
        assert each.marker in owner.get(f"/api/documents/{house.ids[each.marker]}").raise_for_status().text


def pages(http: httpx.Client) -> Iterator[dict[str, Any]]:
    cursor = ""
    while True:
        page = http.get("/api/documents", params={"limit": 7, "cursor": cursor}).raise_for_status().json()
        yield from page["documents"]
        cursor = page["next_cursor"]
        if cursor is None:
            return


def test_a_collection_of_another_tenant_is_as_unknown_as_one_that_nobody_has(house: House) -> None:
    uri = {"uri": "quokka/secret.md", "collection": "acme-secrets", "text": "# Quokka\n\nIt sleeps."}
    house.put("ann", **uri, groups=["legal"]).raise_for_status()

    replies = [
        house.clients[name].get("/api/search", params={"q": "quokka", "collection": collection})
        for name in ("bob", "dora", "guest")
        for collection in ("acme-secrets", "nobody-has-it")
    ]

    assert {(reply.status_code, reply.json()["code"]) for reply in replies} == {(404, "unknown_collection")}
    assert house.clients["ann"].get("/api/search", params={"q": "quokka", "collection": "acme-secrets"}).is_success


@pytest.mark.parametrize("agent", COLLECTIONS)
def test_who_leaves_a_group_no_longer_reads_its_documents_in_a_running_session(house: House, agent: str) -> None:
    member = Account(f"lea-{agent}", "acme", ("board",))
    add(house.pair, member)
    marker = f"marker{uuid4().hex[:12]}"
    text = f"# Wombat levy\n\nThe wombat levy is 23 florins, as {marker} has said.\n"
    body = {"uri": f"wombat/{agent}.md", "collection": agent, "text": text, "groups": ["board"]}

    with client(house.pair, sign_in(house.pair, member.name)) as before:
        document = before.post("/api/documents", json=body).raise_for_status().json()["id"]
        first, session = ask(before, "What is the wombat levy?", stream=False, agent=agent)
        kept, _ = ask(before, "Who has said that about the wombat levy?", stream=False, session_id=session)
    edge_command(house.pair, "users", "set", member.name, "--group", "former-board")
    with client(house.pair, sign_in(house.pair, member.name)) as after:
        asked = [
            ask(after, message, stream=stream, session_id=session, agent=chosen)[0]
            for message in ("What is the wombat levy?", "Who has said that about the wombat levy?", "And why?")
            for stream in (False, True)
            for chosen in (None, agent)
        ]
        found = after.get("/api/search", params={"q": f"wombat levy {marker}"}).raise_for_status().text
        refused = [
            after.get(f"/api/documents/{document}"),
            after.delete(f"/api/documents/{document}"),
            after.post("/api/documents", json=body),
            after.post("/api/documents", json={**body, "groups": []}),
        ]
        listed = {each["id"] for each in pages(after)}

    assert marker in json.loads(first)["answer"]
    assert marker in json.loads(kept)["answer"]
    assert json.loads(kept)["trace"]["cache_hit"] is (agent != "technical")
    assert [marker in text for text in (*asked, found)] == [False] * (len(asked) + 1)
    assert [reply.status_code for reply in refused] == [404, 404, 422, 422]
    assert document not in listed


def test_a_document_for_a_group_that_its_writer_is_not_in_is_refused(house: House) -> None:
    body = {"uri": "quokka/intruder.md", "collection": "policy", "text": "# Intruder\n\nThe intruder was here."}

    refused = [house.put("bob", **body, groups=["legal"]), house.put("ann", **body, groups=["legal", "sales"])]
    forbidden = house.put("guest", **body)

    assert [(each.status_code, each.json()["code"]) for each in refused] == [(422, "document_rejected")] * 2
    assert (forbidden.status_code, forbidden.json()["code"]) == (403, "missing_scope")
    for http in house.clients.values():
        found = http.get("/api/search", params={"q": "the intruder was here"}).raise_for_status().json()
        assert "quokka/intruder.md" not in {each["uri"] for each in found["passages"]}


def test_a_document_of_a_group_is_not_overwritten_by_who_cannot_read_it(house: House) -> None:
    body = {"uri": "quokka/taken.md", "collection": "billing", "text": "# Taken\n\nOnly legal knows."}
    created = house.put("ann", **body, groups=["legal"])
    document = f"/api/documents/{created.json()['id']}"
    before = house.clients["ann"].get(document).raise_for_status().json()

    refused = [
        house.put("bob", **{**body, "text": "# Mine\n\nBob was here."}),
        house.put("cem", **{**body, "text": "# Mine\n\nCem was here."}, groups=["sales"]),
    ]
    # The same name is free in another tenant.
    elsewhere = house.put("dora", **{**body, "text": "# Mine\n\nDora was here."}, groups=["legal"])

    assert [(each.status_code, each.json()["code"]) for each in refused] == [(422, "document_rejected")] * 2
    assert "Only legal knows" not in refused[0].text
    assert elsewhere.status_code == 201
    assert elsewhere.json()["id"] != before["id"]
    assert house.clients["ann"].get(document).raise_for_status().json() == before


class GrpcurlError(Exception):
    """Its text is what grpcurl printed."""


def grpcurl(house: House, method: str, data: Mapping[str, Any], token: str | None = None) -> str:
    headers = [] if token is None else ["-H", f"authorization: Bearer {token}"]
    service = "AgentService" if method == "Chat" else "KnowledgeService"
    call = [house.pair.agent_target, f"answerdesk.v1.{service}/{method}"]
    command = [str(tool("grpcurl")), "-plaintext", *headers, "-d", json.dumps(data), *call]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        raise GrpcurlError(done.stderr)
    return done.stdout


def grpcurl_calls(house: House) -> list[tuple[str, dict[str, Any]]]:
    return [
        ("Search", {"query": QUESTION, "topK": 50}),
        *(("Chat", {"message": QUESTION, "agent": agent}) for agent in COLLECTIONS),
        ("Chat", {"message": QUESTION}),
        *(("GetDocument", {"id": house.ids[each.marker]}) for each in house.shelf),
    ]


@pytest.mark.needs("grpcurl")
@pytest.mark.parametrize("caller", [*ACCOUNTS, Account("nobody", "default")], ids=lambda caller: caller.name)
def test_grpcurl_sees_what_its_token_says_and_without_one_the_open_documents(house: House, caller: Account) -> None:
    groups = [word for group in caller.groups for word in ("--group", group)]
    token = None
    if caller.name != "nobody":
        token = edge_main(house.pair, "token", "--tenant", caller.tenant, *groups)

    searched, *others = grpcurl_calls(house)
    assert house.markers_in(grpcurl(house, *searched, token)) == house.may_read(caller)
    for method, data in others:
        if method == "GetDocument" and data["id"] not in {house.ids[m] for m in house.may_read(caller)}:
            with pytest.raises(GrpcurlError, match="NotFound"):
                grpcurl(house, method, data, token)
            continue
        assert house.markers_in(grpcurl(house, method, data, token)) <= house.may_read(caller), data
    listed = grpcurl(house, "ListDocuments", {"pageSize": 200}, token)
    assert {i for i in house.ids.values() if i in listed} == {house.ids[m] for m in house.may_read(caller)}


@pytest.mark.needs("grpcurl")
@pytest.mark.parametrize("flaw", ["forged", "expired", "for somebody else", "not a token"])
def test_grpcurl_with_a_bad_token_sees_nothing_at_all(house: House, flaw: str) -> None:
    private = key_pair()[0] if flaw == "forged" else house.keys[0]
    long_ago = int(time.time()) - 3_600
    changes: dict[str, dict[str, Any]] = {
        "expired": {"iat": long_ago, "exp": long_ago + 60},
        "for somebody else": {"aud": "another-service"},
    }
    claims = changes.get(flaw, {})
    token = internal_token(private, subject="mallory", tenant="acme", groups=["legal"], **claims)

    for method, data in grpcurl_calls(house):
        with pytest.raises(GrpcurlError, match="Unauthenticated") as failed:
            grpcurl(house, method, data, "not-a-token" if flaw == "not a token" else token)
        assert house.markers_in(str(failed.value)) == set()


def test_without_a_signing_key_an_account_of_a_tenant_is_refused_and_the_log_names_the_setting(tmp_path: Path) -> None:
    with running_pair(tmp_path) as pair:
        replies, sessions = refused(pair)
        logged = pair.edge.output()

    assert {(each.status_code, each.json()["code"]) for each in replies} == {(502, "agent_refused")}
    assert not any("EDGE_" in each.text for each in replies), "who asks is not told how the house is wired"
    assert "EDGE_AGENT_SIGNING_KEY is needed" in logged
    assert sessions == [], "a message that nobody was asked is not kept"


@pytest.mark.parametrize("keys", ["no key to verify with", "another key"])
def test_an_agent_that_does_not_believe_the_edge_serves_nobody(tmp_path: Path, keys: str) -> None:
    settings = {"EDGE_AGENT_SIGNING_KEY": key_pair()[0]}
    if keys == "another key":
        settings["AGENT_VERIFY_KEY"] = key_pair()[1]
    with running_pair(tmp_path, settings) as pair:
        # Several times: which of two errors of one call is told must not be a matter of luck.
        found = [refused(pair) for _ in range(5)]

    for replies, sessions in found:
        assert {(each.status_code, each.json()["code"]) for each in replies} == {(502, "agent_refused")}
        assert sessions == []


def refused(pair: Pair) -> tuple[list[httpx.Response], list[dict[str, Any]]]:
    """What a new account of a tenant gets, whatever it asks for; and its sessions."""
    account = Account(f"ann-{uuid4().hex[:8]}", "acme", ("legal",))
    add(pair, account)
    with client(pair, sign_in(pair, account.name)) as http:
        replies = [
            http.get("/api/search", params={"q": QUESTION}),
            http.get("/api/documents"),
            http.get("/api/agents"),
            http.post("/api/chat", json={"message": QUESTION}),
            http.post("/chat", json={"message": QUESTION}),
            *(http.post("/api/documents", json={"uri": "a", "collection": "policy", "text": "A."}) for _ in range(20)),
        ]
        return replies, http.get("/api/sessions").raise_for_status().json()["sessions"]
