"""Are there known vulnerabilities in the tested versions? Asked by name and version.

    python .ci/audit.py [options of pip-audit]

The answer comes from OSV (https://osv.dev), the database of the Python Packaging Authority's own
advisories and others. Ends with 1 where a version has one. Where the database is not reached,
which is no fault of the versions, it says so and ends with 0.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

PINS = Path(__file__).parents[1] / "constraints.txt"
UNREACHED = ("ConnectionError", "ConnectTimeout", "ReadTimeout", "ServiceError")

# ID = why it does not concern the course. One that no longer is reported is to be deleted.
ACCEPTED: dict[str, str] = {}


def audit(options: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [sys.executable, "-m", "pip_audit", "--vulnerability-service", "osv"]
        command += ["--requirement", str(PINS), "--no-deps", "--disable-pip"]
        command += ["--progress-spinner", "off", "--format", "json", "--output", str(report)]
        done = subprocess.run([*command, *options], capture_output=True, text=True)
        if not report.exists():
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            if any(name in last for name in UNREACHED):
                print(f"The tested versions were not audited, the database is not reached: {last}")
                return 0
            print(done.stderr)
            return 1
        packages = json.loads(report.read_text())["dependencies"]
    found, asked = set(), 0
    for package in packages:
        asked += "skip_reason" not in package
        if "skip_reason" in package:
            print(f"not audited: {package['name']}: {package['skip_reason']}")
        for one in package.get("vulns", []):
            found.add(one["id"])
            fixed = ", ".join(one["fix_versions"]) or "no version yet"
            accepted = ACCEPTED.get(one["id"])
            note = f"accepted: {accepted}" if accepted else f"mended in {fixed}"
            print(f"{package['name']} {package['version']}: {one['id']}: {note}")
    print(f"audited: {asked} packages, {len(found)} known vulnerabilities")
    for old in sorted(ACCEPTED.keys() - found):
        print(f"{old} is accepted and no longer reported: delete it from {Path(__file__).name}")
    return int(not found <= ACCEPTED.keys())


if __name__ == "__main__":
    sys.exit(audit(sys.argv[1:]))
