"""One cluster a run: joined where there is one, refused at once where there is none."""

from __future__ import annotations

import os
import socket

import pytest

from brnf.distributed.session import SETTINGS, _check_answers, session


@pytest.mark.ray
def test_session__uses_the_running_cluster_and_leaves_it_running(ray_session: None) -> None:
    import ray

    node = ray.get_runtime_context().get_node_id()
    with session():
        assert ray.get_runtime_context().get_node_id() == node
    assert ray.is_initialized()


@pytest.mark.ray
def test_settings__reach_the_workers(ray_session: None) -> None:
    import ray

    @ray.remote
    def seen() -> dict[str, str | None]:
        return {name: os.environ.get(name) for name in SETTINGS}

    assert ray.get(seen.remote()) == SETTINGS


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}"])
def test_address__where_nobody_listens_is_refused_at_once(address: str) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(ValueError, match=r"no Ray cluster answers there .* Without --address"):
        _check_answers(address.format(port=port))
