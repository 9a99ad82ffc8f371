"""What cannot work is refused before it is queued, with what, where and what to do."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from dsd_core.check import check
from dsd_core.errors import DataError, DsdError, SpecError, WeightsError
from dsd_core.spec import parse_spec
from tests.builders import tiny_camvid
from tests.core import layouts


@pytest.fixture
def camvid_folder(tmp_path):
    return tiny_camvid(tmp_path / "CamVid")


def weights_file(folder: Path, outputs: int = 11) -> Path:
    """A file whose header is that of an ESPNet's last layer; nothing else of it is read before a run."""
    path = folder / "teacher.safetensors"
    save_file({"classifier.weight": np.zeros((outputs, outputs, 2, 2), dtype=np.float32)}, path)
    path.with_suffix(".json").write_text('{"network": "espnet", "preprocess": "zero_one"}')
    return path


def job(root: Path, weights: Path, **changes: Any) -> Any:
    return parse_spec(
        {
            "name": "student",
            "dataset": {"name": "camvid", "root": str(root)},
            "student": {"network": "fpn:resnet18"},
            "teacher": {"weights": str(weights)},
            **changes,
        }
    )


def test_a_good_job_passes_with_findings_and_estimates(camvid_folder, tmp_path):
    checked = check(job(camvid_folder, weights_file(tmp_path), baseline=True, train={"epochs": 3, "batch": 2}))
    assert checked.estimates["steps"] == 2 * 3 * 3
    assert checked.estimates["views"] == 36 and checked.estimates["classes"] == 11
    assert checked.estimates["train_images"] == 6 and checked.estimates["val_images"] == 3
    assert any("The teacher is espnet" in finding.message for finding in checked.findings)
    assert checked.as_dict()["digest"] == checked.spec.digest()


def test_every_seed_counts_in_the_estimates(camvid_folder, tmp_path):
    trained = {"baseline": True, "seeds": [0, 1, 2], "train": {"epochs": 3, "batch": 2}}
    checked = check(job(camvid_folder, weights_file(tmp_path), **trained))
    assert checked.estimates["steps"] == 3 * 2 * 3 * 3 and checked.estimates["views"] == 108


def test_what_keeping_signals_takes_and_spares_is_estimated(camvid_folder, tmp_path):
    trained = {"losses": "cwd", "train": {"epochs": 4, "batch": 2}}
    kept = check(job(camvid_folder, weights_file(tmp_path), scales=[0.5, 1.0], **trained)).estimates
    assert (kept["signals"], kept["signals_records"], kept["signals_hit_rate"]) == ("image", 2 * 6, 0.75)
    assert (kept["teacher_passes"], kept["teacher_passes_in_loop"]) == (2 * 6, 4 * 6)
    assert kept["signals_bytes"] == 6 * 2 * 11 * (48 * 64 + 24 * 32) // 16  # half precision, logits at stride 4
    fewer = check(job(camvid_folder, weights_file(tmp_path), signals="view", views=2, top_k=2, **trained)).estimates
    assert fewer["signals_hit_rate"] == 0.5 and fewer["signals_bytes"] < kept["signals_bytes"]
    assert "signals" not in check(job(camvid_folder, weights_file(tmp_path), signals="off", **trained)).estimates


def test_losses_whose_signals_cannot_be_kept_are_refused(camvid_folder, tmp_path):
    error = refused(SpecError, job(camvid_folder, weights_file(tmp_path), signals="image", losses="fitnet"))
    assert error.field == "/signals" and "fitnet needs whole features" in error.message and "psd" in error.hint


def test_one_output_more_than_classes_is_taken_as_void_and_said(camvid_folder, tmp_path):
    findings = check(job(camvid_folder, weights_file(tmp_path, outputs=12))).findings
    assert any("taken as void" in finding.message for finding in findings)


def refused(kind: type[DsdError], spec: Any, **options: Any) -> DsdError:
    with pytest.raises(kind) as caught:
        check(spec, **options)
    assert caught.value.hint, "every refusal says what to do"
    return caught.value


def test_a_teacher_of_other_classes_is_refused(camvid_folder, tmp_path):
    error = refused(SpecError, job(camvid_folder, weights_file(tmp_path, outputs=20)))
    assert error.field == "/teacher/weights" and "has 20 classes, the dataset has 11" in error.message


