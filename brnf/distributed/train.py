"""Ray Train runs the loop: any number of workers, checkpoints, resumption by running the same command."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from pyarrow import fs
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from brnf.config import RunConfig, as_dict
from brnf.data import storage
from brnf.data.schema import MANIFEST
from brnf.data.seeds import Seeds
from brnf.data.shards import Shards, epoch_plan, rank_slice
from brnf.distributed.resources import living_nodes, worker_resources
from brnf.distributed.runs import load_run, run_manifest
from brnf.distributed.source import Source
from brnf.distributed.stream import steps_per_read, stream
from brnf.models.backbones import load_weights
from brnf.training import health
from brnf.training.batch import Batch
from brnf.training.checkpoint import WEIGHTS, describe, final_weights, load_state, pack_weights, save_state
from brnf.training.device import resolve_device
from brnf.training.methods import METHODS, Step
from brnf.training.metrics_log import MetricsLog

CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
KEPT_CHECKPOINTS = 2
CONTROLLER_FAILURES = 3
"""Ray's default is to retry an infeasible request for ever."""
PROGRESS_SECONDS = 2.0
HIDDEN = ("step", "epoch", "images_per_second", "gradient_", "depressed_share_of", "region_bank", "sampled_bank")
"""What the line of progress has no room for; TensorBoard shows it."""


@dataclass(frozen=True)
class Job:
    """Everything a worker needs; small, but for the weights, which travel through the object store."""

    config: RunConfig
    method: str
    source: Source
    weights: ray.ObjectRef
    out: str
    cpus: int
    """That each worker asked Ray for; the machine it lands on may have fewer cores."""
    epochs: int
    """Of the schedule's epochs, how many are done when the job is over."""


