"""The contrastive loss against loops over numbers, the min-SNR weights against the paper's closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from eeg2speech.losses import clip_loss, min_snr_weight, similarity


def embeddings(n: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 3, 5)), rng.normal(size=(k, 3, 5))


def test_similarity_is_the_projection_onto_the_unit_candidate() -> None:
    estimate, candidate = embeddings(4, 6)
    wanted = [[float((e * c).sum() / math.sqrt((c * c).sum())) for c in candidate] for e in estimate]
    scores = similarity(torch.from_numpy(estimate), torch.from_numpy(candidate))
    np.testing.assert_allclose(scores.numpy(), wanted, rtol=1e-12)


def test_the_size_of_a_candidate_does_not_matter() -> None:
    estimate, candidate = (torch.from_numpy(x) for x in embeddings(4, 4))
    scale = torch.tensor([0.1, 2.0, 30.0, 1e4]).double().view(-1, 1, 1)
    torch.testing.assert_close(similarity(estimate, candidate * scale), similarity(estimate, candidate))


@pytest.mark.parametrize("stimulus", [[0, 1, 2, 3, 4], [7, 7, 2, 2, 2], [1, 1, 1, 1, 1]])
def test_clip_loss_is_the_cross_entropy_without_twins(stimulus: list[int]) -> None:
    estimate, candidate = embeddings(5, 5)
    losses = []
    for i in range(5):
        scores = {j: float((estimate[i] * c).sum() / np.linalg.norm(c)) for j, c in enumerate(candidate)}
        rivals = [j for j in scores if j == i or stimulus[j] != stimulus[i]]
        losses.append(math.log(sum(math.exp(scores[j]) for j in rivals)) - scores[i])
    loss = clip_loss(torch.from_numpy(estimate), torch.from_numpy(candidate), torch.tensor(stimulus))
    assert float(loss) == pytest.approx(float(np.mean(losses)), rel=1e-6)


def test_clip_loss_of_shares_is_the_whole_batches() -> None:
    """What several processes do: each ranks its estimates among the candidates of all."""
    estimate, candidate = (torch.from_numpy(x) for x in embeddings(6, 6))
    stimulus = torch.tensor([3, 1, 3, 4, 1, 5])
    parts = [clip_loss(estimate[i : i + 2], candidate, stimulus, first=i) for i in (0, 2, 4)]
    torch.testing.assert_close(torch.stack(parts).mean(), clip_loss(estimate, candidate, stimulus))


def test_clip_loss_of_one_speech_has_no_gradient() -> None:
    """Where every example is the same speech there is nothing to tell apart."""
    estimate, candidate = (torch.from_numpy(x).requires_grad_() for x in embeddings(3, 3))
    clip_loss(estimate, candidate, torch.zeros(3, dtype=torch.int64)).backward()
    assert estimate.grad is not None
    assert candidate.grad is not None
    assert not estimate.grad.any()
    assert not candidate.grad.any()


ALPHA_BAR = torch.tensor([0.9999, 0.99, 0.9, 5 / 6, 0.5, 0.1, 1e-4], dtype=torch.float64)


@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
def test_min_snr_weights_are_the_papers(gamma: float) -> None:
    """Hang et al. (ICCV 2023): x0 min(SNR, gamma); eps min(1, gamma / SNR); v min(SNR, gamma) / (SNR + 1)."""
    for i, alpha_bar in enumerate(ALPHA_BAR.tolist()):
        snr = alpha_bar / (1 - alpha_bar)
        wanted = {
            "sample": min(snr, gamma),
            "epsilon": min(1.0, gamma / snr),
            "v_prediction": min(snr, gamma) / (snr + 1),
        }
        for kind, weight in wanted.items():
            assert float(min_snr_weight(ALPHA_BAR, kind, gamma)[i]) == pytest.approx(weight, rel=1e-5)


@pytest.mark.parametrize("kind", ["sample", "epsilon", "v_prediction"])
def test_the_three_parametrisations_weigh_the_same_error_alike(kind: str) -> None:
    """An error d of x0 is an error d sqrt(SNR) of eps and d sqrt(SNR + 1) of v."""
    snr = ALPHA_BAR / (1 - ALPHA_BAR)
    factor = {"sample": 1.0, "epsilon": snr, "v_prediction": snr + 1}[kind]
    torch.testing.assert_close(
        min_snr_weight(ALPHA_BAR, kind, 5.0) * factor, min_snr_weight(ALPHA_BAR, "sample", 5.0), rtol=1e-5, atol=0
    )


def test_weights_at_pure_noise_and_at_no_noise_are_the_limits() -> None:
    ends = torch.tensor([0.0, 1.0])
    assert min_snr_weight(ends, "epsilon", 5.0).tolist() == pytest.approx([1.0, 0.0], abs=1e-6)
    assert min_snr_weight(ends, "sample", 5.0).tolist() == pytest.approx([0.0, 5.0])
    assert min_snr_weight(ends, "v_prediction", 5.0).tolist() == pytest.approx([0.0, 0.0], abs=1e-6)


def test_without_gamma_every_step_weighs_one() -> None:
    assert min_snr_weight(ALPHA_BAR, "v_prediction", None).tolist() == [1.0] * len(ALPHA_BAR)
