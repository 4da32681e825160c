"""What workers and actors ask for, on clusters of several shapes; where they land is seen in test_gpu_cluster.py."""

from __future__ import annotations

import pytest

from brnf.config import ComputeConfig
from brnf.distributed.resources import Node, actor_resources, refiner_resources, worker_resources

LAPTOP = [Node(4, 0)]
GPU_CLUSTER = [Node(0, 0), Node(8, 1), Node(8, 1)]
LARGE_HEAD = [Node(32, 0), Node(4, 1)]


@pytest.mark.parametrize(
    ("nodes", "compute", "expected"),
    [
        (LAPTOP, ComputeConfig(), (3, False)),
        (LAPTOP, ComputeConfig(num_workers=2), (1, False)),
        (GPU_CLUSTER, ComputeConfig(), (8, True)),
        (GPU_CLUSTER, ComputeConfig(num_workers=2), (7, True)),
        (GPU_CLUSTER, ComputeConfig(num_workers=2, cpus_per_worker=4), (4, True)),
        (GPU_CLUSTER, ComputeConfig(device="cpu", num_workers=3), (4, False)),  # not 5: only one fits a node
        (LARGE_HEAD, ComputeConfig(), (4, True)),  # the node with the GPU has no more
        ([Node(16, 4)], ComputeConfig(num_workers=4), (3, True)),
    ],
)
def test_workers__get_what_fits_on_one_node(nodes: list[Node], compute: ComputeConfig, expected: tuple) -> None:
    assert worker_resources(compute, nodes) == expected


@pytest.mark.parametrize(
    ("nodes", "compute", "message"),
    [
        (LAPTOP, ComputeConfig(num_workers=4), "compute.num_workers is 4 with 1 CPUs each"),
        (LAPTOP, ComputeConfig(cpus_per_worker=4), "compute.num_workers is 1 with 4 CPUs each"),
        (LAPTOP, ComputeConfig(device="cuda"), "the Ray cluster declares no GPU"),
        (GPU_CLUSTER, ComputeConfig(num_workers=4), "compute.num_workers is 4, but the cluster has 2 GPUs"),
        (LARGE_HEAD, ComputeConfig(cpus_per_worker=8), "its nodes have 32 CPUs and 0 GPUs, 4 CPUs and 1 GPUs"),
    ],
)
def test_workers__that_do_not_fit_are_refused(nodes: list[Node], compute: ComputeConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        worker_resources(compute, nodes)


@pytest.mark.parametrize(
    ("nodes", "compute", "most", "expected"),
    [
        (GPU_CLUSTER, ComputeConfig(), 100, ("cuda", {"actors": 2, "num_gpus": 1.0, "num_cpus": 1.0})),
        (GPU_CLUSTER, ComputeConfig(label_actors=3), 100, ("cuda", {"actors": 3, "num_gpus": 0.5, "num_cpus": 1.0})),
        (GPU_CLUSTER, ComputeConfig(), 1, ("cuda", {"actors": 1, "num_gpus": 1.0, "num_cpus": 1.0})),
        (GPU_CLUSTER, ComputeConfig(device="cpu"), 100, ("cpu", {"actors": 15, "num_cpus": 0.5})),
        (LAPTOP, ComputeConfig(label_actors=6), 100, ("cpu", {"actors": 6, "num_cpus": 0.5})),
    ],
)
def test_actors__share_gpus_evenly_and_leave_a_cpu(
    nodes: list[Node], compute: ComputeConfig, most: int, expected: tuple
) -> None:
    assert actor_resources(compute, nodes, most) == expected


def test_actors__refuse_cuda_without_gpu() -> None:
    with pytest.raises(ValueError, match="declares no GPU"):
        actor_resources(ComputeConfig(device="cuda"), LAPTOP, 1)


@pytest.mark.parametrize(
    ("nodes", "compute", "expected"),
    [
        (LAPTOP, ComputeConfig(), None),
        (LAPTOP, ComputeConfig(label_actors=1, refine_actors=2), {"actors": 2, "num_cpus": 0.5}),
        (GPU_CLUSTER, ComputeConfig(), {"actors": 13, "num_cpus": 0.5}),
        (GPU_CLUSTER, ComputeConfig(refine_actors=0), None),
    ],
)
def test_refiners__take_the_cpus_that_gpus_leave(nodes: list[Node], compute: ComputeConfig, expected: dict) -> None:
    _, readers = actor_resources(compute, nodes, 100)
    assert refiner_resources(compute, nodes, readers, 100) == expected


def test_actors__of_a_node_that_goes_away_fit_on_the_others() -> None:
    _, resources = actor_resources(ComputeConfig(device="cpu"), [Node(2, 0)] * 3, 100)
    assert resources["actors"] * resources["num_cpus"] <= 2 * 2
