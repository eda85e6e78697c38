"""One thread for each process: set before anything imports torch, so that parallel tests do not fight for cores."""

import os
import tempfile

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("PLOTLY_RENDERER", "plotly_mimetype")
OWN = tempfile.TemporaryDirectory(prefix="lottery-config-")  # tests leave the user's own folder alone
os.environ["LOTTERY_CONFIG"] = os.path.join(OWN.name, "config")


def pytest_xdist_auto_num_workers(config):
    """`-n auto` (the default, see pyproject.toml): a worker for each usable core, four at most: each holds its own torch."""
    return min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def pytest_addoption(parser):
    parser.addoption(
        "--flags",
        default="",
        help='also run the notebook cells with these flags, as in nbdev_test: --flags "slow gpu"',
    )


def pytest_configure(config):
    config.addinivalue_line(
        "markers",
        "data: needs the real data in the folders of LOTTERY_DATA; `pytest -m data` runs these alone",
    )
    config.addinivalue_line("markers", "gpu: needs a CUDA device; `pytest -m gpu` runs these alone")


def has_gpu():
    """Whether torch finds a CUDA device; asked only where a test wants one."""
    import torch

    return torch.cuda.is_available()


def pytest_collection_modifyitems(items):
    if not os.environ.get("LOTTERY_DATA"):
        for item in items:
            if item.get_closest_marker("data"):
                item.add_marker(
                    pytest.mark.skip(reason="LOTTERY_DATA is unset: it names the folders of the real data")
                )
    if (wanting := [item for item in items if item.get_closest_marker("gpu")]) and not has_gpu():
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason="there is no CUDA device"))


@pytest.fixture
def thinned(request):
    """Every so-many-th of many values, beginning with another one at each turn; all of them with `--flags slow`."""
    slow = "slow" in request.config.getoption("--flags").split()
    return lambda values, every, turn=0: list(values) if slow else list(values)[turn % every :: every]
