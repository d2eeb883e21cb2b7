"""One running pair over the sample documents, shared by the tests that do not disturb it."""

from collections.abc import Iterator

import pytest

from tests.support.processes import Pair, running_pair


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Both services, ready, documents loaded."""
    with running_pair(tmp_path_factory.mktemp("pair")) as running:
        yield running
