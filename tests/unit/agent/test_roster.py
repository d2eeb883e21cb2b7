"""The roster: the only description of the team, checked whole before anything starts."""

from pathlib import Path

import pytest

from agent_service.errors import StartupError
from agent_service.team.build import build_team
from agent_service.team.spec import DEFAULT_ROSTER, Roster, load_roster
from agent_service.types import AgentInfo, AgentName, CollectionName, Strategy

ROUTER = """
[[agents]]
name = "router"
description = "Routes."
instructions = "router.md"
hands_off_to = ["billing"]
"""
BILLING = """
[[agents]]
name = "billing"
description = "Money."
instructions = "billing.md"
collections = ["billing", "shared"]
strategy = "rag"
"""


def written(folder: Path, text: str) -> Path:
    for name in ("router", "billing"):
        (folder / f"{name}.md").write_text(f"You are {name}.\n", encoding="utf-8")
    path = folder / "roster.toml"
    path.write_text(text, encoding="utf-8")
    return path


def loaded(folder: Path, text: str) -> Roster:
    return load_roster(written(folder, text))


# --- the shipped roster ---


def test_the_shipped_roster_loads_with_the_teams_strategies() -> None:
    roster = load_roster()

    assert roster.entry == "orchestrator"
    assert {agent.name: agent.strategy for agent in roster.agents} == {
        "orchestrator": None,
        "billing": Strategy.HYBRID,
        "technical": Strategy.RAG,
        "policy": Strategy.CAG,
    }


def test_every_agent_of_the_shipped_roster_has_a_prompt_and_can_be_routed_to() -> None:
    roster = load_roster()

    assert set(roster.prompts) == {agent.name for agent in roster.agents}
    assert all(roster.prompts.values())
    entry = roster.spec("orchestrator")
    assert entry is not None
    assert set(entry.hands_off_to) == {agent.name for agent in roster.specialists}


def test_every_specialist_of_the_shipped_roster_has_sample_documents() -> None:
    samples = DEFAULT_ROSTER.parents[2] / "examples" / "knowledge"

    for collection in load_roster().collections:
        assert list((samples / collection).glob("*.md")), collection


def test_the_shipped_roster_gives_tools_to_who_needs_them_and_nobody_a_cancellation() -> None:
    roster = load_roster()

    assert {agent.name: agent.tools for agent in roster.agents if agent.tools} == {
        "billing": ("order_status", "search_documents"),
        "technical": ("search_documents",),
    }
    assert "cancel_order" not in {tool.name for tool in roster.tools}
    assert roster.link_hosts == ("rosterlund.example",)


def test_the_shipped_prompts_name_no_tool_that_their_agent_has_not() -> None:
    roster = load_roster()

    for agent in roster.agents:
        for tool in roster.tools:
            assert tool.name not in roster.prompts[agent.name] or tool.name in agent.tools


# --- reading ---


def test_prompts_are_read_from_beside_the_roster_and_stripped(tmp_path: Path) -> None:
    roster = loaded(tmp_path, f'entry = "router"\n{ROUTER}{BILLING}')

    assert roster.prompts == {"router": "You are router.", "billing": "You are billing."}


def test_an_agent_that_is_left_out_of_a_table_gets_the_defaults(tmp_path: Path) -> None:
    spec = loaded(tmp_path, f'entry = "billing"\n{BILLING}').spec("billing")

    assert spec is not None
    assert (spec.budget_tokens, spec.max_output_tokens, spec.model, spec.hands_off_to) == (4000, 2048, None, ())


def test_a_team_of_one_is_a_team(tmp_path: Path) -> None:
    roster = loaded(tmp_path, f'entry = "billing"\n{BILLING}')

    assert [agent.name for agent in roster.specialists] == ["billing"]


def test_collections_are_listed_once_in_the_rosters_order(tmp_path: Path) -> None:
    other = BILLING.replace('name = "billing"', 'name = "tax"').replace('"billing", "shared"', '"tax", "billing"')

    roster = loaded(tmp_path, f'entry = "billing"\n{BILLING}{other}')

    assert roster.collections == ("billing", "shared", "tax")


def test_an_agent_that_is_not_there_has_no_spec(tmp_path: Path) -> None:
    assert loaded(tmp_path, f'entry = "billing"\n{BILLING}').spec("nobody") is None


def test_tools_are_had_in_the_agents_order_with_the_usual_limits(tmp_path: Path) -> None:
    text = f'{ENTRY}{BILLING}tools = ["orders", "find"]{FIND}{ORDERS}{SHOP}url = "http://shop.example/mcp"'

    roster = loaded(tmp_path, text)

    tools = roster.tools_of(roster.agents[0])
    assert [tool.name for tool in tools] == ["orders", "find"]
    assert {(tool.timeout_s, tool.max_characters) for tool in tools} == {(10.0, 8_000)}


