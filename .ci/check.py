"""Everything before a commit: export, README, format, lint, notebooks, tests.

python .ci/check.py            all of it
python .ci/check.py --quick    without notebooks and tests
"""

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
WRITTEN = ("nbs", "tests", ".ci", "setup.py")
# tests run these and look at what they say
LEFT_OUT = ("--skip_file_re", "^[_.]|[a-z]_report|half_an_hour", "--skip_folder_re", "^[_.]|method")
STEPS = {
    "format": [BIN / "ruff", "format", *WRITTEN],
    "export": [BIN / "nbdev_export"],
    "README": [sys.executable, ".ci/make_readme.py"],
    "lint": [BIN / "ruff", "check", "see_nb", "tests", ".ci", "nbs/conf.py", "setup.py"],
    # of the flagged cells, too, which no test here runs
    "names": [BIN / "ruff", "check", "nbs", "--select", "F821"],
    "wings": [BIN / "lint-imports", "--no-cache"],
    "notebooks": [BIN / "nbdev_test", "--n_workers", "2", "--do_print", "--timing", *LEFT_OUT],
    "tests": [sys.executable, "-m", "pytest"],
}
SLOW = ("notebooks", "tests")


def main(quick: bool) -> int:
    "Run the steps in order; the first that fails ends it."
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # two workers share the cores
    start = time.monotonic()
    for name, command in STEPS.items():
        if quick and name in SLOW:
            continue
        print(f"== {name} ({time.monotonic() - start:.0f} s)", flush=True)
        code = subprocess.run(command, cwd=ROOT, env=environment).returncode
        if code:
            print(f"== {name} failed", file=sys.stderr)
            return code
    print(f"== all is well ({time.monotonic() - start:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main("--quick" in sys.argv[1:]))
