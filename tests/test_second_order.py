"""Compensation against brute force: one row, one weight at a time, with the inverse of what is left taken anew."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanwatt.errors import RefusedError
from leanwatt.second_order import LEAF, Gram, compensate, inverse_factor


def inputs_of(tokens: int, features: int, seed: int = 0) -> Any:
    """Inputs of which some are alike, as real ones are."""
    import torch

    dice = torch.Generator().manual_seed(seed)
    mixed = torch.randn(features, features, generator=dice) * torch.linspace(0.1, 2, features)
    return torch.randn(tokens, features, generator=dice) @ mixed


def slow_surgeon(weight: Any, gram: Any, settled: Any) -> Any:
    """Optimal brain surgeon, input by input: `settled(row, column, value)` says what a weight becomes; float64."""
    import torch

    work = weight.double().clone()
    for column in range(work.shape[1]):
        left = torch.linalg.inv(gram.double()[column:, column:])
        for row in range(len(work)):
            error = work[row, column] - settled(row, column, work[row, column])
            work[row, column:] -= error / left[0, 0] * left[0]
            work[row, column] = settled(row, column, work[row, column] + error)
    return work


@dataclass
class Masked:
    """A rule with a mask that is known, (inputs, outputs)."""

    mask: Any
    group: int
    seen: list[Any] = field(default_factory=list)

    def look(self, start: int, values: Any, spread: Any) -> None:
        self.seen.append((start, values.clone(), spread.clone()))

    def settle(self, column: int, values: Any) -> Any:
        return values * self.mask[column]


@pytest.mark.parametrize("tokens", [1, 7, 50])
@pytest.mark.parametrize("features", [1, 3, 16, 33])
def test_a_gram_is_the_product(tokens: int, features: int) -> None:
    import torch

    x = inputs_of(tokens, features)
    gram = Gram()
    gram.add(x[: tokens // 2])
    gram.add(x[tokens // 2 :].double())
    assert torch.allclose(gram.matrix, x.t() @ x, rtol=1e-4, atol=1e-4)
    assert gram.matrix.equal(gram.matrix.t())
    assert gram.tokens == tokens


def test_a_gram_of_nothing_is_refused() -> None:
    with pytest.raises(RefusedError, match="saw no tokens"):
        _ = Gram().matrix


@pytest.mark.parametrize("features", [1, 2, 12, 40])
def test_the_factor_is_upper_and_its_square_is_the_inverse(features: int) -> None:
    import torch

    x = inputs_of(200, features)
    gram = x.t() @ x
    factor = inverse_factor(gram, 0.01, "layer")
    damped = gram + torch.eye(features) * 0.01 * gram.diagonal().mean()
    assert factor.equal(factor.triu())
    assert torch.allclose(factor.t() @ factor @ damped, torch.eye(features), atol=1e-3)


def test_a_singular_matrix_is_damped_more(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    gram = torch.ones(6, 6)
    factor = inverse_factor(gram, 0.0, "layer")
    assert torch.isfinite(factor).all()
    with pytest.raises(RefusedError, match=r"layer 7: .* cannot be inverted .*examples"):
        inverse_factor(-torch.eye(3) * torch.tensor([1.0, 5.0, 9.0]), 0.01, "layer 7")


def test_inputs_that_are_never_active_are_independent_of_the_rest() -> None:
    import torch

    x = inputs_of(100, 6)
    x[:, 2] = 0
    factor = inverse_factor(x.t() @ x, 0.01, "layer")
    assert torch.isfinite(factor).all()
    assert factor[2].count_nonzero() == 1
    assert factor[:, 2].count_nonzero() == 1
    assert inverse_factor(torch.zeros(3, 3), 0.01, "layer").equal(torch.eye(3))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_inputs_name_the_layer(value: float) -> None:
    import torch

    with pytest.raises(RefusedError, match=r"model\.layers\.3: .*NaN"):
        inverse_factor(torch.eye(3) * value, 0.01, "model.layers.3")


@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 14),
    group=st.sampled_from([1, 2, 4, 5, 8, 64]),
    seed=st.integers(0, 2**16),
)
@settings(deadline=None, max_examples=40)
def test_weights_are_those_of_the_surgeon(rows: int, columns: int, group: int, seed: int) -> None:
    import torch

    dice = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=dice)
    mask = torch.rand(rows, columns, generator=dice) < 0.5
    x = inputs_of(3 * columns + 5, columns, seed)
    gram = x.t() @ x
    damped = gram + torch.eye(columns) * 0.01 * gram.diagonal().mean()
    before = weight.clone()
    got = compensate(weight, inverse_factor(gram, 0.01, "layer"), Masked(mask.t(), group))
    expected = slow_surgeon(weight, damped, lambda row, column, value: value * mask[row, column])
    assert weight.equal(before)
    assert torch.allclose(got.double(), expected, atol=1e-4, rtol=1e-4)
    assert not got[~mask].any()


@pytest.mark.parametrize("group", [4, 24, 64, 96, 35, 200])
def test_many_columns_in_pieces_are_what_they_are_in_one(group: int) -> None:
    """The pieces in which errors are handed on change nothing, and a group is up to date when it is looked at."""
    import torch

    columns = 200
    x = inputs_of(600, columns, 3)
    gram = x.t() @ x / 600
    damped = gram + torch.eye(columns) * 0.1 * gram.diagonal().mean()
    dice = torch.Generator().manual_seed(1)
    weight, mask = torch.randn(3, columns, generator=dice), torch.rand(3, columns, generator=dice) < 0.5
    rule = Masked(mask.t(), group)
    got = compensate(weight, inverse_factor(gram, 0.1, "layer"), rule)
    expected = slow_surgeon(weight, damped, lambda row, column, value: value * mask[row, column])
    assert torch.allclose(got.double(), expected, atol=1e-4, rtol=1e-4)
    assert [start for start, _, _ in rule.seen] == list(range(0, columns, group))
    for start, values, spread in rule.seen:
        assert values.shape == (min(group, columns - start), 3)
        until = slow_surgeon(
            weight, damped, lambda row, column, value, s=start: value * mask[row, column] if column < s else value
        )
        assert torch.allclose(values.t().double(), until[:, start : start + group], atol=1e-4, rtol=1e-4)
        inverse = torch.linalg.inv(damped[start:, start:])[0, 0]
        assert float(spread[0]) == pytest.approx(float(inverse), rel=1e-3)


def test_what_is_taken_up_makes_the_layer_err_less() -> None:
    import torch

    x = inputs_of(400, LEAF).repeat(1, 2) + 0.1 * inputs_of(400, 2 * LEAF, 1)  # Every input has a near twin.
    gram = x.t() @ x
    weight = torch.randn(8, 2 * LEAF, generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(2 * LEAF) >= LEAF).expand(8, -1)
    got = compensate(weight, inverse_factor(gram, 0.01, "layer"), Masked(mask.t(), 2 * LEAF))
    plain, taken_up = (float(((w - weight) @ x.t()).norm()) for w in (weight * mask, got))
    assert taken_up < 0.5 * plain