def test_checks_are_had_by_what_they_are_on_those_of_the_team_first(tmp_path: Path) -> None:
    own = OWN + 'pattern = "x"\n'
    roster = loaded(
        tmp_path,
        f'{ENTRY}team_guardrails = ["clean", "short"]\n{BILLING}guardrails = ["own", "short"]{SHORT}{CLEAN}{own}',
    )
    (billing,) = roster.agents

    assert [check.name for check in roster.guardrails_of(billing, "input")] == ["short", "own"]
    (clean,) = roster.guardrails_of(billing, "output")
    assert (clean.name, clean.message, clean.timeout_s) == ("clean", "No codes.", 0.5)


def test_a_check_that_nobody_names_holds_for_nobody(tmp_path: Path) -> None:
    roster = loaded(tmp_path, f"{ENTRY}{BILLING}{SHORT}")

    assert roster.guardrails_of(roster.agents[0], "input") == ()


def test_hosts_of_links_are_names_with_or_without_dots(tmp_path: Path) -> None:
    hosts = '["rosterlund.example", "xn--rster-fua.example", "localhost", "a-b.c1"]'

    roster = loaded(tmp_path, f"{ENTRY}link_hosts = {hosts}\n{BILLING}")

    assert roster.link_hosts == ("rosterlund.example", "xn--rster-fua.example", "localhost", "a-b.c1")


@pytest.mark.parametrize("effort", ["none", "minimal", "low", "medium", "high", "xhigh"])
def test_an_agents_model_is_set_as_the_roster_says(tmp_path: Path, effort: str) -> None:
    text = f'{ENTRY}{BILLING}temperature = 0\nreasoning_effort = "{effort}"\nmax_output_tokens = 16\n'

    settings = build_team(loaded(tmp_path, text)).direct[AgentName("billing")].model_settings

    assert (settings.temperature, settings.max_tokens) == (0.0, 16)
    assert settings.reasoning is not None
    assert settings.reasoning.effort == effort


def test_what_is_left_out_is_left_to_the_model(tmp_path: Path) -> None:
    settings = build_team(loaded(tmp_path, ENTRY + BILLING)).routed[AgentName("billing")].model_settings

    assert (settings.temperature, settings.reasoning) == (None, None)


# --- listing ---


def test_the_listing_begins_with_the_entry_and_keeps_the_rosters_order(tmp_path: Path) -> None:
    tax = BILLING.replace('name = "billing"', 'name = "tax"')

    roster = loaded(tmp_path, f'entry = "router"\n{BILLING}{tax}{ROUTER}')

    assert [agent.name for agent in roster.listing("m")] == ["router", "billing", "tax"]


def test_the_listing_says_what_callers_may_know(tmp_path: Path) -> None:
    named = BILLING.replace('strategy = "rag"', 'strategy = "rag"\nmodel = "large"')

    router, billing = loaded(tmp_path, f'entry = "router"\n{ROUTER}{named}').listing("small")

    assert router == AgentInfo(AgentName("router"), "Routes.", None, "small", (), entry=True)
    assert billing == AgentInfo(
        AgentName("billing"), "Money.", Strategy.RAG, "large", (CollectionName("billing"), CollectionName("shared"))
    )


# --- broken rules ---

