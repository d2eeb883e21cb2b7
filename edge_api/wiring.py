"""From settings to parts that work together."""

import asyncio
import fcntl
import ipaddress
import logging
import os
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from edge_api.agent_client.client import AgentClient
from edge_api.agent_client.signing import CallerSigner
from edge_api.agent_client.tls import Tls, read_tls
from edge_api.auth.dependencies import Guard
from edge_api.auth.jwks import ClaimNames, ExternalIssuer, Trust
from edge_api.auth.passwords import Passwords
from edge_api.auth.secrets import own_secret
from edge_api.auth.service import AccountRules, AccountService
from edge_api.auth.tokens import OwnTokens, Verifier
from edge_api.chat.hub import TurnHub
from edge_api.chat.recorder import Recorder
from edge_api.conversations.leases import Leases
from edge_api.conversations.library import SessionLibrary
from edge_api.conversations.service import ConversationService, TurnRules
from edge_api.db import Clock, Database, database_url, utc_now
from edge_api.errors import StartupError, StorageUnavailableError
from edge_api.limits import RateLimits
from edge_api.migrations import schema
from edge_api.settings import Settings

log = logging.getLogger(__name__)

RENEW_S = 3.0
"""Between two renewals of an edge's lease."""

LAST_WRITES_S = 2.0
"""What answers that are being stored get at the end."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What requests are served with."""

    database: Database
    guard: Guard
    accounts: AccountService
    conversations: ConversationService
    library: SessionLibrary
    recorder: Recorder
    limits: RateLimits
    leases: Leases


@dataclass(frozen=True, slots=True)
class Secrets:
    """What this process signs with; `agent` None: the agent on this machine takes calls without a token.

    `agent_tls` None: calls of the agent service go in clear.
    """

    access_tokens: str
    agent: CallerSigner | None
    agent_tls: Tls | None


def read_secrets(settings: Settings) -> Secrets:
    """The secrets of this edge. In development on one machine the one for access tokens is made where it is missing.

    Raises:
        StartupError: one is missing where it must be given, or weak; or a file of EDGE_AGENT_TLS_* cannot be used.
    """
    given = settings.jwt_secret.get_secret_value() if settings.jwt_secret else None
    why_not = _why_given(settings)
    secret = own_secret(given, data_dir=settings.data_dir, may_generate=why_not is None, why_not=why_not or "")
    key = settings.agent_signing_key
    if key is None and not settings.agent_is_local:
        raise StartupError(
            "EDGE_AGENT_SIGNING_KEY must be set where the agent service is on another machine; make a key with: "
            "openssl genpkey -algorithm ed25519"
        )
    tls = read_tls(settings.agent_tls_ca, settings.agent_tls_cert, settings.agent_tls_key, settings.agent_tls_name)
    if tls is None and not settings.agent_is_local:
        log.warning(
            "questions, documents and tokens go to the agent service in clear: EDGE_AGENT_TLS_CA is not set",
            extra={"target": settings.agent_target},
        )
    return Secrets(secret, CallerSigner(key.get_secret_value()) if key else None, tls)


def open_database(settings: Settings) -> Database:
    """The database, not connected yet; the folder of a SQLite file is made.

    Raises:
        StartupError: the address is none, or the folder cannot be made.
    """
    given = settings.database_url.get_secret_value() if settings.database_url else None
    url = database_url(given, settings.data_dir)
    if url.get_backend_name() == "sqlite" and url.database:
        folder = Path(url.database).parent
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as err:
            raise StartupError(f"{folder} cannot be made ({err.strerror}); set EDGE_DATA_DIR") from err
    return Database(url)


@asynccontextmanager
async def running_parts(settings: Settings, secrets: Secrets, clock: Clock = utc_now) -> AsyncIterator[Parts]:
    """Everything that requests are served with, until the block is left. A SQLite database is migrated first.

    Raises:
        StartupError: another edge has the SQLite database, or it cannot be opened.
    """
    async with AsyncExitStack() as stack:
        database = open_database(settings)
        if database.is_sqlite:
            stack.enter_context(_only_edge(Path(str(database.url.database))))
        stack.push_async_callback(database.close)
        passwords = Passwords()
        stack.callback(passwords.close)
        limits = _limits(settings)
        stack.push_async_callback(limits.close)
        external = _external(settings)
        if external is not None:
            stack.push_async_callback(external.close)
        tokens = OwnTokens(secrets.access_tokens, ttl_s=settings.access_token_ttl_s, clock=lambda: clock().timestamp())
        edge_id = str(uuid.uuid4())
        conversations = ConversationService(database, _turn_rules(settings), edge_id=edge_id, clock=clock)
        recorder = Recorder(conversations)
        stack.push_async_callback(recorder.close, LAST_WRITES_S)
        library = SessionLibrary(database, session_ttl_s=settings.session_ttl_s, clock=clock)
        if database.is_sqlite:
            await _prepare(database)
        await stack.enter_async_context(_in_background(library))
        yield Parts(
            database,
            Guard(Verifier(tokens, external), limits),
            AccountService(database, tokens, passwords, _account_rules(settings), clock=clock),
            conversations,
            library,
            recorder,
            limits,
            Leases(database, edge_id, clock=clock),
        )


