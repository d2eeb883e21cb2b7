"""One cluster for the tests that break its parts, made whole before each; and the figures that they measure."""

from collections.abc import Callable, Generator, Iterator

import pytest

from tests.conftest import require
from tests.support.cluster import Cluster, running_cluster

FIGURE = "figure"
FAILED = pytest.StashKey[bool]()


@pytest.fixture
def figures(record_property: Callable[[str, object], None], request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Say what was counted or measured; the end of the run shows it."""

    def say(text: str) -> None:
        print(text)  # noqa: T201 - for those who run this test alone, with -s
        record_property(FIGURE, f"{request.node.name}: {text}")

    return say


@pytest.fixture(scope="session")
def _cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    for name in ("postgres", "redis"):
        require(name)
    with running_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture
def cluster(_cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Two edges and two agents, all well. What a failed test left in their logs is shown with it."""
    _cluster.heal()
    yield _cluster
    if request.node.stash.get(FAILED, False):
        print(_cluster.complaints())  # noqa: T201


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let the fixtures know that a test failed."""
    report = yield
    if report.when == "call":
        item.stash[FAILED] = report.failed
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show the figures, of those that failed too."""
    reports = [each for kind in ("passed", "failed") for each in terminalreporter.stats.get(kind, ())]
    lines = [text for each in reports if each.when == "call" for name, text in each.user_properties if name == FIGURE]
    if lines:
        terminalreporter.section("figures")
        for line in lines:
            terminalreporter.write_line(line)