ENTRY = 'entry = "billing"\n'
FIND = """
[[tools]]
name = "find"
builtin = "search"
"""
ORDERS = """
[[tools]]
name = "orders"
mcp_server = "shop"
"""
SHOP = """
[[mcp_servers]]
name = "shop"
"""
SHORT = """
[[guardrails]]
name = "short"
on = "input"
max_characters = 100
"""
CLEAN = """
[[guardrails]]
name = "clean"
on = "output"
pattern = "4711"
message = "No codes."
timeout_s = 0.5
"""
OWN = """
[[guardrails]]
name = "own"
on = "input"
"""


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('entry = "ghost"\n' + BILLING, "ghost"),
        (ENTRY + BILLING + 'hands_off_to = ["phantom"]', "phantom"),
        (ENTRY + BILLING + BILLING, "defined twice.*billing"),
        (ENTRY + BILLING.replace('strategy = "rag"', ""), "billing.*collections and strategy go together"),
        (ENTRY + BILLING.replace('collections = ["billing", "shared"]', ""), "collections and strategy go together"),
        (ENTRY + BILLING.replace('"rag"', '"magic"'), "strategy.*'rag', 'cag' or 'hybrid'"),
        (ENTRY + BILLING.replace('name = "billing"', 'name = "Billing Team"'), "name"),
        (ENTRY + BILLING.replace('"Money."', '""'), "description"),
        (ENTRY + BILLING.replace('description = "Money."\n', ""), "description.*required"),
        (ENTRY + BILLING.replace('"billing", "shared"', '"not a collection"'), "collections"),
        (ENTRY + BILLING + "budget_tokens = 1", "budget_tokens"),
        (ENTRY + BILLING + "max_input_tokens = 1", "max_input_tokens"),
        (ENTRY + BILLING + "max_output_tokens = 32769", "max_output_tokens"),
        (ENTRY + BILLING + 'stratgey = "rag"', "stratgey"),
        (ENTRY + 'leader = "billing"\n' + BILLING, "leader"),
        (BILLING, "entry"),
        (ENTRY, "agents"),
        (ENTRY + "agents = []", "agents"),
        (ENTRY + BILLING + 'tools = ["ghost"]', "tools.*does not define.*ghost"),
        (ENTRY + BILLING + 'tools = ["find", "find"]' + FIND, "tools are named twice"),
        (ENTRY + BILLING + FIND + FIND, "tools defined twice.*find"),
        (ENTRY + BILLING + FIND + 'mcp_server = "shop"', "exactly one of builtin, function, mcp_server"),
        (ENTRY + BILLING + '[[tools]]\nname = "x"', "exactly one of builtin, function, mcp_server"),
        (ENTRY + BILLING + '[[tools]]\nname = "x"\nfunction = "no colon"', "function"),
        (ENTRY + BILLING + FIND + "timeout_s = 0", "timeout_s"),
        (ENTRY + BILLING + FIND + "max_characters = 0", "max_characters"),
        ('entry = "router"\n' + ROUTER + 'tools = ["find"]' + BILLING + FIND, "router.*no collections to search"),
        (ENTRY + BILLING + ORDERS, "mcp_servers.*does not define.*shop"),
        (ENTRY + BILLING + SHOP, "either a command or a url"),
        (ENTRY + BILLING + SHOP + 'command = ["x"]\nurl = "http://x"', "either a command or a url"),
        (ENTRY + BILLING + SHOP + 'url = "ftp://x"', "http:// or https://"),
        (ENTRY + BILLING + SHOP + 'command = ["x"]\nheaders = { A = "B" }', "headers go with a url"),
        (ENTRY + BILLING + SHOP + 'url = "http://x"\nenv = ["B"]', "env goes with a command"),
        (ENTRY + BILLING + SHOP + 'url = "http://x"\nheaders = { A = "Bearer secret" }', "headers"),
        (ENTRY + BILLING + SHOP + 'url = "http://x"\nconnect_timeout_s = 0', "connect_timeout_s"),
        (ENTRY + BILLING + (SHOP + 'url = "http://x"') * 2, "mcp_servers defined twice.*shop"),
        (ENTRY + BILLING + FIND.replace('"find"', '"Find it"'), "name"),
        (ENTRY + BILLING + FIND.replace('"search"', '"shell"'), "builtin"),
        (ENTRY + BILLING + FIND + "timeout_s = 301", "timeout_s"),
        (ENTRY + BILLING + "temperature = -0.1", "temperature"),
        (ENTRY + BILLING + "temperature = 2.1", "temperature"),
        (ENTRY + BILLING + 'temperature = "warm"', "temperature"),
        (ENTRY + BILLING + 'reasoning_effort = "extreme"', "reasoning_effort"),
        (ENTRY + BILLING + "max_output_tokens = 15", "max_output_tokens"),
        (ENTRY + 'link_hosts = ["https://rosterlund.example"]\n' + BILLING, "link_hosts"),
        (ENTRY + 'link_hosts = ["Rosterlund.example"]\n' + BILLING, "link_hosts"),
        (ENTRY + 'link_hosts = ["*.rosterlund.example"]\n' + BILLING, "link_hosts"),
        (ENTRY + 'link_hosts = ["rosterlund.example:443"]\n' + BILLING, "link_hosts"),
        (ENTRY + 'link_hosts = ["rosterlund.example/a"]\n' + BILLING, "link_hosts"),
        (ENTRY + 'link_hosts = ["rosterlund.example."]\n' + BILLING, "link_hosts"),
        (ENTRY + 'link_hosts = [".example"]\n' + BILLING, "link_hosts"),
        (ENTRY + 'link_hosts = ["röster.example"]\n' + BILLING, "link_hosts"),
        (ENTRY + 'link_hosts = [""]\n' + BILLING, "link_hosts"),
        (ENTRY + BILLING + 'guardrails = ["ghost"]', "guardrails.*does not define.*ghost"),
        (ENTRY + 'team_guardrails = ["ghost"]\n' + BILLING, "guardrails.*does not define.*ghost"),
        (ENTRY + BILLING + 'guardrails = ["short", "short"]' + SHORT, "guardrails are named twice"),
        (ENTRY + BILLING + SHORT + SHORT, "guardrails defined twice.*short"),
        (ENTRY + BILLING + OWN, "exactly one of max_characters, pattern, function"),
        (ENTRY + BILLING + SHORT + 'pattern = "x"', "exactly one of max_characters, pattern, function"),
        (ENTRY + BILLING + OWN + 'pattern = "("', "pattern.*is no regular expression"),
        (ENTRY + BILLING + OWN + 'function = "no colon"', "function"),
        (ENTRY + BILLING + OWN + "max_characters = 0", "max_characters"),
        (ENTRY + BILLING + SHORT.replace('"input"', '"both"'), "on.*'input' or 'output'"),
        (ENTRY + BILLING + SHORT.replace('on = "input"\n', ""), "on.*required"),
        (ENTRY + BILLING + SHORT + "timeout_s = 0", "timeout_s"),
        (ENTRY + BILLING + SHORT + "timeout_s = 61", "timeout_s"),
        (ENTRY + BILLING + SHORT + 'message = ""', "message"),
        (ENTRY + BILLING + SHORT + 'mesage = "x"', "mesage"),
    ],
    ids=lambda value: value if isinstance(value, str) and "\n" not in value else "",
)
def test_a_broken_rule_is_a_start_up_error_that_names_it(tmp_path: Path, text: str, named: str) -> None:
    path = written(tmp_path, text)

    with pytest.raises(StartupError, match=f"(?s){named}") as caught:
        load_roster(path)

    assert "AGENT_ROSTER" in str(caught.value)
    assert str(path) in str(caught.value)


