"""What all tests share: profiles of hypothesis, few threads, and no cache of the person who runs them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# One thread each: the workers of pytest-xdist share the cores, and threads that wait for each other on a
# busy core are many times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell that starts the tests in the background has them ignore it, and so all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, str(Path(__file__).parent))

pytest_plugins = ("reliability",)

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")


@pytest.fixture(autouse=True, scope="session")
def _no_choice_by_timing() -> Iterator[None]:
    """Whether bfloat16 is faster on a tiny network is noise, and tests compare runs that began apart."""
    from tlrecipe.models import fast

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast, "native_bf16", lambda device: False)
        yield


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    os.environ["TLRECIPE_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))
    yield
    del os.environ["TLRECIPE_CACHE_DIR"]
