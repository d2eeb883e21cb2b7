"""Accounts: register, sign in, be a guest, refresh, sign out, and who one is."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Request, Response
from fastapi.responses import JSONResponse

from edge_api.auth.dependencies import Accounts, CurrentPrincipal, GuardedRoute, Limits, address_of
from edge_api.auth.origin import require_own_origin
from edge_api.auth.schemas import Grant, LoginForm, Me, Registration, TokenReply, comparable
from edge_api.bodies import require_json
from edge_api.problem import problem_responses

COOKIE = "answerdesk_refresh"
COOKIE_PATH = "/api/auth"

router = APIRouter(prefix="/api/auth", tags=["accounts"])
guarded = APIRouter(prefix="/api/auth", tags=["accounts"], route_class=GuardedRoute)

NO_STORE = {"Cache-Control": "no-store"}


@router.post(
    "/register",
    summary="Make an account",
    status_code=201,
    response_model=TokenReply,
    responses=problem_responses(403, 409, 413, 415, 422, 429, 503),
    dependencies=[Depends(require_json)],
)
async def register(request: Request, body: Registration, accounts: Accounts, limits: Limits) -> Response:
    """Makes an account with the scope `chat`, and signs it in."""
    await limits.hit("login", address_of(request))
    return _tokens(await accounts.register(body.username, body.password), status=201)


@router.post(
    "/login",
    summary="Sign in",
    response_model=TokenReply,
    responses=problem_responses(401, 413, 422, 429, 503),
)
async def login(request: Request, form: Annotated[LoginForm, Form()], accounts: Accounts, limits: Limits) -> Response:
    """The OAuth2 password form. The refresh token is set as a cookie for `/api/auth`."""
    await limits.hit("login", address_of(request))
    # Many addresses that try one account are as few as one.
    await limits.hit("login", f"name:{comparable(form.username)}")
    return _tokens(await accounts.login(form.username, form.password))


@router.post(
    "/guest",
    summary="Be a guest",
    status_code=201,
    response_model=TokenReply,
    responses=problem_responses(403, 429, 503),
)
async def guest(request: Request, accounts: Accounts, limits: Limits) -> Response:
    """An identity of its own for 24 hours, with the scope `chat`; then it is gone with all it said."""
    await limits.hit("guest", address_of(request))
    return _tokens(await accounts.guest(), status=201)


@router.post(
    "/refresh",
    summary="Get a new access token",
    response_model=TokenReply,
    responses=problem_responses(401, 403, 429, 503),
)
async def refresh(request: Request, accounts: Accounts, limits: Limits) -> Response:
    """Uses up the refresh cookie and sets the next one. A cookie that was used before ends the whole sign-in."""
    require_own_origin(request, request.app.state.origins)
    await limits.hit("address", address_of(request))
    return _tokens(await accounts.refresh(request.cookies.get(COOKIE)))


@router.post("/logout", summary="Sign out", status_code=204, responses=problem_responses(403, 429, 503))
async def logout(request: Request, accounts: Accounts, limits: Limits) -> Response:
    """Ends every refresh token of this sign-in and removes the cookie. The access token runs out by itself."""
    require_own_origin(request, request.app.state.origins)
    await limits.hit("address", address_of(request))
    await accounts.logout(request.cookies.get(COOKIE))
    response = Response(status_code=204, headers=NO_STORE)
    response.delete_cookie(COOKIE, path=COOKIE_PATH, secure=True, httponly=True, samesite="strict")
    return response


@guarded.get("/me", summary="Who am I?", response_model=Me, responses=problem_responses(503))
async def me(principal: CurrentPrincipal, accounts: Accounts) -> dict[str, Any]:
    """The caller as the token says, with the name of a built-in account."""
    return {
        "user_id": principal.user_id,
        "username": await accounts.username(principal),
        "issuer": principal.issuer,
        "subject": principal.subject,
        "tenant": principal.tenant,
        "groups": list(principal.groups),
        "scopes": sorted(principal.scopes),
        "guest": principal.guest,
    }


def _tokens(grant: Grant, *, status: int = 200) -> Response:
    body = {"access_token": grant.access_token, "token_type": "bearer", "expires_in": grant.expires_in_s}
    response = JSONResponse(body, status, NO_STORE)
    response.set_cookie(
        COOKIE,
        grant.refresh_token,
        max_age=grant.refresh_for_s,
        path=COOKIE_PATH,
        secure=True,
        httponly=True,
        samesite="strict",
    )
    return response
