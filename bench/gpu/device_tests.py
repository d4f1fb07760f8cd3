"""Runs the test executables of a bundle."""

import os
import re
import signal
import subprocess
import sys
import time

SUMMARY = re.compile(r"^test result: \w+\. (\d+) passed; (\d+) failed;", re.MULTILINE)
SKIPPED = re.compile(r"^(?:test \S+ \.\.\. )?((.+): skipped: .+)$", re.MULTILINE)
FAILED = re.compile(r"^test (\S+) \.\.\. FAILED$", re.MULTILINE)
# Characters of a failed test's output that are shown.
SHOWN = 20_000


def variables(bundle, test, environment):
    """What cargo would tell a test, and where things are here."""
    return {
        **environment,
        "CARGO_MANIFEST_DIR": str(bundle / test["package"]),
        "BALLAST_E2E_BINARY": str(bundle / "bin/ballast"),
        # Also on our software device: the bundle has neither its faults nor its counters.
        "BALLAST_TEST_DEVICE": "foreign",
        # Where the processes that a test starts find the libraries.
        "SOFTGPU_LIB": environment["LD_LIBRARY_PATH"],
    }


def run(bundle, test, environment, timeout):
    """Runs one executable; its result. A test that hangs is ended, with all that it started."""
    command = [bundle / test["executable"], *([test["filter"]] if test["filter"] else [])]
    began = time.monotonic()
    process = subprocess.Popen(
        command, cwd=bundle / test["package"], env=variables(bundle, test, environment), text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    hung = False
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        hung = True
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
    result = judge(test, output, process.returncode, time.monotonic() - began)
    if hung:
        result["why"] = f"did not end within {timeout} s"
    if result["status"] == "failed":
        print(f"---- {test['name']}:\n{output[-SHOWN:]}", file=sys.stderr, flush=True)
    return result


def judge(test, output, code, seconds):
    """The result that an executable's output and exit code tell."""
    summary = SUMMARY.search(output)
    passed = int(summary[1]) if summary else 0
    skipped = SKIPPED.findall(output)
    # A filter that nothing answers to tests nothing.
    status = "failed" if code != 0 or passed == 0 else "passed"
    if status == "passed" and len({name for _, name in skipped}) == passed:
        status = "skipped"
    result = {
        "result": test["name"],
        "status": status,
        # Those that were skipped, in whole or in part, end as if they had passed.
        "passed": passed,
        "failed": FAILED.findall(output),
        "skipped": sorted({line for line, _ in skipped}),
        "seconds": round(seconds, 1),
    }
    if not summary:
        result["why"] = f"ended with {code} before its tests did"
    elif passed == 0:
        result["why"] = "no test ran to its end and passed"
    return result
