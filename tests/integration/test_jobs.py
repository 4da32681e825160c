"""Jobs: a head with token authentication, stages submitted to it, one stopped in the middle and submitted again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from brnf.data.scenes import render_sample

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
NUM_TRAIN, STEPS = 48, 60
RECIPE = """
data: {unit_rows: 8, part_rows: 16, train_split: train, score_split: val, label_splits: [val]}
backbone: {name: test_resnet, weights: none, side_channels: [8, 8, 8, 8]}
augment: {resize_long: [64, 96], crop_size: 64}
base: {optim: {epochs: 20, batch_size: 16, lr_backbone: 0.01, lr_new: 0.1}}
label: {scales: [1.0]}
compute: {log_every: 3, checkpoint_every: 3, device: cpu}
"""


@dataclass(frozen=True)
class Head:
    """A running head node and how to reach it."""

    url: str
    environment: dict[str, str]

    def ray(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `ray job ...` against it."""
        verb, *rest = arguments
        command = [str(Path(sys.executable).with_name("ray")), "job", verb, "--address", self.url, *rest]
        return subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=300)

    def submit(self, id: str, script: str, *arguments: str, wait: bool = True) -> subprocess.CompletedProcess[str]:
        """Submit a script of jobs/ with this checkout as working directory."""
        flags = [] if wait else ["--no-wait"]
        entrypoint = ["python", f"jobs/{script}.py", *arguments]
        return self.ray("submit", "--submission-id", id, "--working-dir", ".", *flags, "--", *entrypoint)

    def jobs(self) -> dict[str, dict[str, Any]]:
        """What the cluster knows of its jobs, by submission id."""
        code = (
            "import json, sys\nfrom ray.job_submission import JobSubmissionClient\n"
            "jobs = JobSubmissionClient(sys.argv[1]).list_jobs()\n"
            "print(json.dumps({j.submission_id: {'status': str(j.status.value), 'type': j.type.value,"
            " 'driver': j.driver_info and j.driver_info.id} for j in jobs}))"
        )
        command = [sys.executable, "-c", code, self.url]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True, timeout=60)
        return json.loads(done.stdout.splitlines()[-1])


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def wait_until(condition: Callable[[], bool], limit_s: float = 120) -> None:
    """Poll a condition; the test fails where it never holds."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    scratch = Path(tempfile.mkdtemp(prefix="brnf-"))  # short: Ray puts Unix sockets below it
    token = scratch / "token"
    token.write_text(os.urandom(32).hex())
    gcs, dashboard, client, agent = free_ports(4)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
    }
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=4", f"--port={gcs}",
        f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}",
        f"--dashboard-agent-listen-port={agent}", f"--temp-dir={scratch}/ray", "--disable-usage-stats",
    ]  # fmt: skip
    with open(scratch / "log", "w") as log, subprocess.Popen(command, env=environment, stdout=log, stderr=log) as node:
        try:
            wait_until(lambda: answers(dashboard) and answers(agent))
            yield Head(f"http://127.0.0.1:{dashboard}", environment)
        finally:
            node.send_signal(signal.SIGTERM)
    shutil.rmtree(scratch, ignore_errors=True)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def losses(row: dict[str, Any]) -> dict[str, Any]:
    """A row of metrics.jsonl without its time, which differs where steps after the last checkpoint are done again."""
    return {name: value for name, value in row.items() if name != "images_per_second"}


def test_jobs__run_on_one_cluster_and_go_on_where_they_were_stopped(head: Head, tmp_path: Path) -> None:
    tree, recipe, shards, base = (tmp_path / name for name in ("tree", "recipe.yaml", "shards", "base"))
    render_sample(str(tree), bias=0.9, random_seed=0, num_train=NUM_TRAIN, num_val=8)
    recipe.write_text(RECIPE)
    for split in ("train", "val"):
        arguments = ("voc", "--root", str(tree), "--split", split, "--shards", str(shards / split))
        done = head.submit(f"prepare-{split}", "prepare", *arguments, "--data.unit-rows", "8", "--data.part-rows", "16")
        assert done.returncode == 0 and "refused inputs: 0" in done.stdout, done.stdout + done.stderr

    train = ("--config", str(recipe), "--method", "sipe", "--shards", str(shards / "train"), "--out", str(base))
    head.submit("train-1", "train", *train, wait=False)
    wait_until(lambda: len(rows(base / "metrics.jsonl")) >= 4)
    assert head.ray("stop", "train-1").returncode == 0
    assert not (base / "manifest.json").exists()
    done_before = rows(base / "metrics.jsonl")
    again = head.submit("train-2", "train", *train)
    assert again.returncode == 0 and f"step {STEPS}/{STEPS}" in again.stdout, again.stdout + again.stderr
    assert f" step 3/{STEPS}" not in again.stdout.split("running")[-1].splitlines()[1]
    assert json.loads((base / "manifest.json").read_text())["steps"] == STEPS
    after = rows(base / "metrics.jsonl")
    assert after[0] == done_before[0]  # its time too: what came before the last checkpoint was not done again
    assert [losses(row) for row in after[: len(done_before)]] == [losses(row) for row in done_before]

    labels = tmp_path / "labels"
    done = head.submit("label", "label", "--run", str(base), "--shards", str(shards / "val"), "--out", str(labels))
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((labels / "manifest.json").read_text())["num_images"] == 8

    jobs = head.jobs()
    assert set(jobs) == {"prepare-train", "prepare-val", "train-1", "train-2", "label"}  # and no driver from elsewhere
    assert all(job["driver"] for job in jobs.values()), "a job started a cluster of its own"
    assert jobs.pop("train-1")["status"] == "STOPPED"
    assert {job["status"] for job in jobs.values()} == {"SUCCEEDED"}


def test_job__refuses_a_relative_path_with_the_reason(head: Head, tmp_path: Path) -> None:
    arguments = ("voc", "--root", "../VOC2012", "--split", "val", "--shards", str(tmp_path))
    done = head.submit("relative", "prepare", *arguments)
    assert done.returncode != 0
    assert "'../VOC2012' is a relative path, and a job runs in a temporary copy" in done.stdout