@asynccontextmanager
async def following_turns(parts: Parts, agent: AgentClient, clock: Clock = utc_now) -> AsyncIterator[TurnHub]:
    """The turns of this edge, and of edges that are gone, followed and stored until the block is left.

    Raises:
        StartupError: the SQLite database cannot be read.
    """
    hub = TurnHub(agent, parts.conversations, parts.recorder, clock=clock)
    if parts.database.is_sqlite:
        await _adopt_all(parts, hub)
    keeping = asyncio.create_task(_keep_turns(parts, hub))
    try:
        yield hub
    finally:
        keeping.cancel()
        await asyncio.wait({keeping}, timeout=LAST_WRITES_S)
        await hub.close(LAST_WRITES_S)
        if not parts.database.is_sqlite:
            # Others take over at once what this edge followed.
            with suppress(StorageUnavailableError):
                await parts.leases.release()


async def _adopt_all(parts: Parts, hub: TurnHub) -> None:
    """Go on with what an earlier process of this one edge left running."""
    try:
        if await schema.state(parts.database) == "ok":
            for turn in await parts.leases.adopt(everything=True):
                hub.adopt(turn)
    except StorageUnavailableError as err:
        raise StartupError(f"{parts.database.url.database} cannot be read ({type(err.__cause__).__name__})") from err


async def _keep_turns(parts: Parts, hub: TurnHub) -> None:
    """Show the other edges that this one lives, and take up turns that nobody follows: of dead edges, or our own."""
    is_ours = False
    while True:
        try:
            is_ours = is_ours or await schema.state(parts.database) == "ok"
            if is_ours:
                # A SQLite file has one edge, which has taken up all there was at its start.
                orphans = [] if parts.database.is_sqlite else await parts.leases.adopt()
                left_over = [turn for turn in await parts.leases.left_over() if not hub.is_at_work_on(turn.message_id)]
                for turn in (*orphans, *left_over):
                    hub.adopt(turn)
                if orphans or left_over:
                    counts = {"of_others": len(orphans), "left_over": len(left_over)}
                    log.warning("turns that nobody followed were taken up", extra=counts)
        except StorageUnavailableError:
            # The database says so in the log.
            pass
        except Exception:
            log.exception("turns that nobody follows could not be taken up")
        await asyncio.sleep(RENEW_S)


async def _prepare(database: Database) -> None:
    """Migrate the database of one machine."""
    try:
        found = await schema.state(database)
        if found == "schema_newer":
            log.error("the database was made by a newer version of this edge; not ready")
            return
        if found != "ok":
            await schema.upgrade(database)
            log.info("migrated", extra={"revision": schema.head()})
    except StorageUnavailableError as err:
        cause = type(err.__cause__).__name__
        raise StartupError(f"{database.url.database} cannot be opened or migrated ({cause})") from err


def _why_given(settings: Settings) -> str | None:
    """Why the secret must be given; None: it may be made."""
    if settings.env == "production":
        return "in production"
    if settings.database_url and not settings.database_url.get_secret_value().lower().startswith("sqlite"):
        return "beside PostgreSQL: every edge needs the same one"
    if not _is_loopback(settings.host):
        return "where others can reach this edge (EDGE_HOST)"
    return None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _limits(settings: Settings) -> RateLimits:
    off = settings.rate_limit == "off"
    url = settings.redis_url.get_secret_value() if settings.redis_url else None
    return RateLimits(
        {
            "user": settings.rate_limit,
            "address": "off" if off else settings.address_rate_limit,
            "login": "off" if off else settings.login_rate_limit,
            "account": "off" if off else settings.account_rate_limit,
            "guest": "off" if off else settings.guest_rate_limit,
        },
        redis_url=url,
    )


def _turn_rules(settings: Settings) -> TurnRules:
    return TurnRules(
        session_ttl_s=settings.session_ttl_s,
        turn_timeout_s=settings.turn_timeout_s,
        history_tokens=settings.history_tokens,
        max_user_turns=None if settings.rate_limit == "off" else settings.max_user_turns,
    )


def _account_rules(settings: Settings) -> AccountRules:
    return AccountRules(
        refresh_ttl_s=settings.refresh_token_ttl_s,
        registration=settings.registration == "open",
        guests=settings.guests == "on",
    )


def _external(settings: Settings) -> ExternalIssuer | None:
    if not (settings.jwks_url and settings.jwt_issuer and settings.jwt_audience):
        return None
    names = ClaimNames(settings.jwt_tenant_claim, settings.jwt_groups_claim, settings.jwt_scope_claim)
    return ExternalIssuer(
        Trust(
            jwks_url=settings.jwks_url,
            issuer=settings.jwt_issuer,
            audience=settings.jwt_audience,
            algorithm=settings.jwt_algorithm,
            claims=names,
            default_scope=settings.jwt_default_scope,
        )
    )


@contextmanager
def _only_edge(database: Path) -> Iterator[None]:
    """Hold the SQLite database for this process: a second edge would take the first one's turns for dead."""
    path = database.with_name(f"{database.name}.lock")
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as err:
        raise StartupError(f"{path} cannot be made ({err.strerror}); set EDGE_DATA_DIR") from err
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            raise StartupError(
                f"another edge uses {database}; SQLite serves one edge: stop the other one, give this one another "
                "EDGE_DATA_DIR, or move to PostgreSQL with EDGE_DATABASE_URL"
            ) from err
        yield
    finally:
        os.close(lock)


@asynccontextmanager
async def _in_background(library: SessionLibrary) -> AsyncIterator[None]:
    sweeper = asyncio.create_task(library.sweep_for_ever())
    try:
        yield
    finally:
        sweeper.cancel()
        # It lets go of its connection before the database is closed.
        await asyncio.wait({sweeper}, timeout=LAST_WRITES_S)
