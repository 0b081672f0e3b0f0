"""On a device other than the CPU: tests/other_devices/checks.py, in a process that has one."""

import subprocess
import sys
from pathlib import Path


def test_all_checks_hold_on_another_device():
    checks = Path(__file__).parent / "other_devices" / "checks.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(checks)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:]
