import pytest
from holdfast_up import HoldfastUp


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """Three replicas and two proxies. Shared: each test keeps to a namespace or to routes of its own."""
    with HoldfastUp(tmp_path_factory.mktemp("cluster") / "data", replicas=3, proxies=2) as up:
        yield up