def test_a_missing_dataset_folder_is_refused(tmp_path):
    error = refused(DataError, job(tmp_path / "nowhere", weights_file(tmp_path)))
    assert error.field == "/dataset/root" and "nowhere" in error.message


def test_a_mask_with_an_id_out_of_range_is_refused_with_file_and_id(camvid_folder, tmp_path):
    mask = camvid_folder / "trainannot" / "train_003.png"
    pixels = np.array(Image.open(mask))
    pixels[0, 0] = 77
    Image.fromarray(pixels).save(mask)
    error = refused(DataError, job(camvid_folder, weights_file(tmp_path)))
    assert "train_003.png" in error.message and "77" in error.message


def test_every_truncated_image_is_named(camvid_folder, tmp_path):
    for name in ("train_001.png", "train_004.png"):
        path = camvid_folder / "train" / name
        path.write_bytes(path.read_bytes()[:200])
    error = refused(DataError, job(camvid_folder, weights_file(tmp_path)))
    assert "train_001.png" in error.message and "train_004.png" in error.message


def test_a_missing_weights_file_is_refused(camvid_folder, tmp_path):
    error = refused(WeightsError, job(camvid_folder, tmp_path / "none.safetensors"))
    assert error.field == "/teacher/weights" and "none.safetensors" in error.message


def test_a_file_that_is_no_safetensors_is_refused_and_never_unpickled(camvid_folder, tmp_path):
    path = weights_file(tmp_path)
    path.write_bytes(b"\x80\x04cposix\nsystem\n(S'touch /tmp/canary'\ntR.")
    error = refused(WeightsError, job(camvid_folder, path))
    assert "safetensors" in error.message


def test_weights_without_a_description_say_what_is_missing(camvid_folder, tmp_path):
    path = weights_file(tmp_path)
    path.with_suffix(".json").unlink()
    error = refused(SpecError, job(camvid_folder, path))
    assert "network and preprocess" in error.message and "teacher.json" in str(error.hint)


def test_an_unknown_encoder_is_refused_with_names_near_it(camvid_folder, tmp_path):
    spec = job(camvid_folder, weights_file(tmp_path), student={"network": "fpn:resnet19"})
    error = refused(SpecError, spec)
    assert error.field == "/student/network/encoder" and "resnet18" in str(error.hint)


