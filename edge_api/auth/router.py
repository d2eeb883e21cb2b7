"""Accounts: register, sign in, be a guest, refresh, sign out, and who one is."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Request, Response
from fastapi.responses import JSONResponse

from edge_api.auth.dependencies import (
    AccountRoute,
    Accounts,
    CurrentPrincipal,
    GuardedRoute,
    GuestRoute,
    Limits,
    SignInRoute,
)
from edge_api.auth.schemas import Grant, LoginForm, Me, Registration, TokenReply, comparable
from edge_api.bodies import require_json
from edge_api.problem import problem_responses

COOKIE = "answerdesk_refresh"
COOKIE_PATH = "/api/auth"

router = APIRouter(prefix="/api/auth", tags=["accounts"], route_class=AccountRoute)
signing_in = APIRouter(prefix="/api/auth", tags=["accounts"], route_class=SignInRoute)
guests = APIRouter(prefix="/api/auth", tags=["accounts"], route_class=GuestRoute)
guarded = APIRouter(prefix="/api/auth", tags=["accounts"], route_class=GuardedRoute)

NO_STORE = {"Cache-Control": "no-store"}


@signing_in.post(
    "/register",
    summary="Make an account",
    status_code=201,
    response_model=TokenReply,
    responses=problem_responses(403, 409, 413, 415, 422, 429, 503),
    dependencies=[Depends(require_json)],
)
async def register(body: Registration, accounts: Accounts) -> Response:
    """Makes an account with the scope `chat`, and signs it in."""
    return _tokens(await accounts.register(body.username, body.password), status=201)


@signing_in.post(
    "/login",
    summary="Sign in",
    response_model=TokenReply,
    responses=problem_responses(401, 403, 413, 422, 429, 503),
)
async def login(form: Annotated[LoginForm, Form()], accounts: Accounts, limits: Limits) -> Response:
    """The OAuth2 password form. The refresh token is set as a cookie for `/api/auth`."""
    # Many addresses may try one account; so many that one of them alone cannot keep its owner out.
    await limits.hit("account", comparable(form.username))
    return _tokens(await accounts.login(form.username, form.password))


@guests.post(
    "/guest",
    summary="Be a guest",
    status_code=201,
    response_model=TokenReply,
    responses=problem_responses(403, 429, 503),
)
async def guest(accounts: Accounts) -> Response:
    """An identity of its own for 24 hours, with the scope `chat`; then it is gone with all it said."""
    return _tokens(await accounts.guest(), status=201)


@router.post(
    "/refresh",
    summary="Get a new access token",
    response_model=TokenReply,
    responses=problem_responses(401, 403, 429, 503),
)
async def refresh(request: Request, accounts: Accounts) -> Response:
    """Uses up the refresh cookie and sets the next one. A cookie that was used before ends the whole sign-in."""
    return _tokens(await accounts.refresh(request.cookies.get(COOKIE)))


@router.post("/logout", summary="Sign out", status_code=204, responses=problem_responses(403, 429, 503))
async def logout(request: Request, accounts: Accounts) -> Response:
    """Ends every refresh token of this sign-in and removes the cookie. The access token runs out by itself."""
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
