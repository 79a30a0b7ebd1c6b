"""Options and profiles shared by all tests."""

import os

# Tests run side by side, one process per core, and their tensors are tiny: threads below that only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

# Compiling a kernel takes longer than any deadline; continuous integration repeats the same examples.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden instead of comparing")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or leaves results in the user's cache."""
    monkeypatch.setenv("RESV_SIM_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
