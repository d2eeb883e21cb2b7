"""Who may pass: every route of this edge is either public by name, or guarded by a scope."""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Depends, Request, Response, Security
from fastapi.routing import APIRoute
from fastapi.security import OAuth2PasswordBearer

from edge_api.agent_client.signing import Caller
from edge_api.auth.origin import require_own_origin
from edge_api.auth.schemas import Principal, Scope
from edge_api.auth.service import AccountService
from edge_api.auth.tokens import Verifier
from edge_api.errors import MissingScopeError, UnauthenticatedError
from edge_api.limits import Bucket, RateLimits, address_key
from edge_api.problem import problem_responses

SCOPES = {
    "chat": "Ask, read documents, keep conversations.",
    "documents:write": "Add and delete documents.",
    "admin": "Operate this service.",
}

# Only describes the scheme, for OpenAPI and Swagger's Authorize button: the guard has checked the token before.
_scheme = OAuth2PasswordBearer(tokenUrl="/api/auth/login", scopes=SCOPES, auto_error=False)

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class Guard:
    """Lets requests pass: the address's rate, a valid token, its scope, the user's rate, in this order."""

    def __init__(self, verifier: Verifier, limits: RateLimits) -> None:
        self._verifier = verifier
        self._limits = limits

    async def admit(self, request: Request, scope: Scope | None) -> Principal:
        """The verified caller of a request. `scope` None: any valid token.

        Raises:
            UnauthenticatedError: there is no token, or no valid one.
            MissingScopeError: the token does not allow this.
            RateLimitedError: too many requests of this address or user.
        """
        await self._limits.hit("address", address_of(request))
        principal = await self._verifier.verify(_token_of(request))
        if scope is not None and scope not in principal.scopes:
            raise MissingScopeError(scope)
        await self._limits.hit("user", principal.user_id)
        return principal


class GuardedRoute(APIRoute):
    """A route for callers with a token. The body is not even read for anybody else."""

    scope: Scope | None = None

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        options["dependencies"] = [
            Security(_scheme, scopes=[self.scope] if self.scope else []),
            *(options.get("dependencies") or ()),
        ]
        options["responses"] = problem_responses(401, 403, 429) | (options.get("responses") or {})
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Handler:
        """See `APIRoute`."""
        inner = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            guard: Guard = request.app.state.guard
            request.state.principal = await guard.admit(request, self.scope)
            return await inner(request)

        return guarded


class AccountRoute(APIRoute):
    """A public route that deals with the refresh cookie. Foreign pages and crowds are refused before its body is read.

    A page of another origin may not sign people in, either: they would go on in an account that is not theirs.
    """

    bucket: Bucket | None = None

    def get_route_handler(self) -> Handler:
        """See `APIRoute`."""
        inner = super().get_route_handler()

        async def limited(request: Request) -> Response:
            require_own_origin(request, request.app.state.origins)
            limits: RateLimits = request.app.state.limits
            address = address_of(request)
            await limits.hit("address", address)
            if self.bucket is not None:
                await limits.hit(self.bucket, address)
            return await inner(request)

        return limited


class SignInRoute(AccountRoute):
    """Where passwords are hashed."""

    bucket = "login"


class GuestRoute(AccountRoute):
    """Where guests are made."""

    bucket = "guest"


class ChatRoute(GuardedRoute):
    """For callers who may ask."""

    scope = "chat"


class DocumentsWriteRoute(GuardedRoute):
    """For callers who may change documents."""

    scope = "documents:write"


def address_of(request: Request) -> str:
    """The client's address for counting; a proxy's word for it only where the proxy is trusted."""
    return address_key(request.client.host if request.client else None)


async def get_principal(request: Request) -> Principal:
    """The caller that the guard has verified."""
    principal: Principal = request.state.principal
    return principal


async def get_caller(principal: "CurrentPrincipal") -> Caller:
    """The caller as the agent service is told."""
    return Caller(principal.user_id, principal.tenant, principal.groups)


async def get_accounts(request: Request) -> AccountService:
    """The service that the lifespan made."""
    accounts: AccountService = request.app.state.accounts
    return accounts


async def get_limits(request: Request) -> RateLimits:
    """The buckets of this process."""
    limits: RateLimits = request.app.state.limits
    return limits


CurrentPrincipal = Annotated[Principal, Depends(get_principal)]
CurrentCaller = Annotated[Caller, Depends(get_caller)]
Accounts = Annotated[AccountService, Depends(get_accounts)]
Limits = Annotated[RateLimits, Depends(get_limits)]


def _token_of(request: Request) -> str:
    given = request.headers.getlist("authorization")
    scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    if scheme.lower() != "bearer" or not token.strip():
        raise UnauthenticatedError("send an access token as Authorization: Bearer")
    return token.strip()