def test_a_relative_path_is_refused_by_the_service_and_taken_without_it(camvid_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = job(Path("CamVid"), weights_file(tmp_path))
    assert check(spec).estimates["train_images"] == 6
    assert refused(SpecError, spec, service=True).field == "/dataset/root"


def test_a_path_outside_the_allowed_folders_is_refused_even_through_a_link(camvid_folder, tmp_path):
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    (allowed / "link").symlink_to(camvid_folder)
    weights = weights_file(tmp_path)
    for root in (camvid_folder, allowed / "link", allowed / ".." / "CamVid"):
        error = refused(SpecError, job(root, weights), data_roots=(allowed,))
        assert error.field == "/dataset/root" and str(allowed) in str(error.hint)


def folder_job(root: Path, **changes: Any) -> Any:
    spec = {"kind": "train", "name": "student", "student": {"network": "espnet"}}
    return parse_spec({**spec, "dataset": {"name": "folder", "root": str(root)}, **changes})


def test_images_of_several_sizes_need_a_crop_or_a_size(tmp_path):
    root = layouts.folder(tmp_path)
    layouts.save_image(root / "images" / "train" / "b.png", (30, 40))
    layouts.save_ids(root / "masks" / "train" / "b.png", [0, 1], (30, 40))
    error = refused(SpecError, folder_job(root))
    assert error.field == "/train/augment/crop" and "18x24 and 30x40" in error.message
    assert check(folder_job(root, train={"augment": {"crop": [16, 16]}})).classes == ("road", "car", "sky")
    assert check(folder_job(root, dataset={"name": "folder", "root": str(root), "size": [16, 16]}))


def test_a_loss_of_labels_is_refused_for_images_without_them(tmp_path):
    root = layouts.folder(tmp_path)
    shutil.rmtree(root / "masks")
    error = refused(SpecError, folder_job(root))
    assert error.field == "/losses" and "the loss ce" in error.message and "`labels: teacher`" in str(error.hint)


def test_a_teacher_alone_may_teach_on_images_without_labels(tmp_path):
    root = layouts.folder(tmp_path)
    shutil.rmtree(root / "masks")
    changes = {"kind": "distill", "teacher": {"weights": str(weights_file(tmp_path, outputs=3))}}
    findings = check(folder_job(root, losses=[{"loss": "kd"}], **changes)).findings
    assert any("no mIoU will be known" in finding.message for finding in findings)


def test_a_class_that_train_does_not_show_and_blank_masks_are_found(tmp_path):
    root = layouts.folder(tmp_path, "[road, car, sky, never]")
    layouts.save_ids(root / "masks" / "train" / "a.png", [255])
    warnings = [finding.message for finding in check(folder_job(root)).findings if finding.level == "warning"]
    assert "train shows no pixel of never." in warnings
    assert "1 masks of train ignore every pixel: a.png." in warnings


def test_class_weights_by_shares_are_refused_where_no_image_has_labels(tmp_path):
    root = layouts.folder(tmp_path / "data")
    shutil.rmtree(root / "masks" / "train")
    teacher = {"weights": str(weights_file(tmp_path, outputs=3))}
    spec = {
        "name": "a",
        "dataset": {"name": "folder", "root": str(root)},
        "student": {"network": "espnet"},
        "teacher": teacher,
        "losses": [{"loss": "ce", "labels": "teacher", "class_weights": "log"}],
    }
    with pytest.raises(SpecError, match="shares of the classes") as caught:
        check(parse_spec(spec))
    assert caught.value.field == "/losses"


def test_a_pickle_is_called_one_before_anything_else_is_asked_of_it(camvid_folder, tmp_path):
    pickle = tmp_path / "teacher.pth"
    pickle.write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(WeightsError, match="is a pickle") as caught:
        check(job(camvid_folder, pickle))
    assert caught.value.field == "/teacher/weights"


def trained_job(root: Path, **changes: Any) -> Any:
    student = {"weights": str(weights_file(root.parent))}
    spec = {"kind": "evaluate", "name": "score", "dataset": {"name": "camvid", "root": str(root)}, "student": student}
    return parse_spec(spec | changes)


def test_a_trained_student_is_checked_by_its_file_and_the_validation_split_alone(camvid_folder):
    shutil.rmtree(camvid_folder / "train")
    checked = check(trained_job(camvid_folder))
    assert (checked.estimates["val_images"], checked.estimates["steps"], checked.estimates["views"]) == (3, 0, 0)
    assert any("The student is espnet" in finding.message for finding in checked.findings)
    assert len(checked.classes) == 11


@pytest.mark.parametrize(
    ("student", "error", "field", "says"),
    [
        ({"weights": "/nowhere.safetensors"}, WeightsError, "/student/weights", "There is no weights file"),
        ({"job": "b2", "network": "fpn:resnet19"}, SpecError, "/student/network/encoder", "resnet19"),
    ],
)
def test_a_trained_student_that_cannot_be_used_names_its_field(camvid_folder, student, error, field, says):
    found = refused(error, trained_job(camvid_folder, student=student))
    assert found.field == field and says in found.message


def test_a_trained_student_of_other_classes_is_refused(camvid_folder, tmp_path):
    student = {"weights": str(weights_file(tmp_path / "CamVid", outputs=5))}
    assert refused(SpecError, trained_job(camvid_folder, student=student)).field == "/student/weights"


def test_nothing_is_scored_on_images_without_labels(tmp_path):
    root = layouts.folder(tmp_path, val=["a"])
    shutil.rmtree(root / "masks")
    data = {"name": "folder", "root": str(root)}
    error = refused(DataError, trained_job(root, dataset=data, student={"job": "b2"}))
    assert error.field == "/dataset" and "kind: export" in str(error.hint)
    assert check(trained_job(root, kind="export", dataset=data, student={"job": "b2"})).classes


@pytest.mark.parametrize("field", ["weights", "onnx"])
def test_a_name_that_no_file_can_have_is_refused_at_its_own_field(field: str) -> None:
    spec = parse_spec(
        {
            "name": "x",
            "dataset": {"name": "streets"},
            "student": {"network": "espnet"},
            "teacher": {field: f"/{'a' * 300}.safetensors"},
        }
    )
    with pytest.raises(SpecError, match="is not a path") as caught:
        check(spec)
    assert caught.value.field == f"/teacher/{field}" and "255" in (caught.value.hint or "")
