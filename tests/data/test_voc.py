"""The VOC layout: what is read, where labels come from, what is refused and why."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest

from brnf.data.restricted_pickle import load_npy
from brnf.data.voc import VocTree

HEIGHT, WIDTH = 12, 16


def jpeg(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> bytes:
    """A small textured photograph."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return cv2.imencode(".jpg", pixels)[1].tobytes()


def mask_png(*classes: int, height: int = HEIGHT, width: int = WIDTH) -> bytes:
    """A mask with one row of each class, background below."""
    mask = np.zeros((height, width), np.uint8)
    for row, index in enumerate(classes):
        mask[row] = index
    return cv2.imencode(".png", mask)[1].tobytes()


def add_image(root: Path, id: str, *, tags: tuple[str, ...] | None = ("cat",), mask: bytes | None = None) -> None:
    """Put an image into a tree, with its annotation unless `tags` is None."""
    (root / "JPEGImages").mkdir(parents=True, exist_ok=True)
    (root / "JPEGImages" / f"{id}.jpg").write_bytes(jpeg())
    if tags is not None:
        (root / "Annotations").mkdir(exist_ok=True)
        objects = "".join(f"<object><name>{tag}</name><part><name>head</name></part></object>" for tag in tags)
        (root / "Annotations" / f"{id}.xml").write_text(f"<annotation>{objects}</annotation>")
    if mask is not None:
        (root / "SegmentationClass").mkdir(exist_ok=True)
        (root / "SegmentationClass" / f"{id}.png").write_bytes(mask)


def add_split(root: Path, split: str, *ids: str) -> None:
    """Write the list of a split."""
    (root / "ImageSets/Segmentation").mkdir(parents=True, exist_ok=True)
    (root / "ImageSets/Segmentation" / f"{split}.txt").write_text("".join(f"{id}\n" for id in ids))


