"""What training workers and read-out actors ask Ray for: the one place that counts the cluster's CPUs and GPUs."""

from __future__ import annotations

import math
import os
from typing import Any, NamedTuple

import ray

from brnf.config import ComputeConfig


class Node(NamedTuple):
    """What a node of the cluster declares."""

    cpus: int
    gpus: int


def living_nodes() -> list[Node]:
    """The nodes of the cluster that this process is attached to."""
    declared = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(int(resources.get("CPU", 0)), int(resources.get("GPU", 0))) for resources in declared]


def use_gpus(compute: ComputeConfig, nodes: list[Node]) -> bool:
    """Whether workers and actors ask for GPUs.

    Raises:
        ValueError: If the configuration wants them and the cluster has none.
    """
    there = any(node.gpus for node in nodes)
    if compute.device == "cuda" and not there:
        raise ValueError("compute.device is 'cuda', but the Ray cluster declares no GPU; give auto or cpu")
    return there and compute.device != "cpu"


def worker_resources(compute: ComputeConfig, nodes: list[Node]) -> tuple[int, bool]:
    """CPUs of each training worker, and whether it takes a GPU.

    One CPU of the cluster stays free for Ray Data's tasks. A worker lives on one node: where CPUs are spread over
    nodes, or sit on nodes without GPU, it gets no more than fits.

    Raises:
        ValueError: If so many workers do not fit.
    """
    gpu, workers = use_gpus(compute, nodes), compute.num_workers
    gpus, free = sum(node.gpus for node in nodes), sum(node.cpus for node in nodes) - 1
    if gpu and gpus < workers:
        raise ValueError(f"compute.num_workers is {workers}, but the cluster has {gpus} GPUs: give that many")

    def fits(cpus: int) -> bool:
        places = sum(min(node.cpus // cpus, node.gpus if gpu else workers) for node in nodes)
        return cpus * workers <= free and places >= workers

    wanted = [compute.cpus_per_worker] if compute.cpus_per_worker else range(free // workers, 0, -1)
    cpus = next(filter(fits, wanted), None)
    if cpus is None:
        described = ", ".join(f"{node.cpus} CPUs and {node.gpus} GPUs" for node in nodes)
        raise ValueError(
            f"compute.num_workers is {workers} with {compute.cpus_per_worker or 1} CPUs each, one CPU of the cluster "
            f"has to stay free for reading, and its nodes have {described}; lower compute.num_workers or "
            "compute.cpus_per_worker"
        )
    return cpus, gpu


CPU_PART = 0.5
"""Of a CPU, that an actor which computes on one asks for at the most: when a node goes away, its actors have to find a
place on those that are left, or what they had been given to do would wait for another node."""


def actor_resources(compute: ComputeConfig, nodes: list[Node], most: int) -> tuple[str, dict[str, Any]]:
    """Device of the read-out actors, how many of them (at most `most`), and what each asks Ray for.

    One logical CPU stays free of actors: without it, a cluster has none left for Ray Data's own tasks.

    Raises:
        ValueError: If a GPU is asked for and the cluster has none.
    """
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    if use_gpus(compute, nodes):
        actors = min(compute.label_actors or gpus, most)
        # Actors that share a GPU take the same part of it: with 3 on 2 GPUs, halves.
        part = share(1, math.ceil(actors / gpus))
        return "cuda", {"actors": actors, "num_gpus": part, "num_cpus": share(cpus - 1, actors)}
    cores = min(cpus, os.cpu_count() or 1) if len(nodes) == 1 else cpus - 1
    actors = min(compute.label_actors or max(1, cores), most)
    return "cpu", {"actors": actors, "num_cpus": min(CPU_PART, share(cpus - 1, actors))}


def refiner_resources(
    compute: ComputeConfig, nodes: list[Node], readers: dict[str, Any], most: int
) -> dict[str, Any] | None:
    """How many actors refine what the readers have read (at most `most`), and what each asks Ray for.

    None where the readers do it themselves: on CPUs, unless compute.refine_actors says otherwise.

    Args:
        compute: The configuration.
        nodes: The cluster.
        readers: What `actor_resources` found.
        most: Units that are left.
    """
    left = sum(node.cpus for node in nodes) - 1 - readers["actors"] * readers["num_cpus"]
    actors = compute.refine_actors
    if actors is None:
        actors = max(1, math.floor(left)) if "num_gpus" in readers else 0
    if actors == 0:
        return None
    actors = min(actors, most)
    return {"actors": actors, "num_cpus": min(CPU_PART, share(math.floor(left), actors))}


def share(amount: int, actors: int) -> float:
    """An actor's share of CPUs or of a GPU: one, or a fraction in hundredths where there are more actors."""
    return min(1.0, math.floor(100 * max(amount, 0) / actors) / 100)
