from __future__ import annotations

import pytest
import torch
from torch import Tensor

from aha.engine.sampling import RowSampling, draw, stream_key, uniforms


def row_sampling(
    num_rows: int, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> RowSampling:
    return RowSampling(
        torch.full((num_rows,), temperature),
        torch.full((num_rows,), top_k),
        torch.full((num_rows,), top_p),
        torch.full((num_rows,), min_p),
    )


def stream(num: int, *, seed: int = 0, sample_index: int = 0) -> Tensor:
    keys = torch.full((num,), stream_key(seed, sample_index=sample_index))
    return uniforms(keys, positions_B=torch.arange(num))


def splitmix64(state: int) -> int:
    """The published generator, in Python's own integers."""
    mask = (1 << 64) - 1
    z = (state + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_uniforms_are_splitmix64() -> None:
    # First outputs for seed 0 of the reference implementation.
    assert [splitmix64(0), splitmix64(0x9E3779B97F4A7C15)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
    key = stream_key(42, sample_index=3)
    gamma, mask = 0x9E3779B97F4A7C15, (1 << 64) - 1
    expected = [(splitmix64((key + i * gamma) & mask) >> 40) / 2**24 for i in range(50)]
    assert uniforms(torch.full((50,), key), positions_B=torch.arange(50)).tolist() == expected


def test_uniforms_fill_the_unit_interval_and_streams_differ() -> None:
    streams = [stream(20_000, seed=seed, sample_index=index) for seed in (0, 1, -7, 1 << 40) for index in (0, 1)]
    for numbers in streams:
        assert 0 <= float(numbers.min()) < 0.001
        assert 0.999 < float(numbers.max()) < 1
        counts = torch.histc(numbers, bins=50, min=0, max=1)
        assert float(((counts - 400) ** 2 / 400).sum()) < 90  # chi-square, 49 degrees of freedom: p = 0.0003
    correlations = torch.corrcoef(torch.stack(streams)) - torch.eye(len(streams))
    assert float(correlations.abs().max()) < 0.03


@pytest.mark.parametrize("num_tokens", [49_152, 1_363, 640])
def test_search_finds_the_first_token_above_the_uniform(num_tokens: int) -> None:
    generator = torch.Generator().manual_seed(num_tokens)
    logits_BV = 4 * torch.randn(200, num_tokens, generator=generator)
    logits_BV[:, torch.randperm(num_tokens, generator=generator)[: num_tokens // 2]] = -torch.inf
    uniforms_B = torch.rand(200, generator=generator)
    uniforms_B[:3] = torch.tensor([0.0, 1.0 - 2.0**-24, 2.0**-24])
    drawn = draw(logits_BV, uniforms_B=uniforms_B, sampling=row_sampling(200))
    probs_BV = logits_BV.double().softmax(dim=-1)
    chosen_B1 = drawn.token_ids_B.unsqueeze(1)
    assert bool((probs_BV.gather(1, chosen_B1) > 0).all())
    torch.testing.assert_close(
        drawn.logprobs_B.double(), probs_BV.gather(1, chosen_B1).log().squeeze(1), atol=1e-5, rtol=0
    )
    # The uniform lies where the token does in the exact distribution, but for float32's rounding.
    end_B1 = probs_BV.cumsum(dim=-1).gather(1, chosen_B1)
    start_B1 = end_B1 - probs_BV.gather(1, chosen_B1)
    assert bool((start_B1.squeeze(1) < uniforms_B + 1e-5).all())
    assert bool((uniforms_B < end_B1.squeeze(1) + 1e-5).all())


@pytest.mark.parametrize("settings", [{"temperature": 1e-40}, {"top_p": 1e-50}])
def test_settings_too_small_for_float32_take_the_likeliest_token(settings: dict[str, float]) -> None:
    drawn = draw(
        torch.tensor([[1.0, 5.0, 0.0, -3.0]]), uniforms_B=torch.tensor([0.999]), sampling=row_sampling(1, **settings)
    )
    assert drawn.token_ids_B.tolist() == [1]
    assert bool(drawn.logprobs_B.isfinite().all())


def test_frequencies_match_the_softmax() -> None:
    num_draws, temperature = 40_000, 0.6
    logits_V = torch.randn(13, generator=torch.Generator().manual_seed(0))
    logits_V[4] = -torch.inf
    drawn = draw(
        logits_V.repeat(num_draws, 1),
        uniforms_B=stream(num_draws),
        sampling=row_sampling(num_draws, temperature=temperature),
    )
    expected_V = (logits_V / temperature).softmax(dim=-1)
    counts_V = torch.bincount(drawn.token_ids_B, minlength=13)
    assert counts_V[4] == 0
    possible = expected_V > 0
    chi_square = ((counts_V - num_draws * expected_V)[possible] ** 2 / (num_draws * expected_V[possible])).sum()
    assert float(chi_square) < 33  # 11 degrees of freedom: p = 0.0005
    torch.testing.assert_close(drawn.logprobs_B, expected_V.log()[drawn.token_ids_B], atol=1e-5, rtol=0)


def test_extreme_uniforms_never_draw_an_impossible_token() -> None:
    logits_BV = torch.tensor([[-torch.inf, 0.0, 1.0, -torch.inf]]).repeat(2, 1)
    drawn = draw(logits_BV, uniforms_B=torch.tensor([0.0, 1 - 2.0**-24]), sampling=row_sampling(2))
    assert drawn.token_ids_B.tolist() == [1, 2]


def test_temperature_0_takes_the_argmax_and_reports_the_untempered_logprob() -> None:
    logits_BV = torch.randn(9, 31, generator=torch.Generator().manual_seed(1))
    sampling = row_sampling(9, temperature=0.0)
    sampling.temperatures_B[4] = 0.5
    drawn = draw(logits_BV.clone(), uniforms_B=stream(9), sampling=sampling)
    greedy = torch.arange(9) != 4
    assert torch.equal(drawn.token_ids_B[greedy], logits_BV.argmax(dim=-1)[greedy])
    expected_B = logits_BV.log_softmax(dim=-1).amax(dim=-1)
    torch.testing.assert_close(drawn.logprobs_B[greedy], expected_B[greedy], atol=1e-5, rtol=0)


def surviving_probs(logits: list[float], *, temperature: float, top_k: int, top_p: float, min_p: float) -> list[float]:
    """The slow reference: temperature, then top-k, then top-p, then min-p, renormalised after each."""

    def normalise(weights: list[float]) -> list[float]:
        return [weight / sum(weights) for weight in weights]

    probs = normalise([2.718281828459045 ** (logit / temperature) for logit in logits])
    by_size = sorted(range(len(probs)), key=lambda token: -probs[token])
    if top_k:
        probs = normalise([p if t in by_size[:top_k] else 0.0 for t, p in enumerate(probs)])
    kept, mass = set(), 0.0
    for token in by_size:
        if mass < top_p:
            kept.add(token)
        mass += probs[token]
    probs = normalise([p if t in kept else 0.0 for t, p in enumerate(probs)])
    return normalise([p if p >= min_p * max(probs) else 0.0 for p in probs])


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [(1, 1.0, 0.0), (4, 1.0, 0.0), (500, 1.0, 0.0), (0, 0.01, 0.0), (0, 0.7, 0.0), (0, 1.0, 0.3), (6, 0.8, 0.15)],
)
def test_truncation_matches_a_slow_reference(top_k: int, top_p: float, min_p: float) -> None:
    num_draws, temperature = 6_000, 1.3
    logits_V = 1.5 * torch.randn(17, generator=torch.Generator().manual_seed(5))
    sampling = row_sampling(num_draws, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    drawn = draw(logits_V.repeat(num_draws, 1), uniforms_B=stream(num_draws), sampling=sampling)
    expected_V = torch.tensor(
        surviving_probs(logits_V.tolist(), temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    )
    frequencies_V = torch.bincount(drawn.token_ids_B, minlength=17) / num_draws
    assert torch.equal(frequencies_V > 0, expected_V > 0)
    torch.testing.assert_close(frequencies_V, expected_V, atol=0.025, rtol=0)
    # Reported before truncation: what the trainer's own forward pass will say.
    whole_V = (logits_V / temperature).log_softmax(dim=-1)
    torch.testing.assert_close(drawn.logprobs_B, whole_V[drawn.token_ids_B], atol=1e-5, rtol=0)


def test_rows_that_truncate_leave_the_others_alone() -> None:
    logits_BV = torch.randn(8, 41, generator=torch.Generator().manual_seed(2))
    plain = draw(logits_BV.clone(), uniforms_B=stream(8), sampling=row_sampling(8))
    mixed = row_sampling(8)
    mixed.top_k_B[3] = 1
    drawn = draw(logits_BV.clone(), uniforms_B=stream(8), sampling=mixed)
    expected = plain.token_ids_B.clone()
    expected[3] = logits_BV[3].argmax()
    assert torch.equal(drawn.token_ids_B, expected)


def test_nan_logits_draw_some_token_with_a_nan_logprob() -> None:
    drawn = draw(torch.full((2, 7), torch.nan), uniforms_B=stream(2), sampling=row_sampling(2, top_k=3))
    assert drawn.logprobs_B.isnan().all()
    assert (drawn.token_ids_B < 7).all()
