"What several test files share."

import os
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers share the cores

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    "The repository."
    return ROOT


@pytest.fixture(scope="session")
def see_nb_command():
    "Run `see-nb` as a user does, in a process of its own."
    executable = Path(sys.executable).with_name("see-nb")

    def call(*arguments, **options) -> subprocess.CompletedProcess:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [executable, *map(str, arguments)],
            capture_output=True,
            text=True,
            env=environment,
            timeout=600,
            **options,
        )

    return call