def train(
    config: RunConfig,
    *,
    method: str,
    shards: str,
    seeds: str | None = None,
    base: str | None = None,
    out: str,
    until_epoch: int | None = None,
) -> dict[str, Any]:
    """Train one of METHODS on shards and write a finished run to `out`.

    Goes on from the last checkpoint in `out`, if there is one.

    Args:
        config: Resolved configuration.
        method: "sipe" (the base), "brnf" or "irn" (the boundary network).
        shards: Directory of the training split.
        seeds: Directory of its base seeds, for BRNF; for the boundary network, of the classes of its sure cells.
        base: Finished base run to start from where `brnf.init` is "base".
        out: Directory of the run.
        until_epoch: Stop after so many epochs of the schedule, for a look at the run so far; none means all. A later
            call goes on from there.

    Returns:
        The run's manifest.

    Raises:
        ValueError: If inputs are missing or do not fit.
    """
    opened = Shards.open(shards)
    source = Source(opened, Seeds.open(seeds, opened) if seeds else None)
    optim, epochs = METHODS[method].optim(config), METHODS[method].epochs(config)
    epoch_plan([unit.num_rows for unit in opened.units], **plan_options(config, optim, 0))  # refuses too few images
    weights = ray.put(initial_weights(config, method, opened.num_classes, base))
    workers = config.compute.num_workers
    cpus, use_gpu = worker_resources(config.compute, living_nodes())
    job = Job(config, method, source, weights, out, cpus, until_epoch or epochs)
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=use_gpu, resources_per_worker={"CPU": cpus, **({"GPU": 1} if use_gpu else {})}
        ),
        run_config=ray.train.RunConfig(
            name=CHECKPOINTS,
            storage_path=out,
            checkpoint_config=CheckpointConfig(num_to_keep=KEPT_CHECKPOINTS),
            failure_config=FailureConfig(
                max_failures=config.compute.max_failures, controller_failure_limit=CONTROLLER_FAILURES
            ),
        ),
    )
    total = epochs * (opened.num_images // optim.batch_size)
    with Progress(storage.join(out, METRICS), total):
        result = trainer.fit()
    assert result.checkpoint is not None and result.metrics is not None
    with result.checkpoint.as_directory() as directory:
        state = final_weights(Path(directory))
    return finish(job, state, result.metrics["step"], total)


def initial_weights(config: RunConfig, method: str, num_classes: int, base: str | None) -> dict[str, Tensor]:
    """The model's whole state at step 0: deterministic, made on the driver so that no worker downloads anything."""
    weights = None
    if method == "brnf" and config.brnf.init == "base":
        if base is None:
            raise ValueError("brnf.init is 'base', but no base run is given: add --base RUN, or set brnf.init=backbone")
        if run_manifest(base)["config"]["backbone"]["name"] != config.backbone.name:
            raise ValueError(f"the base run {base} has another backbone than backbone.name={config.backbone.name!r}")
        weights = load_run(base)[0].network.state_dict()
    backbone = load_weights(config.backbone)
    torch.manual_seed(config.random_seed)
    model = METHODS[method].new_state(config, num_classes)
    model.network.backbone.load_state_dict(backbone)
    if weights is not None:
        model.network.load_state_dict(weights)
    return model.state_dict()


def finish(job: Job, state: dict[str, Tensor], steps: int, total: int) -> dict[str, Any]:
    """Write the weights and, last, the manifest of a run that has done `steps` of the `total` of its schedule."""
    rows = [json.loads(line) for line in storage.read_bytes(storage.join(job.out, METRICS)).splitlines()]
    packed = pack_weights(state)
    storage.write_bytes(storage.join(job.out, WEIGHTS), packed)
    manifest = {
        "method": job.method,
        "class_names": list(job.source.shards.class_names),
        "split": job.source.shards.manifest["split"],
        "images": job.source.shards.num_images,
        "shards_hash": job.source.shards.content_hash,
        "seeds": job.source.seeds is not None,
        "initialisation": f"{job.config.backbone.name}, {Path(job.config.backbone.weights).name}"
        + (", then the base network" if job.method == "brnf" and job.config.brnf.init == "base" else ""),
        **describe(state, packed, steps),
        "warnings": health.warnings(rows, total),
        "config": {part: values for part, values in as_dict(job.config).items() if part != "compute"},
    }
    storage.write_json(storage.join(job.out, MANIFEST), manifest)
    return manifest


def plan_options(config: RunConfig, optim: Any, epoch: int) -> dict[str, int]:
    """What an epoch's order follows from, beside the units."""
    return {
        "random_seed": config.random_seed,
        "epoch": epoch,
        "batch_size": optim.batch_size,
        "window_units": optim.window_units,
    }


# ------------------------------------------------------------------------------------------------ in the workers


def train_loop(arguments: dict[str, Any]) -> None:
    """One worker's training, from the last checkpoint to the end."""
    job: Job = arguments["job"]
    cores = (os.cpu_count() or 1) // ray.train.get_context().get_local_world_size()
    torch.set_num_threads(min(job.cpus, max(1, cores)))
    device = get_device() if job.config.compute.device != "cpu" else resolve_device("cpu")
    assert isinstance(device, torch.device)
    method = METHODS[job.method]
    model = method.new_state(job.config, job.source.shards.num_classes)
    model.load_state_dict(ray.get(job.weights))
    model.to(device).to(memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue]
    if not model.network.frozen_norm:
        synchronise_batch_norm(model.network, device)
    context = ray.train.get_context()
    optim = method.optim(job.config)
    unit_rows = [unit.num_rows for unit in job.source.shards.units]
    steps_per_epoch = job.source.shards.num_images // optim.batch_size
    train_step = method.new_step(model, job.config, steps_per_epoch * optim.epochs, wrap)
    recorder = Recorder(job, model, train_step, steps_per_epoch * job.epochs, device)
    step = recorder.resume()
    for epoch in range(step // steps_per_epoch, job.epochs):
        plan = epoch_plan(unit_rows, **plan_options(job.config, optim, epoch))
        batches = stream(
            job.source,
            rank_slice(plan, context.get_world_rank(), context.get_world_size()),
            config=job.config,
            stride=method.stride(job.config),
            epoch=epoch,
            first_step=step % steps_per_epoch,
            steps_per_read=steps_per_read(unit_rows, optim.window_units, optim.batch_size),
        )
        for host_batch in batches:
            batch = to_device(host_batch, device)
            metrics = train_step(batch, step)
            step += 1
            recorder.after(step, epoch, batch, metrics)
    recorder.close()


def wrap(module: nn.Module) -> nn.Module:
    """Synchronise a module's gradients over workers. Buffers are equal already: the step sees to that."""
    if ray.train.get_context().get_world_size() == 1:
        return module
    return DistributedDataParallel(module, broadcast_buffers=False)


def synchronise_batch_norm(network: nn.Module, device: torch.device) -> None:
    """Let batch norm see the global batch.

    Raises:
        ValueError: With several CPU workers, which torch cannot synchronise batch norm over.
    """
    if ray.train.get_context().get_world_size() == 1:
        return
    if device.type == "cpu":
        raise ValueError(
            "backbone.batch_norm is 'synchronised', which needs GPUs or one worker; set compute.num_workers=1 or "
            "backbone.batch_norm=frozen"
        )
    nn.SyncBatchNorm.convert_sync_batchnorm(network)  # replaces the layers inside


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move what the network reads; keys stay on the CPU, where generators are seeded."""
    if device.type == "cpu":
        return batch

    def move(tensor: Tensor) -> Tensor:
        return tensor.pin_memory().to(device, non_blocking=True)

    seed = None if batch.seed is None else move(batch.seed)
    return Batch(move(batch.images), move(batch.valid), move(batch.allowed), batch.keys, seed)


class Recorder:
    """Logs, checkpoints and resumes a worker's run. Rank 0 writes; every rank meets at checkpoints."""

    def __init__(self, job: Job, model: nn.Module, train_step: Step, total: int, device: torch.device) -> None:
        self.job, self.model, self.train_step, self.total, self.device = job, model, train_step, total, device
        self.first = ray.train.get_context().get_world_rank() == 0
        self.log: MetricsLog | None = None
        self.uploads = "://" in job.out
        self.tensorboard = Path(tempfile.mkdtemp() if self.uploads else storage.join(job.out, "tb"))

    def resume(self) -> int:
        """Restore the last checkpoint, if any; returns the steps done."""
        step, rows = 0, []
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is not None:
            with checkpoint.as_directory() as directory:
                step, rows = load_state(Path(directory), self.model, self.train_step.optimizers, self.device)
        if self.first:
            self.log = MetricsLog(self.tensorboard, rows, self.job.source.shards.class_names)
        return step

    def after(self, step: int, epoch: int, batch: Batch, metrics: dict[str, Tensor]) -> None:
        """Record that step number `step` (from 1) is done."""
        compute, last = self.job.config.compute, step == self.total
        if self.log is not None:
            self.log.add(metrics, self.train_step.optim.batch_size)
            if last or step % compute.log_every == 0:
                self.log.close_window(step, epoch)
                storage.write_bytes(storage.join(self.job.out, METRICS), self.log.jsonl())
        if last or step % compute.checkpoint_every == 0:
            self._checkpoint(step, batch)

    def _checkpoint(self, step: int, batch: Batch) -> None:
        if self.log is None:
            ray.train.report({"step": step})
            return
        self.log.overlays(batch.images, self.train_step.panels(batch), step)
        with tempfile.TemporaryDirectory() as directory:
            save_state(Path(directory), self.model, self.train_step.optimizers, step, self.log.rows)
            ray.train.report({"step": step}, checkpoint=Checkpoint.from_directory(directory))
        if self.uploads:
            filesystem, inner = storage.open_location(storage.join(self.job.out, "tb"))
            fs.copy_files(str(self.tensorboard), inner, destination_filesystem=filesystem)

    def close(self) -> None:
        """Flush what is open."""
        if self.log is not None:
            self.log.close()


# ------------------------------------------------------------------------------------------------ on the driver


class Progress:
    """Prints the last row of metrics.jsonl to stderr as it grows, and once what is not well with the run."""

    def __init__(self, path: str, total: int) -> None:
        self.path, self.total = path, total
        self.warned: set[str] = set()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()

    def _follow(self) -> None:
        shown = -1
        while not self.stop.wait(PROGRESS_SECONDS):
            row = self._last_row()
            if row is not None and row["step"] != shown:
                shown = row["step"]
                print(self._line(row), file=sys.stderr, flush=True)
                self._warn(row)

    def _last_row(self) -> dict[str, Any] | None:
        try:
            lines = storage.read_bytes(self.path).splitlines()
        except OSError:  # not written yet, or the storage is briefly away: the next round tries again
            return None
        return json.loads(lines[-1]) if lines else None

    def _warn(self, row: dict[str, Any]) -> None:
        for line in health.warnings([row], self.total):
            measure = line.split()[0]
            if measure not in self.warned:
                self.warned.add(measure)
                print(f"  warning: {line}", file=sys.stderr, flush=True)

    def _line(self, row: dict[str, Any]) -> str:
        shown = {name: value for name, value in row.items() if not name.startswith(HIDDEN)}
        values = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        return f"  step {row['step']}/{self.total}  {row['images_per_second']:.1f} images/s  {values}"
