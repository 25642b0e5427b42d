"""Second-order compression of one linear layer: what a weight's change costs, and how its neighbours make up for it.

The error of a layer is |(W - W') X|^2 = sum over rows of d H d^T with H = X^T X, the Gram matrix of its inputs. When a
weight is settled (to zero, or to a value on a grid), the weights of its row that are not settled yet can take up most
of the error (Optimal Brain Surgeon, Hassibi and Stork, 1993). Settling the inputs from left to right, for all rows at
once, needs only one triangular factor of the inverse of H (GPTQ, Frantar et al., 2022, arXiv:2210.17323; SparseGPT,
Frantar and Alistarh, 2023, arXiv:2301.00774). In three steps:

    gram = Gram();  gram.add(inputs)                       # for each batch, (tokens, inputs); once per shared tensor
    factor = inverse_factor(gram.matrix, damping, name)    # once per shared tensor too
    settled = compensate(weight_of(layer), factor, rule)   # rule: what a column becomes; see Rule
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from leanwatt.errors import RefusedError

if TYPE_CHECKING:
    import torch

LEAF = 32
"""Columns that are settled one after the other before their error is carried on by matrix products."""
MOST_DAMPING = 1.0
"""Beyond this H is mostly the damping, and the method would be another one."""


class Gram:
    """The sum of x^T x over tokens, (inputs, inputs), float32."""

    def __init__(self) -> None:
        self._upper: torch.Tensor | None = None
        self.tokens = 0

    def add(self, inputs: torch.Tensor) -> None:
        """Add tokens, (tokens, inputs), of any float type."""
        x, features = inputs.float(), inputs.shape[-1]
        if self._upper is None:
            self._upper = x.new_zeros(features, features)
        size = -(-features // 8)
        for start in range(0, features, size):  # Little more than half of the products: it is symmetric.
            self._upper[start : start + size, start:].addmm_(x[:, start : start + size].t(), x[:, start:])
        self.tokens += len(x)

    @property
    def matrix(self) -> torch.Tensor:
        """A symmetric copy. Raises RefusedError where nothing was added."""
        if self._upper is None:
            raise RefusedError("Calibration saw no tokens; give it examples.")
        upper = self._upper.triu()
        return upper + upper.triu(1).t()


def inverse_factor(gram: torch.Tensor, damping: float, name: str) -> torch.Tensor:
    """Upper triangular U with H^-1 = U^T U, where H is `gram` plus `damping` times its mean diagonal; float32.

    Where H cannot be inverted the damping is raised tenfold, up to 1. An input that is never active costs only the
    damping. Raises RefusedError, naming the layer `name`, where that does not help or the inputs were not finite.
    """
    import torch

    refuse_broken(gram, name)
    mean = float(gram.diagonal().mean())
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    while damping <= MOST_DAMPING:
        damped = gram + eye * (damping * mean or 1.0)  # Without any input all weights are alike.
        # H = R R^T with R upper triangular is Cholesky's lower factor of the matrix read backwards; then U = R^-1.
        lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if not failed:
            factor: torch.Tensor = torch.linalg.solve_triangular(lower, eye, upper=False).flip(0, 1)
            return factor
        damping = max(damping * 10, 1e-6)
    raise RefusedError(
        f"{name}: the Gram matrix of the inputs cannot be inverted with a damping up to {MOST_DAMPING}. "
        "Give more or other examples."
    )


def refuse_broken(statistics: torch.Tensor, name: str) -> None:
    """Raises RefusedError, naming the layer, where what was taken from its inputs is not finite."""
    import torch

    if not torch.isfinite(statistics).all():
        raise RefusedError(f"{name}: the inputs in calibration hold NaN or infinite values; the model is broken there.")


class Rule(Protocol):
    """How a method settles columns; a column is one input of a layer, for all its outputs."""

    @property
    def group(self) -> int:
        """Columns that are looked at together, such as those that share a scale or a pattern."""
        ...

    def look(self, start: int, values: torch.Tensor, spread: torch.Tensor) -> None:
        """Before columns `start`, ... of a group are settled.

        `values` are the weights as they stand now, (columns of the group, outputs), float32. `spread` is the squared
        diagonal of the factor, (columns of the group,): settling w at v costs (w - v)^2 / spread in layer error.
        """
        ...

    def settle(self, column: int, values: torch.Tensor) -> torch.Tensor:
        """What the column becomes, (outputs,), given its values as they stand now, (outputs,)."""
        ...


def compensate(weight: torch.Tensor, factor: torch.Tensor, rule: Rule) -> torch.Tensor:
    """The settled weight, float32, of the shape of `weight`, (outputs, inputs), which stays as it is.

    `factor` is that of `inverse_factor`. Every settled column's error is taken up by the columns to its right.
    """
    import torch

    work = weight.t().float().clone(memory_format=torch.contiguous_format)  # A column is one piece of memory.
    errors = torch.empty_like(work)
    spread = factor.diagonal().square()
    carry = (factor / factor.diagonal().unsqueeze(1)).t().contiguous()  # carry[i, j]: what j's error does to i.
    columns, leaf = len(work), _leaf(rule.group)
    for start in range(0, columns, leaf):
        stop = min(start + leaf, columns)
        if start % rule.group == 0:
            group = slice(start, start + rule.group)
            rule.look(start, work[group], spread[group])
        _settle_leaf(work[start:stop], errors[start:stop], carry[start:stop, start:stop], rule, start)
        _carry_on(work, errors, carry, stop, leaf)
    return work.t()


def _leaf(group: int) -> int:
    """A group halved until it is small: then a group's columns are up to date when it is looked at."""
    leaf = group
    while leaf > LEAF and leaf % 2 == 0:
        leaf //= 2
    return leaf


def _settle_leaf(work: torch.Tensor, errors: torch.Tensor, carry: torch.Tensor, rule: Rule, start: int) -> None:
    """One column after the other; each takes up the errors of those before it in the leaf."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # A column is too short to share: threads would wait for each other more than work.
    try:
        for place, values in enumerate(work.unbind()):
            if place:
                values.addmv_(errors[:place].t(), carry[place, :place], alpha=-1)
            settled = rule.settle(start + place, values)
            torch.sub(values, settled, out=errors[place])
            values.copy_(settled)
    finally:
        torch.set_num_threads(threads)


def _carry_on(work: torch.Tensor, errors: torch.Tensor, carry: torch.Tensor, stop: int, leaf: int) -> None:
    """Hand errors to the right in pieces of 1, 2, 4, ... leaves, so that nearly all of it is large products.

    After n leaves the last n & -n of them meet as many to their right: each pair of columns meets exactly once, and
    before the right one is settled.
    """
    leaves = -(-stop // leaf)
    size = leaf * (leaves & -leaves)
    if stop < len(work):
        left, right = slice(stop - size, stop), slice(stop, stop + size)
        work[right].addmm_(carry[right, left], errors[left], alpha=-1)
