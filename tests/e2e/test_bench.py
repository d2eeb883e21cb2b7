"""The tools of `make bench`, a few tokens each: the upstream passes for OpenAI, both systems answer as scripted."""

import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.bench import load
from tests.bench.load import BrokenRunError, Target
from tests.bench.measure import Stand, measure
from tests.bench.pair import Upstream, running_pair, running_peer, running_upstream
from tests.bench.sampler import Cores
from tests.bench.scenarios import SMOKE
from tests.bench.script import Script

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks read /proc")]

SCRIPT = Script("q0", 5, 0, 0)


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    with running_upstream(tmp_path_factory.mktemp("upstream"), Cores.of_this_machine().tools) as running:
        yield running


@pytest.fixture
def client(upstream: Upstream) -> Iterator[openai.OpenAI]:
    environment = upstream.environment
    with openai.OpenAI(
        base_url=environment["OPENAI_BASE_URL"], api_key=environment["OPENAI_API_KEY"], max_retries=0
    ) as made:
        yield made


def test_the_upstream_streams_responses(client: openai.OpenAI) -> None:
    stream = client.responses.create(model="m", input=SCRIPT.question, stream=True)

    assert "".join(event.delta for event in stream if event.type == "response.output_text.delta") == SCRIPT.answer


def test_the_upstream_streams_chat_completions(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": SCRIPT.question}], stream=True
    )

    pieces = [choice.delta.content or "" for chunk in stream for choice in chunk.choices]
    assert "".join(pieces) == SCRIPT.answer


def test_the_upstream_counts_who_hangs_up(client: openai.OpenAI, upstream: Upstream) -> None:
    upstream.counts()
    slow = Script("q1", 100, 1, 0)
    with client.responses.create(model="m", input=slow.question, stream=True) as stream:
        next(iter(stream))
    client.close()

    assert upstream.counts()["hung_up"] == 1


def test_the_peer_answers_as_scripted_and_what_it_uses_is_seen(upstream: Upstream, tmp_path: Path) -> None:
    with running_peer(tmp_path, Cores.of_this_machine().services, upstream) as peer:
        measured = measure(peer, SMOKE, 1, Stand(Cores.of_this_machine(), upstream))

    assert (measured.answers, measured.tokens) == (4, 40)
    assert measured.cpu_ms > 0


def test_the_pair_answers_as_scripted_and_both_its_parts_are_seen(upstream: Upstream, tmp_path: Path) -> None:
    with running_pair(tmp_path, Cores.of_this_machine().services, upstream) as pair:
        measured = measure(pair, SMOKE, 1, Stand(Cores.of_this_machine(), upstream))

    assert (measured.answers, measured.tokens) == (4, 40)
    assert {name for name, part in measured.parts.items() if part.cpu_ms > 0} == {"agent", "edge"}


def test_an_answer_that_is_refused_fails_the_run(upstream: Upstream) -> None:
    nobody = Target("nobody", ("127.0.0.1", upstream.port), "/elsewhere", [{}], {}, b"", {})

    with pytest.raises(BrokenRunError, match="status 404"):
        load.run(nobody, SMOKE)
