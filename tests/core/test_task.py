"""Every loss trains, resumes to the bit, and is weighed as the spec says; what it learns stays out of the student."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dsd_core.data import open_dataset
from dsd_core.data.loader import Batch, train_batches
from dsd_core.distill.losses import LOSSES, category_similarity, cwd, pixel_similarity
from dsd_core.distill.losses.cross_entropy import CrossEntropy
from dsd_core.distill.losses.double_similarity import PixelSimilarity
from dsd_core.distill.losses.holistic import critic_loss
from dsd_core.distill.ops import critic
from dsd_core.distill.task import DistillTask
from dsd_core.learner import Learner, build_learner
from dsd_core.models.frozen import Frozen
from dsd_core.models.segmenter import Segmenter
from dsd_core.models.taps import Taps
from dsd_core.network_spec import Preprocess
from dsd_core.optim import Weights
from dsd_core.spec import parse_spec
from dsd_core.teacher import load_teacher
from tests.core.small import CLASSES, save_teacher, small_spec

CPU = torch.device("cpu")
VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {"loss": name} for name in LOSSES if name != "ce"},
    "cwd of features": {"loss": "cwd", "on": "feature"},
    "cwd of the head's logits": {"loss": "cwd", "logits_at": "head"},
    "fitnet of taps": {"loss": "fitnet", "on": "taps"},
    "pairwise of pooled features": {"loss": "skd_pairwise", "pool": "half"},
    "wasserstein critic": {"loss": "skd_holistic", "objective": "wgan_gp"},
    "kd at stride 4": {"loss": "kd", "stride": 4},
    "teacher's labels": {"loss": "ce", "name": "taught", "labels": "teacher", "confidence": 0.1},
    "hard pixels": {"loss": "ce", "name": "hard", "ohem": 0.5},
    "automatic weight": {"loss": "psd", "weight": "auto"},
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return save_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def batches(teacher: Any) -> list[Batch]:
    data = open_dataset("streets", None, "train", (32, 48))
    return list(train_batches(data, small_spec(teacher, train__batch=4).train, 0, 3))


def learner_of(teacher: Any, *losses: dict[str, Any], **changes: Any) -> Learner:
    spec = small_spec(teacher, losses=[{"loss": "ce"}, *losses], **changes)
    assert spec.teacher is not None
    frozen = Frozen(load_teacher(spec.teacher, CLASSES)[0])
    return build_learner(spec, spec.losses, frozen, len(CLASSES), CPU, None)


def weights_after(learner: Learner) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in learner.tensors().items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_loss_trains_and_goes_on_from_a_checkpoint_with_the_same_bits(variant, teacher, batches) -> None:
    learner, other = (learner_of(teacher, VARIANTS[variant]) for _ in range(2))
    for step, batch in enumerate(batches[:2]):
        terms, norms = learner.step(batch, 0.01, 0.5, measure=step == 0)
        assert all(value.isfinite() for value in (*terms.values(), *norms.values()))
    tensors, state = weights_after(learner), learner.state()
    learner.step(batches[2], 0.01, 0.6, measure=False)
    ours = weights_after(learner)
    other.restore(tensors, state)
    other.step(batches[2], 0.01, 0.6, measure=False)
    theirs = weights_after(other)
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


@pytest.mark.parametrize("variant", ["fitnet", "cwd of features", "skd_holistic"])
def test_what_a_loss_learns_moves_with_training_and_is_no_part_of_the_student(variant, teacher, batches) -> None:
    learner = learner_of(teacher, VARIANTS[variant])
    own = nn.ModuleList([learner.task.projections, learner.task.critics])
    before = [parameter.clone() for parameter in own.parameters()]
    learner.step(batches[0], 0.01, 0.5, measure=True)
    assert before and any(not torch.equal(a, b) for a, b in zip(before, own.parameters(), strict=True))
    plain = learner_of(teacher)
    assert set(learner.student.network.state_dict()) == set(plain.student.network.state_dict())


def test_the_same_seed_gives_the_same_student_whatever_the_losses(teacher) -> None:
    plain, other = learner_of(teacher), learner_of(teacher, VARIANTS["fitnet"], VARIANTS["skd_holistic"])
    pairs = zip(plain.student.parameters(), other.student.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_any_number_of_losses_combine_and_one_may_stand_twice_under_two_names(teacher, batches) -> None:
    two = [{"loss": "cwd"}, {"loss": "cwd", "name": "cwd-feature", "on": "feature", "weight": 50}]
    learner = learner_of(teacher, {"loss": "psd"}, {"loss": "csd"}, {"loss": "kd"}, *two)
    terms, norms = learner.step(batches[0], 0.01, 1.0, measure=True)
    assert set(terms) == {"ce", "psd", "csd", "kd", "cwd", "cwd-feature", "loss"}
    assert set(norms) == {*terms, "total"} - {"loss"}
    weights = {loss.term: loss.weight for loss in learner.task.losses}
    assert terms["loss"].item() == pytest.approx(sum(weights[t] * terms[t].item() for t in weights), rel=1e-5)


def test_the_critic_learns_to_tell_the_teacher_from_the_student() -> None:
    torch.manual_seed(0)
    judge = critic(3)
    optimizer = torch.optim.Adam(judge.parameters(), 2e-3)
    image = torch.rand(4, 3, 16, 16)
    real, fake = torch.zeros(4, 3, 16, 16), torch.full((4, 3, 16, 16), 1 / 3)
    real[:, 1] = 1
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = critic_loss(judge, fake, real, image)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert judge(real, image).mean() > judge(fake, image).mean()


# --- weights ----------------------------------------------------------------------------------------------------------


def test_a_weight_rises_over_the_warm_up_and_falls_as_its_decay_says() -> None:
    loss = PixelSimilarity(warmup=0.2, decay="linear")
    assert [loss.ramp(x) for x in (0.05, 0.1, 0.2, 0.6, 1.0)] == pytest.approx([0.25, 0.5, 1.0, 0.5, 0.0])
    cosine = PixelSimilarity(decay="cosine")
    assert [cosine.ramp(x) for x in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.5, 0.0])
    assert PixelSimilarity().ramp(0.3) == 1.0


def test_an_automatic_weight_gives_its_term_the_gradient_norm_of_the_first_term(teacher, batches) -> None:
    learner = learner_of(teacher, {"loss": "psd", "weight": "auto"}, {"loss": "csd", "weight": "auto"})
    _, norms = learner.step(batches[0], 0.01, 0.5, measure=True)
    assert norms["psd"].item() == pytest.approx(norms["ce"].item(), rel=1e-4)
    assert norms["csd"].item() == pytest.approx(norms["ce"].item(), rel=1e-4)
    first = dict(learner.weights.found)
    learner.step(batches[1], 0.01, 0.5, measure=False)
    assert learner.weights.found == first
    learner.step(batches[2], 0.01, 0.5, measure=True)
    assert learner.weights.found != first


def test_an_automatic_weight_moves_a_tenth_of_the_way_at_each_measurement() -> None:
    weights = Weights((CrossEntropy(weight=2.0), PixelSimilarity(weight="auto")))
    weights.balance({"ce": torch.tensor(3.0), "psd": torch.tensor(1.0)})
    assert weights.now() == {"ce": 2.0, "psd": 6.0}
    weights.balance({"ce": torch.tensor(3.0), "psd": torch.tensor(0.5)})
    assert weights.now()["psd"] == pytest.approx(0.9 * 6 + 0.1 * 12)
    weights.balance({"ce": torch.tensor(3.0), "psd": torch.tensor(0.0)})
    assert weights.now()["psd"] == pytest.approx(0.9 * 6 + 0.1 * 12)


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        ([{"loss": "ce", "weight": "auto"}], "give one a number"),
        ([{"loss": "ce"}, {"loss": "kd"}, {"loss": "kd"}], "give one a `name`"),
        ([{"loss": "ce"}, {"loss": "cwdd"}], "cwd"),
        ([{"loss": "ce"}, {"loss": "kd", "temprature": 2}], "temperature"),
        ([{"loss": "ce"}, {"loss": "kd", "name": "Kd.1"}], "pattern"),
    ],
)
def test_losses_that_make_no_sense_are_refused_with_what_to_write(losses, told) -> None:
    spec = {"name": "x", "dataset": {"name": "streets"}, "student": {"network": "espnet"}, "teacher": {"model": "t"}}
    with pytest.raises(Exception, match=told):
        parse_spec({**spec, "losses": losses})


def test_the_paper_s_losses_go_by_their_long_names_too() -> None:
    spec = {"name": "x", "dataset": {"name": "streets"}, "student": {"network": "espnet"}, "teacher": {"model": "t"}}
    long = [{"loss": "ce"}, {"loss": "pixel_similarity"}, {"loss": "category_similarity"}]
    assert [loss.loss for loss in parse_spec({**spec, "losses": long}).losses] == ["ce", "psd", "csd"]


# --- what the losses are given ----------------------------------------------------------------------------------------


class WithAuxiliary(nn.Module):
    """Features at 1/4, a head, and an auxiliary head."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, 6, 4, stride=4)
        self.auxiliary = nn.Conv2d(6, classes, 1)
        self.head = nn.Conv2d(6, classes, 1)

    def forward(self, images_N3HW: Tensor) -> Tensor:
        features = self.encoder(images_N3HW)
        self.auxiliary(features)
        return self.head(features).repeat_interleave(4, 2).repeat_interleave(4, 3)


