"""Pooling against a per-sample reference, and its independence of padding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repaudit.capture.extract.pooling import pool
from repaudit.errors import CaptureError


def reference(activation, mask, reduce):
    rows = []
    for tokens, keep in zip(activation.double(), mask.bool(), strict=True):
        kept = tokens[keep]
        rows.append({"mean": kept.mean(0), "last_token": kept[-1], "cls": kept[0]}[reduce])
    return torch.stack(rows)


@st.composite
def masked(draw):
    n, t = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    rows = draw(st.lists(st.lists(st.booleans(), min_size=t, max_size=t).filter(any), min_size=n, max_size=n))
    seed = draw(st.integers(0, 999))
    return torch.randn(n, t, 3, generator=torch.Generator().manual_seed(seed)), torch.tensor(rows).long()


@settings(deadline=None)
@given(masked(), st.sampled_from(["mean", "last_token", "cls"]))
def test_pooling_equals_the_reference_and_ignores_masked_values(case, reduce):
    activation, mask = case
    expected = reference(activation, mask, reduce)
    poisoned = activation.masked_fill(mask[..., None] == 0, float("nan"))
    torch.testing.assert_close(pool(poisoned, mask, reduce).double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("reduce", ["mean", "last_token", "cls"])
def test_without_a_mask_every_token_counts(reduce):
    x = torch.randn(2, 5, 3)
    torch.testing.assert_close(pool(x, None, reduce), pool(x, torch.ones(2, 5), reduce))
    torch.testing.assert_close(pool(x, None, reduce).double(), reference(x, torch.ones(2, 5), reduce))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_pooled_in_float32(dtype):
    x = torch.randn(2, 300, 4).to(dtype)
    pooled = pool(x, torch.ones(2, 300), "mean")
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, x.float().mean(1), rtol=1e-6, atol=1e-6)
    assert pool(x, None, "all").dtype == dtype


def test_float64_stays_float64():
    assert pool(torch.zeros(2, 3, 4, dtype=torch.float64), None, "mean").dtype == torch.float64


def test_all_keeps_tokens_and_two_dims_have_none():
    x = torch.randn(2, 5, 3)
    assert pool(x, torch.tensor([[1] * 5, [1] * 3 + [0] * 2]), "all") is x
    assert pool(x[:, 0], torch.ones(2, 5), "mean") is not None
    torch.testing.assert_close(pool(x[:, 0], torch.ones(2, 5), "mean"), x[:, 0])


def test_positions_of_feature_maps_are_tokens():
    x = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(pool(x, None, "mean"), x.mean((2, 3)))
    assert pool(x, None, "all").shape == (2, 20, 3)


def test_what_cannot_be_pooled_is_refused_by_name():
    with pytest.raises(CaptureError, match=r"'h\.0': the mask has 4 tokens"):
        pool(torch.zeros(2, 5, 3), torch.ones(2, 4), "mean", "h.0")
    with pytest.raises(CaptureError, match=r"'h.0': expected \(sample, feature\)"):
        pool(torch.zeros(2), None, "mean", "h.0")
    with pytest.raises(CaptureError, match="int64"):
        pool(torch.zeros(2, 3, dtype=torch.int64), None, "mean")