def refusals(tree: VocTree) -> dict[str, str]:
    """Reason by id of everything that is refused."""
    entries, refused = tree.list_entries()
    reasons = {refusal.id: refusal.reason for refusal in refused}
    for entry in entries:
        try:
            tree.read_record(entry)
        except ValueError as error:
            reasons[entry.id] = str(error)
    return reasons


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A tree with three sound images in `val`, two of them with masks asked for."""
    for id, tags in {"a": ("cat", "cat", "dog"), "b": ("person",), "c": ("cat",)}.items():
        add_image(tmp_path, id, tags=tags, mask=mask_png(8))
    add_split(tmp_path, "val", "a", "b", "c")
    return tmp_path


def read(root: Path, split: str = "val") -> dict[str, tuple]:
    """Record and label source by id."""
    tree = VocTree.open(str(root), split)
    return {entry.id: tree.read_record(entry) for entry in tree.list_entries()[0]}


def test_record__holds_the_delivered_bytes_and_the_annotated_classes(root: Path) -> None:
    record, source = read(root)["a"]
    assert (record.image, record.mask) == (jpeg(), mask_png(8))
    assert record.image_labels == (8, 12)  # cat, dog; the part's name "head" is no tag
    assert (record.width, record.height, record.orientation) == (WIDTH, HEIGHT, 1)
    assert (source, record.context) == ("xml", None)


def test_labels__fall_back_to_the_table_then_to_the_mask(root: Path) -> None:
    (root / "Annotations/b.xml").unlink()
    (root / "Annotations/c.xml").unlink()
    (root / "SegmentationClass/c.png").write_bytes(mask_png(3, 255, 20))
    table = {"b": np.eye(20, dtype=np.float32)[[4, 6]].sum(axis=0)}
    np.save(root / "cls_labels.npy", table, allow_pickle=True)  # type: ignore[arg-type]
    found = {id: (record.image_labels, source) for id, (record, source) in read(root).items()}
    assert found == {"a": ((8, 12), "xml"), "b": ((5, 7), "cls_labels.npy"), "c": ((3, 20), "masks")}


def test_masks__of_train_aug_come_from_the_augmented_folder(root: Path) -> None:
    add_split(root, "train_aug", "a")
    (root / "SegmentationClassAug").mkdir()
    (root / "SegmentationClassAug/a.png").write_bytes(mask_png(8, 12))
    assert read(root, "train_aug")["a"][0].mask == mask_png(8, 12)
    assert read(root, "val")["a"][0].mask == mask_png(8)


def test_masks__are_null_where_the_tree_has_no_folder_of_them(root: Path) -> None:
    add_split(root, "train_aug", "a", "b")
    tree = VocTree.open(str(root), "train_aug")
    assert tree.masks is None
    assert read(root, "train_aug")["b"][0].mask is None


def test_classes_txt__replaces_the_names(root: Path) -> None:
    (root / "classes.txt").write_text("dog\ncat\n\nperson\n")
    tree = VocTree.open(str(root), "val")
    assert tree.class_names == ("background", "dog", "cat", "person")
    with pytest.raises(ValueError, match=r"holds class 8; there are 4"):
        read(root)
    (root / "classes.txt").write_text("dog\ndog\nbackground\n")
    with pytest.raises(ValueError, match="take out dog"):
        VocTree.open(str(root), "val")


def test_contexts__are_read_where_the_tree_has_them(root: Path) -> None:
    (root / "SegmentationContext").mkdir()
    for id in "abc":
        (root / f"SegmentationContext/{id}.png").write_bytes(mask_png(4))
    assert read(root)["a"][0].context == mask_png(4)


def test_refusals__name_the_image_and_the_reason(root: Path) -> None:
    bad = {
        "truncated": "truncated JPEG", "text": "not an image", "gone": "JPEGImages/gone.jpg is missing",
        "unmasked": "SegmentationClass/unmasked.png is missing",
        "wide": "wide.png is 20 x 12 pixels, its image 16 x 12",
        "colours": "holds colours", "class21": "holds class 21", "unicorn": "unknown tag 'unicorn'",
        "untagged": "no tags", "broken": "not valid XML", "up/../escape": "path separator", "x" * 151: "151 bytes",
        ".hidden": "begins with a dot", "b\x07ell": "control character", "a": "duplicate id",
    }  # fmt: skip
    written = [id for id in bad if id.isidentifier() and id != "a"]
    for id in written:
        add_image(root, id, mask=mask_png(8))
    (root / "JPEGImages/truncated.jpg").write_bytes(jpeg()[:-40])
    (root / "JPEGImages/text.jpg").write_text("hello")
    (root / "JPEGImages/gone.jpg").unlink()
    (root / "SegmentationClass/unmasked.png").unlink()
    (root / "SegmentationClass/wide.png").write_bytes(mask_png(8, width=20))
    (root / "SegmentationClass/colours.png").write_bytes(jpeg())
    (root / "SegmentationClass/class21.png").write_bytes(mask_png(21, 255))
    add_image(root, "unicorn", tags=("unicorn",))
    add_image(root, "untagged", tags=())
    (root / "Annotations/broken.xml").write_text("<annotation><object>")
    add_split(root, "val", "a", "b", "c", *bad)
    found = refusals(VocTree.open(str(root), "val"))
    assert found.keys() == bad.keys()
    assert {id: reason for id, reason in bad.items() if reason not in found[id]} == {}


def test_rows__are_in_an_order_unrelated_to_names(root: Path) -> None:
    ids = [f"{number:04d}" for number in range(200)]
    add_split(root, "val", *ids)
    add_split(root, "reversed", *reversed(ids))
    order = [entry.id for entry in VocTree.open(str(root), "val").list_entries()[0]]
    assert sorted(order) == ids
    assert abs(np.corrcoef(np.argsort(order), np.arange(200))[0, 1]) < 0.3
    assert [entry.id for entry in VocTree.open(str(root), "reversed").list_entries()[0]] == order


def test_open__says_what_is_wrong_and_what_is_there(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--split 'test'.*splits there: val"):
        VocTree.open(str(root), "test")
    with pytest.raises(ValueError, match="has no folder JPEGImages"):
        VocTree.open(str(tmp_path / "nowhere"), "val")


def test_fingerprint__changes_with_what_the_split_is_made_of(root: Path) -> None:
    def fingerprint() -> str:
        return VocTree.open(str(root), "val").fingerprint()

    before = fingerprint()
    add_image(root, "elsewhere")  # in no split
    assert fingerprint() == before
    (root / "JPEGImages/b.jpg").write_bytes(jpeg() + b"\0")
    changed = fingerprint()
    assert changed != before
    (root / "Annotations/c.xml").unlink()
    assert fingerprint() not in (before, changed)


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.marker),)


def test_label_table__that_runs_code_is_refused_and_does_not_run(root: Path, tmp_path: Path) -> None:
    (root / "Annotations/b.xml").unlink()
    np.save(root / "cls_labels.npy", np.array({"b": Malicious(tmp_path / "ran")}, dtype=object))
    with pytest.raises(ValueError, match=r"cls_labels.npy.*mkdir"):
        VocTree.open(str(root), "val")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("table", [{"b": np.ones(7)}, ["b"], {"b": "cat"}])
def test_label_table__of_another_form_is_refused(root: Path, table: object) -> None:
    (root / "Annotations/b.xml").unlink()
    np.save(root / "cls_labels.npy", np.array(table, dtype=object))
    with pytest.raises(ValueError, match=r"cls_labels.npy.*give a dict of id -> 20 numbers"):
        VocTree.open(str(root), "val")


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_load_npy__gives_back_arrays_and_containers_of_any_protocol(protocol: int, tmp_path: Path) -> None:
    value = {"keys": np.array([0, 8]), "cam": np.random.rand(2, 3, 4).astype(np.float16), "score": np.float32(0.5),
             "name": "a", "nested": [(1, 2.5, None)], "raw": b"\xff\x00"}  # fmt: skip
    np.save(tmp_path / "head.npy", np.array(None, dtype=object))
    header = (tmp_path / "head.npy").read_bytes()[:128]
    loaded = load_npy(header + pickle.dumps(np.array(value, dtype=object), protocol))
    assert loaded.keys() == value.keys()
    np.testing.assert_array_equal(loaded["cam"], value["cam"])
    assert (loaded["score"], loaded["nested"], loaded["raw"]) == (0.5, [(1, 2.5, None)], b"\xff\x00")


def test_load_npy__reads_plain_arrays_and_refuses_what_is_none(tmp_path: Path) -> None:
    np.save(tmp_path / "plain.npy", np.arange(6.0).reshape(2, 3))
    content = (tmp_path / "plain.npy").read_bytes()
    np.testing.assert_array_equal(load_npy(content), np.arange(6.0).reshape(2, 3))
    for broken in (b"", b"hello", content[:-5], pickle.dumps({})):
        with pytest.raises(ValueError, match=r"no \.npy file"):
            load_npy(broken)


def test_photographs__are_read_as_they_are_described(shared: Path) -> None:
    tree = VocTree.open(str(shared / "data/voc_subset/VOCdevkit/VOC2012"), "val")
    entries, refused = tree.list_entries()
    assert (len(entries), refused, len(tree.class_names)) == (150, [], 21)
    for entry in entries[:5]:
        record, source = tree.read_record(entry)
        assert source == "xml"
        assert record.mask is not None and max(record.width, record.height) == 320


def test_photographs__their_label_table_is_read_by_the_restricted_unpickler(shared: Path) -> None:
    table = load_npy((shared / "data/voc_subset/VOCdevkit/VOC2012/cls_labels.npy").read_bytes())
    assert len(table) >= 3051
    assert {row.shape for row in table.values()} == {(20,)}
