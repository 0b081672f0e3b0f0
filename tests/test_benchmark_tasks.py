"""The models that the benchmarks train themselves are trained once, and again only by other settings."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bough
from benchmarks.tasks import trained as cache
from benchmarks.tasks.cifar_models import ViT, plain_cnn
from benchmarks.tasks.dense_prediction import FSRCNN, PastedDigits, SmallPatches, UNet, mean_iou, psnr
from benchmarks.tasks.speech import COEFFICIENTS, DSCNN, SpeechGRU, cosines, features

MODELS = {
    "vit": (lambda: ViT(16, 1, 2), (2, 3, 32, 32), (2, 10)),
    "plain_cnn": (plain_cnn, (2, 3, 32, 32), (2, 10)),
    "speech_gru": (lambda: SpeechGRU(8, 8), (2, 65, COEFFICIENTS), (2, 10)),
    "dscnn": (lambda: DSCNN(8), (2, 65, COEFFICIENTS), (2, 10)),
    "super_resolution": (FSRCNN, (2, 1, 8, 8), (2, 1, 24, 24)),
    "unet": (lambda: UNet(3, (4, 8, 16)), (2, 3, 16, 16), (2, 3, 16, 16)),
}


@pytest.mark.parametrize("name", MODELS)
def test_each_model_can_be_cut_to_half_and_then_gives_what_the_masked_one_gives(name: str) -> None:
    build, shape, out = MODELS[name]
    torch.manual_seed(0)
    model, x = build().eval(), torch.randn(shape)
    result = bough.prune(model, x, bough.Budget(macs="50%"))
    assert result.report.equal
    assert result.model(x).shape == model(x).shape == out


def test_weights_are_trained_once_and_anew_by_other_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "FOLDER", tmp_path)
    runs = []

    def train(model: nn.Module, folder: Path) -> None:
        runs.append(folder)
        with torch.no_grad():
            model.weight.fill_(len(runs))

    def weight(**settings: float) -> float:
        model = cache.trained("net", lambda: nn.Linear(1, 1), train, cache.settings_of(cache.recipe(**settings), images=3))
        assert not model.training
        return model.weight.item()

    assert [weight(lr=0.1), weight(lr=0.1), weight(lr=0.2), weight(lr=0.2)] == [1, 1, 2, 2]
    assert runs == [tmp_path / "runs" / "net"] * 2


def test_features_of_speech_do_not_depend_on_the_batch_and_the_transform_is_orthonormal() -> None:
    torch.manual_seed(0)
    waves = torch.randn(3, 8192)
    together = features(waves)
    assert together.shape == (3, 65, COEFFICIENTS)
    torch.testing.assert_close(together[1:2], features(waves[1:2]), atol=1e-4, rtol=0)
    torch.testing.assert_close(cosines() @ cosines().T, torch.eye(COEFFICIENTS), atol=1e-5, rtol=0)


def test_dense_labels_are_drawn_by_the_seed_and_metrics_are_right_for_known_answers() -> None:
    grey = torch.randint(256, (2, 80, 80)).float()
    masks = torch.ones(1, 32, 32, dtype=torch.bool)
    for data in (SmallPatches(grey), PastedDigits(torch.randint(256, (2, 3, 80, 80)), masks)):
        draws = []
        for _ in range(2):
            torch.manual_seed(1)
            draws.append(data.__getitems__([0, 1]))
        assert all(map(torch.equal, *draws))
    labels = draws[0][1]
    assert set(labels.unique().tolist()) == {0, 1}

    class Known(nn.Module):
        def __init__(self, answer: Tensor) -> None:
            super().__init__()
            self.answer = answer

        def forward(self, x: Tensor) -> Tensor:
            return self.answer

    right = nn.functional.one_hot(labels, 3).movedim(-1, 1).float()
    assert mean_iou(Known(right), torch.zeros(2, 1), labels) == 100  # classes without a pixel do not count
    background = (labels == 0).float().mean().item()
    nothing = nn.functional.one_hot(torch.zeros_like(labels), 3).movedim(-1, 1).float()
    assert mean_iou(Known(nothing), torch.zeros(2, 1), labels) == pytest.approx(100 * background / 2)
    wanted = torch.full((2, 1, 9, 9), 0.5)
    assert psnr(Known(wanted + 0.1), torch.zeros(2, 1), wanted) == pytest.approx(20, abs=1e-3)
