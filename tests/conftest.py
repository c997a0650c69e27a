"""What every test starts from: no network, one seed, and a Dynamo that remembers nothing of the test before."""

import os
import sys
import tempfile

# Set before anything imports torch or transformers.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("NO_COLOR", "1")
# What somebody measured on this machine must not choose kernels in tests; nothing is there unless a test writes it.
os.environ["FXFUSE_CACHE_DIR"] = os.path.join(tempfile.gettempdir(), f"fxfuse-tests-{os.getpid()}")
if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers share the cores: more threads each only slow all of them down.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import pytest
import torch


@pytest.fixture(autouse=True)
def fresh_dynamo():
    """Isolate tests: compiled code, recompile limits and counters are process-wide in torch."""
    torch.manual_seed(0)
    yield
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()
        sys.modules["torch._dynamo.utils"].counters.clear()


def pytest_collection_modifyitems(items):
    """Skip what needs an accelerator where there is none."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs an accelerator, and torch.cuda.is_available() is False")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
