"""The edge stays slim: what it must not bring with it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
FORBIDDEN = ("agents", "openai", "qdrant_client", "qdrant_edge", "numpy", "mcp", "agent_service")


def test_starting_the_edge_imports_neither_retrieval_nor_generation() -> None:
    code = f"import edge_api.__main__, sys; print([name for name in {FORBIDDEN!r} if name in sys.modules])"

    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'protos/gen'}"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert done.stdout.strip() == "[]"
