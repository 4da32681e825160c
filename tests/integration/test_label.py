"""Labels and seeds on Ray: what is written, what is refused, and the same bytes after being killed."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny import write_random_run

from brnf.config import ComputeConfig, MasksConfig, ReadOutConfig
from brnf.data import storage
from brnf.data.records import Entry, Record, Refusal
from brnf.data.schema import LABEL, MANIFEST, SEED
from brnf.data.seeds import Seeds, decode_seed
from brnf.data.shards import Shards, build_manifest, write_part
from brnf.data.transforms import decode_mask

pytestmark = pytest.mark.ray

CLASSES = ("background", "boat", "cow", "train")
NUM_IMAGES, UNIT_ROWS, PART_ROWS = 96, 8, 32
BROKEN = "img-013"
READ_OUT = ReadOutConfig(scales=(1.0, 0.5))
COMPUTE = ComputeConfig(device="cpu", label_actors=2)
DRIVER = """
import sys
from brnf.config import ComputeConfig, ReadOutConfig
from brnf.distributed.label import label
run, shards, out = sys.argv[1:]
label(ReadOutConfig(scales=(1.0, 0.5)), ComputeConfig(device="cpu", label_actors=2), run=run, shards=shards, out=out)
"""


@dataclass(frozen=True)
class Photographs:
    """Noise with masks of blocks, 1 to 3 tags an image; one file was truncated after it had been prepared."""

    kind = "voc"
    class_names = CLASSES
    masks = "drawn"

    def list_entries(self) -> tuple[list[Entry], list[Refusal]]:
        return [Entry(f"img-{number:03d}", "") for number in range(NUM_IMAGES)], []

    def read_record(self, entry: Entry) -> tuple[Record, str]:
        rng = np.random.default_rng(int(entry.id[-3:]))
        width, height = (int(side) for side in rng.integers(60, 110, 2))
        image = cv2.resize(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8), (width, height))
        encoded = cv2.imencode(".jpg", image)[1].tobytes()
        labels = tuple(sorted(int(c) for c in rng.choice([1, 2, 3], rng.integers(1, 4), replace=False)))
        content = encoded[:-40] if entry.id == BROKEN else encoded
        blocks = rng.choice([0, 255, *labels], (3, 4)).astype(np.uint8)
        mask = cv2.resize(blocks, (width, height), interpolation=cv2.INTER_NEAREST)
        encoded_mask = cv2.imencode(".png", mask)[1].tobytes()
        return Record(entry.id, content, labels, encoded_mask, None, 1, width, height), "xml"

    def fingerprint(self) -> str:
        return ""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    out, source = str(tmp_path_factory.mktemp("shards")), Photographs()
    entries, _ = source.list_entries()
    parts = [
        write_part(source, entries[start : start + PART_ROWS], out, part=part, unit_rows=UNIT_ROWS)
        for part, start in enumerate(range(0, NUM_IMAGES, PART_ROWS))
    ]
    storage.write_json(storage.join(out, MANIFEST), build_manifest(source, "val", parts, [], UNIT_ROWS))
    return Shards.open(out)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A base run with random weights."""
    out = str(tmp_path_factory.mktemp("run"))
    write_random_run(out, CLASSES)
    return out


