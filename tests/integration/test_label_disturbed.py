"""Labelling on machines that go away: killed drivers, a lost node, a full disk, an actor killed for memory.

Whatever happens, the bytes at the end are those of a run that nothing disturbed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import write_random_run

from brnf.data.schema import MANIFEST

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[2]
UNIT_ROWS, ACTORS = 32, 2
KILLS, MOMENTS_SEED = 10, 20261125
"""How often the driver is killed, and the random seed of the moments."""
FLAGS = [
    "--label.scales", "1.0", "0.5", "--compute.device", "cpu", "--compute.label-actors", str(ACTORS),
]  # fmt: skip


def brnf(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "brnf", *arguments]


def run_brnf(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(brnf(*arguments), capture_output=True, text=True, cwd=ROOT, check=check)


@pytest.fixture(scope="module")
def shards(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photographs of train_aug."""
    out = tmp_path_factory.mktemp("photographs") / "shards"
    root = shared / "data/voc_subset/VOCdevkit/VOC2012"
    run_brnf(
        "prepare", "voc", "--root", str(root), "--split", "train_aug", "--shards", str(out),
        "--data.unit-rows", str(UNIT_ROWS), "--data.part-rows", "256",
    )  # fmt: skip
    return out


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base run with random weights."""
    out = tmp_path_factory.mktemp("run")
    write_random_run(str(out), json.loads((shards / MANIFEST).read_text())["class_names"])
    return out


@pytest.fixture(scope="module")
def command(run: Path, shards: Path) -> Callable[..., list[str]]:
    """The command that labels into a directory."""
    given = ["label", "--run", str(run), "--shards", str(shards), *FLAGS]
    return lambda out, *more: brnf(*given, "--out", str(out), *more)


@pytest.fixture(scope="module")
def undisturbed(command: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed")
    subprocess.run(command(out), cwd=ROOT, check=True, capture_output=True)
    return contents(out)


def contents(directory: Path) -> dict[str, bytes]:
    """Masks, parts and manifest; not the record of when and with which options they were made."""
    files = [directory / MANIFEST, *directory.glob("masks/*.png"), *directory.glob("parts/*.parquet")]
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def stamps(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in directory.glob("masks/*.png")}


def test_label__ten_kills_and_a_lost_node_change_nothing(
    command: Callable[..., list[str]],
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    kill_when: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    total, moments, repeated = len(undisturbed), random.Random(MOMENTS_SEED), 0
    before: dict[str, int] = {}
    for _ in range(KILLS):
        until = len(before) + moments.randrange(1, total // (KILLS + 4))
        kill_when(command(tmp_path), lambda: len(stamps(tmp_path)) >= until)  # noqa: B023  (called in this round)
        after = stamps(tmp_path)
        repeated += sum(after[name] != stamp for name, stamp in before.items())
        before = after
    assert not (tmp_path / MANIFEST).exists() and len(before) < 0.9 * total
    label_on_cluster(command, tmp_path, remove_at=len(before) + 200)
    repeated += sum(stamps(tmp_path)[name] != stamp for name, stamp in before.items())
    bound = (KILLS + 1) * ACTORS * UNIT_ROWS
    with capsys.disabled():
        print(f"\n{total} files, {KILLS} kills (moments of random seed {MOMENTS_SEED}) and a node lost:")
        print(f"  {repeated} images were read twice; the bound is {bound}")
    assert contents(tmp_path) == undisturbed
    assert repeated <= bound


def label_on_cluster(command: Callable[..., list[str]], out: Path, remove_at: int) -> None:
    """Label on a simulated cluster of three nodes and take one away once so many masks are there.

    Ray can be started once in a process, so the cluster lives in a process of its own, for which this file is the
    script.
    """
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    given = json.dumps({"command": command(out), "out": str(out), "remove_at": remove_at})
    done = subprocess.run([sys.executable, __file__, given], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def simulate(command: list[str], out: str, remove_at: int) -> None:
    """Start a head and two nodes, label, and take the second node away on the way."""
    import secrets
    import time

    os.environ["RAY_AUTH_TOKEN"], os.environ["RAY_AUTH_MODE"] = secrets.token_hex(32), "token"
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
    cluster.wait_for_nodes()
    with subprocess.Popen([*command, "--address", str(cluster.address)], cwd=ROOT) as driver:
        while len(stamps(Path(out))) < remove_at:
            assert driver.poll() is None, "all was labelled before a node could be taken away"
            time.sleep(0.01)
        cluster.remove_node(nodes[1], allow_graceful=False)
        assert driver.wait() == 0
    cluster.shutdown()


def test_label__on_a_full_disk_names_the_cause_and_goes_on_when_there_is_room(
    command: Callable[..., list[str]], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    label = " ".join(command(disk / "labels"))
    needed = sum(map(len, undisturbed.values()))
    script = f"""
    mount -t tmpfs -o size={needed // 3} tmpfs {disk}
    {label} > {tmp_path}/out 2> {tmp_path}/err
    echo $? > {tmp_path}/rc
    mount -o remount,size=1g tmpfs {disk}
    {label} && cp -r {disk}/labels {kept}
    """
    subprocess.run(["unshare", "--mount", "--map-root-user", "sh", "-c", script], cwd=ROOT, check=True)
    message = (tmp_path / "err").read_text().splitlines()[-1]
    assert (tmp_path / "rc").read_text().strip() == "2"
    assert "No space left on device" in message and str(disk) in message and "goes on" in message
    assert contents(kept) == undisturbed


def test_label__an_actor_killed_for_memory_is_replaced_and_the_command_says_so(
    command: Callable[..., list[str]], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """As the kernel and Ray's memory monitor kill: SIGKILL."""
    import time

    with subprocess.Popen(command(tmp_path), cwd=ROOT, stderr=subprocess.PIPE, text=True) as driver:
        while len(stamps(tmp_path)) < 100:
            assert driver.poll() is None
            time.sleep(0.01)
        os.kill(actors_of(driver.pid)[0], signal.SIGKILL)
        assert driver.stderr is not None
        told = driver.stderr.read()
    assert driver.returncode == 0, told
    assert "1 actor died" in told and "memory" in told
    assert contents(tmp_path) == undisturbed


def actors_of(driver: int) -> list[int]:
    """Processes of read-out actors in the driver's own cluster."""
    session = os.getsid(driver)
    found = []
    for process in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            title = Path(f"/proc/{process}/cmdline").read_bytes()
            if b"UnitReader" in title and os.getsid(process) == session:
                found.append(process)
        except OSError:
            continue
    return found


if __name__ == "__main__":
    simulate(**json.loads(sys.argv[1]))