def task_of(losses: tuple[Any, ...], layers: Any, classes: int = 3, stride: int = 4) -> DistillTask:
    torch.manual_seed(0)
    student, teacher = (Segmenter(WithAuxiliary(classes), Preprocess(), classes, stride) for _ in range(2))
    return DistillTask(student, Frozen(teacher), losses, student_layers=layers, teacher_layers=layers)


def small_batch(height: int = 8, width: int = 12) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 3, (2, height, width), generator=generator)
    labels[:, 0] = 255
    return Batch(images, labels, (0, 1))


def test_the_auxiliary_head_gets_its_share_of_the_cross_entropy() -> None:
    batch = small_batch()
    found = {}
    for share in (0.0, 0.4):
        task = task_of((CrossEntropy(auxiliary=share),), {"auxiliary": ("auxiliary",)})
        found[share] = task(batch)[0]["ce"]
    found[0.4].backward()
    assert found[0.4] > found[0.0]
    assert task.student.network.get_submodule("auxiliary").weight.grad.abs().sum() > 0


def test_features_of_a_padded_image_are_cut_to_the_image() -> None:
    layers = {"taps": ("encoder", "head")}
    task = task_of((PixelSimilarity(stride=4),), layers, stride=16)
    batch = small_batch(20, 24)  # padded to 32 x 32, whose features are 8 x 8
    with Taps(task.student.network, layers["taps"]) as S, Taps(task.teacher.network, layers["taps"]) as T:
        student, frozen = task.student(batch.images_N3HW), task.teacher(batch.images_N3HW)
        inside = [[feature[..., :5, :6] for feature in taps.features()] for taps in (S, T)]
    assert student.shape == frozen.shape == (2, 3, 20, 24)
    expected = pixel_similarity(*inside, grid=(5, 6), valid=batch.labels_NHW != 255)
    assert task(batch)[0]["psd"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_preset_of_the_public_implementation_equals_its_formulas(teacher, batches) -> None:
    learner = learner_of(teacher)
    spec = small_spec(teacher, losses="cirkd_dsd")
    frozen = learner.task.teacher
    assert frozen is not None
    task = build_learner(spec, spec.losses, frozen, len(CLASSES), CPU, None).task.eval()
    batch = Batch(batches[0].images_N3HW, batches[0].labels_NHW.clamp_max(len(CLASSES) - 1), batches[0].indices)
    with Taps(task.student.network, ("conv", "classifier")) as S, Taps(frozen.network, ("conv", "classifier")) as T:
        terms, _ = task(batch)
        student, teachers = S.features(), T.features()
    grid = (32 // 8, 48 // 8)
    psd = pixel_similarity(student, teachers, pairs="all", reduction="mean", grid=grid)
    csd = category_similarity(student[-1], teachers[-1], tau=4.0, softmax="spatial", normalize=False, pool=2)
    assert terms["psd"].item() == pytest.approx(psd.item(), abs=1e-6)
    assert terms["csd"].item() == pytest.approx(csd.item(), abs=1e-6)


def test_logits_of_the_head_leave_out_a_void_output(batches, tmp_path) -> None:
    learner = learner_of(save_teacher(tmp_path, classes=len(CLASSES) + 1), {"loss": "cwd", "logits_at": "head"})
    frozen = learner.task.teacher
    assert frozen is not None
    with Taps(learner.student.network, ("classifier",)) as S, Taps(frozen.network, ("classifier",)) as T:
        terms, _ = learner.task(batches[0])
        student, taught = S.features()[0], T.features()[0]
    assert taught.shape[1] == student.shape[1] + 1
    expected = cwd(student, taught[:, :-1], valid=batches[0].labels_NHW != 255)
    assert terms["cwd"].item() == pytest.approx(expected.item(), rel=1e-5)