@pytest.fixture(scope="module")
def labels(run: str, shards: Shards, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    """Labels of a run that nothing disturbed."""
    from brnf.distributed.label import label

    out = tmp_path_factory.mktemp("labels")
    label(READ_OUT, COMPUTE, run=run, shards=shards.path, out=str(out))
    return out


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_label__every_image_has_a_mask_of_its_tags_or_a_reason(labels: Path, shards: Shards) -> None:
    manifest = json.loads((labels / MANIFEST).read_text())
    assert [row["id"] for row in manifest["quarantine"]] == [BROKEN]
    assert "truncated" in manifest["quarantine"][0]["reason"]
    assert (manifest["num_images"], manifest["num_refused"]) == (NUM_IMAGES, 1)
    rows = [row for p in sorted((labels / "parts").iterdir()) for row in pq.read_table(p).cast(LABEL).to_pylist()]
    truth = [row for unit in shards.units for row in shards.read_unit(unit, ["id", "image_labels"]).to_pylist()]
    assert [row["id"] for row in rows] == [row["id"] for row in truth]
    seen: set[int] = set()
    for row, expected in zip(rows, truth, strict=True):
        path = labels / "masks" / f"{row['id']}.png"
        if row["id"] == BROKEN:
            assert row["mask"] is None and not path.exists()
            continue
        mask = decode_mask(path.read_bytes())
        assert row["mask"] == path.read_bytes() and mask.shape == (row["height"], row["width"])
        assert set(np.unique(mask)) <= {0, *expected["image_labels"]}
        assert 0 < row["mean_top_score"] <= 1 and 0 <= row["uncertain_share"] <= 1
        seen |= set(np.unique(mask).tolist())
    assert len(seen) > 1


def test_label__manifest_tells_how_labels_were_made(labels: Path, shards: Shards) -> None:
    manifest = json.loads((labels / MANIFEST).read_text())
    assert manifest["shards_hash"] == shards.content_hash and manifest["class_names"] == list(CLASSES)
    protocol = manifest["protocol"]
    assert (protocol["split"], protocol["scales"], protocol["flip"]) == ("val", [1.0, 0.5], True)
    assert (protocol["read_out"], protocol["refinement"], protocol["masks_used"]) == ("prototype", "none", "none")


def test_label__refined_follows_the_image_and_the_protocol_says_so(
    run: str, shards: Shards, labels: Path, tmp_path: Path, ray_session: None
) -> None:
    from brnf.distributed.label import label

    label(replace(READ_OUT, refine="guided"), COMPUTE, run=run, shards=shards.path, out=str(tmp_path))
    protocol = json.loads((tmp_path / MANIFEST).read_text())["protocol"]
    assert protocol["refinement"] == "guided" and protocol["guided"]["rounds"] == 2
    names = [path.name for path in sorted((tmp_path / "masks").iterdir())]
    assert len(names) == NUM_IMAGES - 1
    pairs = [[decode_mask((where / "masks" / name).read_bytes()) for where in (labels, tmp_path)] for name in names]
    changed = [(before != after).mean() for before, after in pairs]
    assert 0 < np.mean(changed) < 0.5
    apart, compute = tmp_path / "apart", replace(COMPUTE, label_actors=1, refine_actors=2)
    label(replace(READ_OUT, refine="guided"), compute, run=run, shards=shards.path, out=str(apart))
    once = {name: content for name, content in contents(tmp_path).items() if not name.startswith("apart")}
    assert contents(apart) == once  # whoever refines


def test_label__ignores_what_is_not_sure_and_keeps_scores(
    run: str, shards: Shards, labels: Path, tmp_path: Path, ray_session: None
) -> None:
    from brnf.distributed.label import label

    masks = MasksConfig(ignore_below=0.9, keep_scores=True)
    label(READ_OUT, COMPUTE, run=run, shards=shards.path, out=str(tmp_path), masks=masks)
    assert json.loads((tmp_path / MANIFEST).read_text())["protocol"]["ignore_below"] == 0.9
    ignored = []
    for path in sorted((tmp_path / "masks").iterdir()):
        sure, every = (decode_mask((where / "masks" / path.name).read_bytes()) for where in (tmp_path, labels))
        ignored.append((sure == 255).mean())
        np.testing.assert_array_equal(sure[sure != 255], every[sure != 255])
        with np.load(tmp_path / "scores" / f"{path.stem}.npz") as kept:
            assert kept["keys"][0] == 0 and kept["scores"].dtype == np.float16
            assert kept["scores"].shape == (len(kept["keys"]), *(-(-side // 4) for side in every.shape))
            assert 0 <= kept["scores"].min() and kept["scores"].max() <= 1
    assert 0 < np.mean(ignored) < 1


def test_score__counts_in_every_way_what_evaluating_such_labels_does(
    run: str, shards: Shards, labels: Path, tmp_path: Path, ray_session: None
) -> None:
    from brnf.data.counts import Counts
    from brnf.distributed.label import label
    from brnf.distributed.score import score
    from brnf.evaluation.ablation import scores
    from brnf.evaluation.evaluate import evaluate

    ways = [READ_OUT, replace(READ_OUT, maps="classifier", refine="guided")]
    manifest = score(ways, COMPUTE, run=run, shards=shards.path, out=str(tmp_path / "scores"))
    assert [row["id"] for row in manifest["quarantine"]] == [BROKEN]
    assert [protocol["refinement"] for protocol in manifest["protocols"]] == ["none", "guided"]
    counts = Counts.open(str(tmp_path / "scores"))
    label(ways[1], COMPUTE, run=run, shards=shards.path, out=str(tmp_path / "labels"))
    for way, directory in enumerate((labels, tmp_path / "labels")):
        expected, found = evaluate(str(directory), shards.path), scores(counts, way, None)
        assert found == pytest.approx({name: expected[name] for name in found})
        assert found["images"] == NUM_IMAGES - 1


def stamps(masks: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in masks.glob("*.png")}


def test_label__killed_twice_it_ends_with_the_same_bytes(
    run: str,
    shards: Shards,
    labels: Path,
    tmp_path: Path,
    kill_when: Callable[[list[str], Callable[[], bool]], None],
    ray_session: None,
) -> None:
    """At most the units in flight are done twice, and another number of actors changes nothing."""
    from brnf.distributed.label import label

    masks, command = tmp_path / "masks", [sys.executable, "-c", DRIVER, run, shards.path, str(tmp_path)]
    in_flight = 2 * UNIT_ROWS
    left: list[dict[str, int]] = []
    for share in (0.2, 0.6):
        reached = int(share * NUM_IMAGES)
        kill_when(command, lambda: len(list(masks.glob("*.png"))) >= reached)  # noqa: B023  (called in this round)
        left.append(stamps(masks))
        assert share * NUM_IMAGES - 1 <= len(left[-1]) < NUM_IMAGES - 1
        assert not (tmp_path / MANIFEST).exists()
    label(READ_OUT, ComputeConfig(device="cpu", label_actors=3), run=run, shards=shards.path, out=str(tmp_path))
    left.append(stamps(masks))
    for before, after in pairwise(left):
        assert sum(after[name] != stamp for name, stamp in before.items()) <= in_flight
    disturbed = {name: bytes for name, bytes in contents(tmp_path).items() if not name.endswith(".partial")}
    assert disturbed == contents(labels)


def test_label__a_complete_directory_is_left_as_it_is(run: str, shards: Shards, labels: Path) -> None:
    from brnf.distributed.label import label

    before = stamps(labels / "masks")
    manifest = label(READ_OUT, COMPUTE, run=run, shards=shards.path, out=str(labels))
    assert manifest == json.loads((labels / MANIFEST).read_text()) and stamps(labels / "masks") == before


@dataclass(frozen=True)
class MadeSeeds:
    """Seeds that nothing disturbed, and the unit files from which they were assembled."""

    out: Path
    units: Path


@pytest.fixture(scope="module")
def seeds(run: str, shards: Shards, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> MadeSeeds:
    from brnf.distributed import label

    made = MadeSeeds(tmp_path_factory.mktemp("seeds"), tmp_path_factory.mktemp("copies") / "units")
    assemble = label.assemble
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label, "assemble", lambda *given: (shutil.copytree(given[1], made.units), assemble(*given))[1])
        label.make_seeds(READ_OUT, COMPUTE, run=run, shards=shards.path, out=str(made.out))
    return made


def test_make_seeds__is_a_sidecar_of_the_shards(shards: Shards, seeds: MadeSeeds) -> None:
    opened = Seeds.open(str(seeds.out), shards)
    manifest = opened.manifest
    assert sorted(contents(seeds.out)) == [MANIFEST, *(part["name"] for part in manifest["parts"])]
    assert [row["id"] for row in manifest["quarantine"]] == [BROKEN]
    assert sum(part["rows"] for part in manifest["parts"]) == NUM_IMAGES
    for unit in shards.units:
        rows, table = shards.read_unit(unit, ["id", "image_labels", "width", "height"]), opened.read_unit(unit)
        assert table.schema.equals(SEED) and table["id"].to_pylist() == rows["id"].to_pylist()
        for row, seed in zip(rows.to_pylist(), table.to_pylist(), strict=True):
            keys, scores = decode_seed(seed)
            assert scores.shape[1:] == (-(-row["height"] // 4), -(-row["width"] // 4))
            if row["id"] == BROKEN:
                assert keys.tolist() == [0] and not scores.any()
            else:
                assert keys.tolist() == [0, *row["image_labels"]]
                assert scores.min() >= 0 and 0.99 < scores.max() <= 1


def test_make_seeds__goes_on_where_it_stopped(
    run: str, shards: Shards, seeds: MadeSeeds, tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a stop leaves: some of the unit files, a part, no manifest."""
    from brnf.distributed import label

    shutil.copytree(seeds.units, tmp_path / "units")
    shutil.copy(seeds.out / "part-00000.parquet", tmp_path)
    for path in sorted((tmp_path / "units").iterdir())[::4]:
        path.unlink()
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "units").iterdir()}
    found: dict[str, int] = {}
    assemble = label.assemble

    def look(shards: Shards, folder: str, out: str) -> list[dict]:
        found.update({path.name: path.stat().st_mtime_ns for path in Path(folder).iterdir()})
        return assemble(shards, folder, out)

    monkeypatch.setattr(label, "assemble", look)
    label.make_seeds(READ_OUT, COMPUTE, run=run, shards=shards.path, out=str(tmp_path))
    assert kept.items() < found.items() and len(found) == len(shards.units)
    assert contents(tmp_path) == contents(seeds.out)


def test_make_seeds__stopped_at_the_very_end_only_tidies_up(
    run: str, shards: Shards, seeds: MadeSeeds, tmp_path: Path
) -> None:
    from brnf.distributed.label import make_seeds

    shutil.copytree(seeds.out, tmp_path, dirs_exist_ok=True)
    shutil.copytree(seeds.units, tmp_path / "units")
    sorted((tmp_path / "units").iterdir())[0].unlink()
    make_seeds(READ_OUT, COMPUTE, run=run, shards=shards.path, out=str(tmp_path))
    assert contents(tmp_path) == contents(seeds.out)


def test_label__refuses_what_does_not_fit(run: str, shards: Shards, tmp_path: Path) -> None:
    from brnf.distributed.label import label

    with pytest.raises(ValueError, match="without flow"):
        label(ReadOutConfig(maps="posterior"), COMPUTE, run=run, shards=shards.path, out=str(tmp_path / "a"))
    other = tmp_path / "run"
    other.mkdir()
    manifest = {**storage.read_json(storage.join(run, MANIFEST)), "class_names": ["background", "cat"]}
    storage.write_json(str(other / MANIFEST), manifest)
    with pytest.raises(ValueError, match="cat"):
        label(READ_OUT, COMPUTE, run=str(other), shards=shards.path, out=str(tmp_path / "b"))
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()