def test_malformed_toml_is_a_start_up_error_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="line 1"):
        loaded(tmp_path, "entry = \nagents = []")


def test_a_missing_roster_is_a_start_up_error(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"AGENT_ROSTER.*absent\.toml"):
        load_roster(tmp_path / "absent.toml")


def test_a_missing_prompt_is_a_start_up_error_that_names_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, ENTRY + BILLING)
    (tmp_path / "billing.md").unlink()

    with pytest.raises(StartupError, match=r"billing\.md"):
        load_roster(path)


def test_a_roster_that_is_not_utf_8_is_a_start_up_error(tmp_path: Path) -> None:
    path = tmp_path / "roster.toml"
    path.write_bytes('entry = "möbel"'.encode("latin-1"))

    with pytest.raises(StartupError, match=r"roster\.toml"):
        load_roster(path)


def test_a_prompt_that_is_not_utf_8_is_a_start_up_error(tmp_path: Path) -> None:
    path = written(tmp_path, ENTRY + BILLING)
    (tmp_path / "billing.md").write_bytes(b"\xff\xfe")

    with pytest.raises(StartupError, match="AGENT_ROSTER"):
        load_roster(path)


# --- the team built from it ---


def test_an_agent_asked_directly_has_no_hand_offs_unless_it_has_no_documents() -> None:
    team = build_team(load_roster())

    assert {name: len(agent.handoffs) for name, agent in team.routed.items()} == {
        "orchestrator": 3,
        "billing": 2,
        "technical": 2,
        "policy": 2,
    }
    assert {name: len(agent.handoffs) for name, agent in team.direct.items()} == {
        "orchestrator": 3,
        "billing": 0,
        "technical": 0,
        "policy": 0,
    }


def test_built_agents_carry_their_prompt_limit_and_description(tmp_path: Path) -> None:
    limited = BILLING + "max_output_tokens = 99\n"

    agent = build_team(loaded(tmp_path, ENTRY + limited)).routed[AgentName("billing")]

    assert (agent.instructions, agent.handoff_description) == ("You are billing.", "Money.")
    assert agent.model_settings.max_tokens == 99
    # Without it a server other than OpenAI's reports no usage on a stream.
    assert agent.model_settings.include_usage


def test_hand_offs_may_go_in_circles() -> None:
    team = build_team(load_roster())
    billing, technical = team.routed[AgentName("billing")], team.routed[AgentName("technical")]

    assert any(handoff is technical for handoff in billing.handoffs)
    assert any(handoff is billing for handoff in technical.handoffs)
