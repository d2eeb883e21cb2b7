"""What operators do at the terminal beside serving: migrate, manage accounts, mint a token."""

import argparse
import asyncio
import getpass
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from edge_api.agent_client.signing import SIGNING_KEY_FILE, Caller, CallerSigner
from edge_api.auth.administration import AccountAdministration, Change
from edge_api.auth.passwords import Passwords
from edge_api.db import Database
from edge_api.errors import EdgeError, StartupError
from edge_api.migrations import schema
from edge_api.settings import Settings
from edge_api.wiring import open_database

MAX_TTL_S = 3_600.0
REMEDIES = {
    "schema_outdated": "run: python -m edge_api migrate",
    "schema_newer": "it was made by a newer version of this edge",
    "unreachable": "it cannot be reached",
    "timeout": "it does not answer in time",
}


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the commands to the parser."""
    commands.add_parser("migrate", help="bring the database to this version's schema")
    _add_users(commands.add_parser("users", help="manage built-in accounts"))
    token = commands.add_parser("token", help="print a short-lived token for calling the agent service")
    token.add_argument("--subject", default="operator", help="who calls (default: operator)")
    token.add_argument("--tenant", default="default", help="whose documents (default: default)")
    token.add_argument("--group", action="append", default=[], help="a group the caller is in; repeatable")
    token.add_argument(
        "--ttl-s", type=_ttl_s, default=60.0, metavar="SECONDS", help="how long it is valid (default: 60)"
    )


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Carry a command out. Returns the exit code: 1 for what could not be done.

    Raises:
        StartupError: a setting is missing or wrong, or the database is not usable.
    """
    match arguments.command:
        case "migrate":
            return asyncio.run(_migrate(settings))
        case "users":
            return asyncio.run(_with_accounts(settings, arguments))
        case _:
            print(_token(settings, arguments))  # noqa: T201
            return 0


def _add_users(users: argparse.ArgumentParser) -> None:
    actions = users.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="print the accounts")
    for name, text in (
        ("add", "make an account; its password is asked for, or read from standard input"),
        ("set", "change an account: what is given replaces what it has"),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument("username")
        action.add_argument("--tenant", help="whose documents the account reads")
        groups = action.add_mutually_exclusive_group()
        groups.add_argument("--group", action="append", help="a group the account is in; repeatable")
        groups.add_argument("--no-groups", action="store_const", const=[], dest="group", help="in no group")
        action.add_argument("--scope", action="append", choices=("chat", "documents:write", "admin"), help="repeatable")
    for name, text in (
        ("password", "set a password, and end every sign-in"),
        ("disable", "end every sign-in and take no new one"),
        ("enable", "take it back"),
    ):
        actions.add_parser(name, help=text).add_argument("username")


async def _migrate(settings: Settings) -> int:
    database = open_database(settings)
    try:
        before = await schema.state(database)
        if before == "schema_newer":
            raise StartupError(f"the database is not touched: {REMEDIES[before]}")
        await schema.upgrade(database)
    except EdgeError as err:
        raise StartupError(f"the database could not be migrated: {err}") from err
    finally:
        await database.close()
    print(f"schema {schema.head()}: {'up to date' if before == 'ok' else 'migrated'}")  # noqa: T201
    return 0


async def _with_accounts(settings: Settings, arguments: argparse.Namespace) -> int:
    database = open_database(settings)
    passwords = Passwords()
    try:
        await _require_schema(database)
        accounts = AccountAdministration(database, passwords)
        for line in await ACTIONS[arguments.action](accounts, arguments):
            print(line)  # noqa: T201
    except EdgeError as err:
        print(f"edge_api: {err}", file=sys.stderr)  # noqa: T201
        return 1
    finally:
        passwords.close()
        await database.close()
    return 0


async def _require_schema(database: Database) -> None:
    state = await schema.state(database)
    if state == "schema_outdated" and database.is_sqlite:
        # As the edge itself does at its start.
        await schema.upgrade(database)
    elif state != "ok":
        raise StartupError(f"the database is not usable: {REMEDIES[state]}")


async def _list(accounts: AccountAdministration, _: argparse.Namespace) -> list[str]:
    return [
        f"{each.username:<32} tenant={each.tenant} groups={','.join(each.groups) or '-'} "
        f"scopes={','.join(each.scopes) or '-'}{' disabled' if each.disabled else ''}"
        for each in await accounts.all()
    ]


async def _add(accounts: AccountAdministration, arguments: argparse.Namespace) -> list[str]:
    await accounts.add(arguments.username, _password(), _change(arguments))
    return [f"{arguments.username} added"]


async def _set(accounts: AccountAdministration, arguments: argparse.Namespace) -> list[str]:
    await accounts.change(arguments.username, _change(arguments))
    return [f"{arguments.username} changed; it counts from the next refresh of a token on"]


async def _set_password(accounts: AccountAdministration, arguments: argparse.Namespace) -> list[str]:
    await accounts.set_password(arguments.username, _password())
    return [f"{arguments.username}: password set, every sign-in ended"]


async def _disable(accounts: AccountAdministration, arguments: argparse.Namespace) -> list[str]:
    await accounts.change(arguments.username, Change(disabled=True))
    return [f"{arguments.username} disabled"]


async def _enable(accounts: AccountAdministration, arguments: argparse.Namespace) -> list[str]:
    await accounts.change(arguments.username, Change(disabled=False))
    return [f"{arguments.username} enabled"]


ACTIONS: dict[str, Callable[[AccountAdministration, argparse.Namespace], Coroutine[Any, Any, list[str]]]] = {
    "list": _list,
    "add": _add,
    "set": _set,
    "password": _set_password,
    "disable": _disable,
    "enable": _enable,
}


def _change(arguments: argparse.Namespace) -> Change:
    groups = None if arguments.group is None else tuple(dict.fromkeys(arguments.group))
    scopes = None if arguments.scope is None else tuple(dict.fromkeys(arguments.scope))
    return Change(tenant=arguments.tenant, groups=groups, scopes=scopes)


def _password() -> str:
    """A password, never from the command line: others on the machine can read that."""
    return getpass.getpass() if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")


def _token(settings: Settings, arguments: argparse.Namespace) -> str:
    made = settings.data_dir / SIGNING_KEY_FILE
    if settings.agent_signing_key is not None:
        key = settings.agent_signing_key.get_secret_value()
    elif made.is_file():
        key = str(made)
    else:
        raise StartupError(f"EDGE_AGENT_SIGNING_KEY must be set; there is no {made} of `make run` either")
    caller = Caller(arguments.subject, arguments.tenant, tuple(dict.fromkeys(arguments.group)))
    return CallerSigner(key).sign(caller, ttl_s=arguments.ttl_s)


def _ttl_s(text: str) -> float:
    value = float(text)
    if not 1 <= value <= MAX_TTL_S:
        raise argparse.ArgumentTypeError(f"must be 1 to {MAX_TTL_S:.0f} seconds")
    return value
