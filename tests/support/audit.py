"""Known vulnerabilities in what is locked: pip-audit over a requirements file, and honest about not having looked.

Run as `python -m tests.support.audit requirements/run.txt [service address]`.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx

# Not `--vulnerability-service pypi`: mirrors of PyPI answer 404 there, and pip-audit takes that for "nothing known".
OSV_URL = "https://api.osv.dev/v1/query"
PROBE_TIMEOUT_S = 10.0
AUDIT_TIMEOUT_S = 300.0


def is_reachable(url: str, lock: Path) -> bool:
    """Whether the service answers a question about the first locked package."""
    first = re.search(r"^([\w.-]+)==(\S+)", lock.read_text(), re.MULTILINE)
    if first is None:
        raise ValueError(f"{lock} locks nothing")
    name, version = first.groups()
    question = {"package": {"name": name, "ecosystem": "PyPI"}, "version": version}
    try:
        answer = httpx.post(url, json=question, timeout=PROBE_TIMEOUT_S)
        return answer.status_code == httpx.codes.OK and isinstance(answer.json(), dict)
    except (httpx.HTTPError, ValueError):
        return False


def findings(report: dict[str, Any]) -> list[str]:
    """One line per vulnerability in pip-audit's JSON, and per package that it did not look at."""
    lines = []
    for package in report["dependencies"]:
        if reason := package.get("skip_reason"):
            lines.append(f"{package['name']}: not audited: {reason}")
        for found in package.get("vulns", ()):
            names = ", ".join([found["id"], *found["aliases"]])
            fixed = ", ".join(found["fix_versions"]) or "no version yet"
            lines.append(f"{package['name']} {package['version']}: {names}; fixed in {fixed}")
    return lines


def audit(lock: Path, url: str = OSV_URL) -> int:
    """Look every locked package up. Returns the exit code: 0 also when the service cannot be reached, and says so."""
    if not is_reachable(url, lock):
        return _say(f"dependency audit: {url} is not reachable: skipped", 0)
    options = ["--requirement", str(lock), "--disable-pip", "--require-hashes", "--progress-spinner", "off"]
    service = ["--vulnerability-service", "osv", "--osv-url", url, "--format", "json", "--aliases", "on"]
    command = [sys.executable, "-m", "pip_audit", *options, *service]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=AUDIT_TIMEOUT_S, check=False)
    try:
        report = json.loads(ran.stdout)
    except json.JSONDecodeError:
        # A report is only missing when pip-audit broke off: because the service went away, or for a fault of ours.
        if not is_reachable(url, lock):
            return _say(f"dependency audit: {url} went away: skipped", 0)
        return _say(ran.stderr, 1)
    if found := findings(report):
        return _say("\n".join(found), 1)
    return _say(
        f"dependency audit: nothing known against {len(report['dependencies'])} packages of {lock}", ran.returncode
    )


def _say(text: str, code: int) -> int:
    print(text, file=sys.stderr if code else sys.stdout)
    return code


if __name__ == "__main__":
    sys.exit(audit(Path(sys.argv[1]), *sys.argv[2:]))
