"""Generates `protos/gen` with the pinned grpcio-tools, and checks the committed copy against it.

Run as `python -m tests.support.protos generate | check`.
"""

import filecmp
import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parents[2]
PROTOS = ROOT / "protos"
GENERATED = PROTOS / "gen"


def generate(into: Path, protos: Path = PROTOS) -> None:
    """Generate messages, stubs and their types.

    Raises:
        RuntimeError: protoc refused.
    """
    into.mkdir(parents=True, exist_ok=True)
    scripts = Path(sys.executable).parent
    sources = sorted(str(path.relative_to(protos)) for path in (protos / "answerdesk").rglob("*.proto"))
    code = protoc.main(
        [
            "protoc",
            f"--proto_path={protos}",
            f"--proto_path={resources.files('grpc_tools') / '_proto'}",
            f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={scripts / 'protoc-gen-mypy_grpc'}",
            f"--python_out={into}",
            f"--grpc_python_out={into}",
            f"--mypy_out=quiet:{into}",
            f"--mypy_grpc_out=quiet:{into}",
            *sources,
        ]
    )
    if code:
        raise RuntimeError(f"protoc ended with exit code {code}")


def differences(committed: Path = GENERATED, protos: Path = PROTOS) -> list[str]:
    """Generated files that the committed copy lacks, has differently, or has in excess."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        generate(fresh, protos)
        wanted = _files(fresh)
        there = _files(committed)
        changed = {name for name in wanted & there if not filecmp.cmp(fresh / name, committed / name, shallow=False)}
    return sorted(changed | (wanted ^ there))


def _files(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix in {".py", ".pyi"}
    }


def main(command: str) -> int:
    """Generate, or check. Returns the exit code."""
    if command == "generate":
        generate(GENERATED)
        return 0
    drifted = differences()
    for name in drifted:
        print(f"protos/gen/{name} is not what the protos say; run make proto", file=sys.stderr)  # noqa: T201
    return 1 if drifted else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
