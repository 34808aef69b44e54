"""Look for known vulnerabilities of the tested packages, and run bandit over the code.

    make audit

The exit status is 1 if there is a finding. Advisories come from PyPI. If it cannot be reached or knows none
of the packages (a mirror), the output says that nothing was audited.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
JUSTIFIED = {
    "B615": "from_pretrained without a revision: `source_of` gives it as **source, unseen by bandit",
}
"""Bandit's checks of medium or higher severity that are skipped, with the reason."""


def audited(answer: "subprocess.CompletedProcess[str]") -> tuple[int, list[str]]:
    """Return the number of packages that `pip-audit --format json` looked up, and its findings."""
    try:
        packages: list[dict[str, Any]] = json.loads(answer.stdout)["dependencies"]
    except (ValueError, KeyError):
        return 0, []
    known = [package for package in packages if "skip_reason" not in package]
    found = [f"{p['name']} {p['version']}: {vuln['id']}" for p in known for vuln in p["vulns"]]
    return len(known), found


def _run(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True)


def main() -> int:
    """Run both, print their findings, and return the exit status."""
    options = ["--disable-pip", "--no-deps", "--format", "json", "--progress-spinner", "off"]
    answer = _run("pip_audit", "-r", "constraints.txt", *options)
    n, vulnerable = audited(answer)
    print(*vulnerable, sep="\n", end="\n" if vulnerable else "")
    if n:
        print(f"pip-audit: {n} packages of constraints.txt, {len(vulnerable)} known vulnerabilities")
    else:
        last = (answer.stderr.strip().splitlines() or [""])[-1]
        why = last if answer.returncode else "the index knows none of the packages"
        print(f"pip-audit: no advisory source can be reached, nothing was audited ({why[:200]})")
    code = _run("bandit", "-q", "-ll", "-s", ",".join(JUSTIFIED), "-r", "lora_hf", "scripts")
    print(code.stdout.strip() or f"bandit: nothing of medium severity or more ({code.returncode=})")
    return 1 if vulnerable or code.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
