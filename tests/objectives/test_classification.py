from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sklearn import metrics
from torch.nn import functional

from tymbal.features.normalisation import Normalisation
from tymbal.models.classifier import SpectrogramClassifier
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder
from tymbal.objectives.batch_augmentation import Augmentation, spec_augment
from tymbal.objectives.classification import ClassificationObjective, Ensemble
from tymbal.randomness import fold
from tymbal.settings.augmentation import SpectrogramViews
from tymbal.views.spectrogram_views import spectrogram_views

NORMALISATION = Normalisation(mean=-5.0, std=2.0, padding=-10.0)


def tiny(**settings: object) -> ClassificationObjective:
    torch.manual_seed(0)
    config = EncoderConfig(width=16, depth=1, heads=2, mels=16, frames=32, patch=(8, 8), stride=(8, 8))
    model = SpectrogramClassifier(SpectrogramEncoder(config), 3)
    defaults = {"normalisation": NORMALISATION, "columns": torch.tensor([3, 0, 1])}
    return ClassificationObjective(model, **{**defaults, **settings})  # type: ignore[arg-type]


def batch(size: int = 6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.zeros(size, 4)
    labels[torch.arange(size), torch.tensor([0, 1, 3, 3, 0, 1])[:size]] = 1
    return {
        "spectrogram": (torch.randn(size, 32, 16, generator=generator) * 2 - 5).half(),
        "frames": torch.tensor([32, 32, 20, 8, 32, 32])[:size],
        "labels": labels,
        "row": torch.arange(size),
        "epoch": torch.zeros(size, dtype=torch.int64),
    }


def test_forward__is_cross_entropy_of_the_model_in_its_own_label_order() -> None:
    objective, given = tiny().eval(), batch()
    result = objective(**given)
    x = NORMALISATION(given["spectrogram"], given["frames"])
    expected = functional.cross_entropy(objective.model(x), torch.tensor([1, 2, 0, 0, 1, 2]))
    torch.testing.assert_close(result["loss"], expected)
    assert objective.metrics(result["sums"])["loss"] == pytest.approx(expected.item(), rel=1e-6)
    given["labels"] = given["labels"].argmax(1)
    torch.testing.assert_close(objective(**given)["loss"], expected)


def test_forward__changes_training_clips_by_views_that_follow_from_seed_epoch_and_row() -> None:
    objective, given = tiny(views=replace(SpectrogramViews(), mix=0.0), seed=7), batch()
    losses = [objective.train()(**given)["loss"] for _ in range(2)]
    keys = fold(7, given["epoch"], given["row"])
    x = NORMALISATION(given["spectrogram"], given["frames"])
    x, frames = spectrogram_views(x, given["frames"], keys, objective.views, padding=(-10 + 5) / 4, scale=4.0)
    expected = functional.cross_entropy(objective.model(x, frames=frames), torch.tensor([1, 2, 0, 0, 1, 2]))
    assert losses[0].equal(losses[1])
    torch.testing.assert_close(losses[0], expected)
    assert not objective(**{**given, "epoch": given["epoch"] + 1})["loss"].equal(losses[0])
    torch.testing.assert_close(objective.eval()(**given)["loss"], tiny().eval()(**given)["loss"])


def test_metrics__of_two_batches_are_those_of_all_clips() -> None:
    objective, given = tiny().eval(), batch()
    halves = [{key: value[part] for key, value in given.items()} for part in (slice(0, 2), slice(2, 6))]
    first, second = (objective(**half)["sums"] for half in halves)
    together = objective.metrics({key: first[key] + second[key] for key in first})
    whole = objective.metrics(objective(**given)["sums"])
    assert together == pytest.approx(whole)
    x = NORMALISATION(given["spectrogram"], given["frames"])
    truth, predicted = torch.tensor([1, 2, 0, 0, 1, 2]), objective.model(x).argmax(1)
    assert whole["accuracy"] == pytest.approx(metrics.accuracy_score(truth, predicted))
    assert whole["f1"] == pytest.approx(metrics.f1_score(truth, predicted, average="macro"))
    assert 0 < whole["mAP"] <= 1


def test_multilabel__is_binary_cross_entropy() -> None:
    objective, given = tiny(multilabel=True, best_by="mAP").eval(), batch()
    given["labels"][0] = 1
    given["labels"][1] = 0
    result = objective(**given)
    x = NORMALISATION(given["spectrogram"], given["frames"])
    logits, truth = objective.model(x), given["labels"][:, [3, 0, 1]]
    torch.testing.assert_close(result["loss"], functional.binary_cross_entropy_with_logits(logits, truth))
    found = objective.metrics(result["sums"])
    assert found["accuracy"] == pytest.approx(((logits > 0) == (truth > 0)).float().mean().item())
    assert found["mAP"] == pytest.approx(metrics.average_precision_score(truth, logits.detach()), abs=0.02)
    assert objective.monitor == ("mAP", True)
    assert found["prevalence"] == pytest.approx(truth[:, truth.any(dim=0)].float().mean().item())
    assert list(found)[:3] == ["loss", "mAP", "prevalence"]
    assert list(found)[-1] == "accuracy"


@pytest.mark.parametrize("multilabel", [False, True])
def test_label_smoothing__only_while_training(multilabel: bool) -> None:
    plain, smooth = (tiny(multilabel=multilabel, label_smoothing=by) for by in (0.0, 0.2))
    given = batch()
    assert smooth.eval()(**given)["loss"] == plain.eval()(**given)["loss"]
    assert smooth.train()(**given)["loss"] != plain.train()(**given)["loss"]


def test_class_weights__weigh_the_loss_of_each_clip_only_while_training() -> None:
    plain, weighed, given = tiny(), tiny(class_weights=torch.tensor([0.5, 1.0, 3.0])), batch()
    assert weighed.eval()(**given)["loss"] == plain.eval()(**given)["loss"]
    logits = plain.model(NORMALISATION(given["spectrogram"], given["frames"]))
    truth = torch.tensor([1, 2, 0, 0, 1, 2])
    each = functional.cross_entropy(logits, truth, reduction="none")
    expected = (each * torch.tensor([1.0, 3.0, 0.5, 0.5, 1.0, 3.0])).mean()
    torch.testing.assert_close(weighed.train()(**given)["loss"], expected)


def test_class_weights__weigh_yes_and_no_of_several_labels() -> None:
    weights = torch.tensor([[0.5, 1.0, 2.0], [4.0, 1.0, 0.25]])
    objective, given = tiny(multilabel=True, label_smoothing=0.2, class_weights=weights).train(), batch()
    given["labels"][0] = 1
    logits, truth = objective.model(NORMALISATION(given["spectrogram"], given["frames"])), given["labels"][:, [3, 0, 1]]
    smoothed = truth * 0.8 + 0.1
    each = -(smoothed * functional.logsigmoid(logits) + (1 - smoothed) * functional.logsigmoid(-logits))
    expected = (each * torch.where(truth > 0, weights[1], weights[0])).mean()
    torch.testing.assert_close(objective(**given)["loss"], expected)


def test_spec_augment__hides_what_seed_epoch_and_row_say() -> None:
    x, frames = torch.ones(400, 40, 16), torch.full((400,), 30)
    row = torch.arange(400)
    keys = fold(7, torch.zeros(400, dtype=torch.int64), row)
    hidden = spec_augment(x, keys, frames, frequency_mask=4, time_mask=10) == 0
    # A single clip draws what it draws in the batch.
    alone = spec_augment(x[5:6], keys[5:6], frames[5:6], frequency_mask=4, time_mask=10) == 0
    assert torch.equal(alone[0], hidden[5])
    assert not torch.equal(
        spec_augment(x, fold(7, torch.ones(400, dtype=torch.int64), row), frames, frequency_mask=4, time_mask=10) == 0,
        hidden,
    )
    band, stretch = hidden.all(dim=1), hidden.all(dim=2)
    assert torch.equal(hidden, band[:, None, :] | stretch[:, :, None])
    assert sorted(set(band.sum(1).tolist())) == [0, 1, 2, 3, 4]
    assert sorted(set(stretch.sum(1).tolist())) == list(range(11))
    assert not stretch[:, 30:].any()
    # Widths are uniform: their means are half the widest, within four standard errors.
    assert band.sum(1).float().mean() == pytest.approx(2.0, abs=0.3)
    assert stretch.sum(1).float().mean() == pytest.approx(5.0, abs=0.7)


def test_spec_augment__never_in_evaluation() -> None:
    objective, given = tiny(augmentation=Augmentation(frequency_mask=8, time_mask=16)), batch()
    assert objective.eval()(**given)["loss"] == tiny().eval()(**given)["loss"]
    assert objective.train()(**given)["loss"] != tiny().train()(**given)["loss"]


@pytest.mark.parametrize("multilabel", [False, True])
def test_ensemble__scores_the_mean_of_all_predictions_so_far(multilabel):
    rows, generator = torch.tensor([3, 5, 8, 11, 12, 20]), torch.Generator().manual_seed(0)
    truth = torch.eye(3, dtype=torch.bool)[[0, 1, 2, 0, 1, 2]]
    ensemble = Ensemble(rows, 3, multilabel=multilabel)
    total = torch.zeros(6, 3)
    for _ in range(3):
        logits = torch.randn(6, 3, generator=generator) + truth
        total += logits.sigmoid() if multilabel else logits.softmax(1)
        parts = [ensemble.sums(logits[part], truth[part], rows[part]) for part in (slice(4, 6), slice(0, 4))]
    found = ensemble.metrics({name: parts[0][name] + parts[1][name] for name in parts[0]})
    mean = (total / 3).numpy()
    assert found["ensemble_mAP"] == pytest.approx(metrics.average_precision_score(truth.numpy(), mean, average="macro"))
    assert found["ensemble_auc"] == pytest.approx(metrics.roc_auc_score(truth.numpy(), mean, average="macro"))
    assert found["ensemble_top1"] == (mean.argmax(1) == truth.int().argmax(1).numpy()).mean()
    other = Ensemble(rows, 3, multilabel=multilabel)
    other.load_state_dict(ensemble.state_dict())
    torch.testing.assert_close(other.mean, total / 3)
