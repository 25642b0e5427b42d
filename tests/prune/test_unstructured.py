"""Magnitude, Wanda and SparseGPT against the direct, slow way, and against each other on real activations."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import FAMILIES
from slow import (
    best_two_of_four,
    half_of_all,
    half_of_each_row,
    layer_errors,
    slow_magnitude,
    slow_sparsegpt,
    slow_sparsegpt_over_all,
    slow_wanda,
    slow_wanda_over_all,
    surgeon,
)

from leanwatt import catalog
from leanwatt.calibration import sample
from leanwatt.model import linears, load, weight_of
from leanwatt.prune._masking import Cut
from leanwatt.prune.sparsegpt import _Zeros
from leanwatt.recipe import Choice
from leanwatt.second_order import Gram, compensate, inverse_factor

METHODS = ("magnitude", "wanda", "sparsegpt")


def pruned(name: str, folder: Path, context: Any, **settings: Any) -> Any:
    return catalog.build(Choice("prune", name, settings)).apply(load(folder), context)


SLOW = {
    ("magnitude", "layer"): (slow_magnitude, (half_of_all,)),
    ("magnitude", "2:4"): (slow_magnitude, (best_two_of_four,)),
    ("wanda", "row"): (slow_wanda, (half_of_each_row,)),
    ("wanda", "layer"): (slow_wanda, (half_of_all,)),
    ("wanda", "2:4"): (slow_wanda, (best_two_of_four,)),
    ("sparsegpt", "layer"): (slow_sparsegpt, (half_of_all,)),
    ("sparsegpt", "2:4"): (slow_sparsegpt, (best_two_of_four, 4)),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", SLOW, ids=" ".join)
def test_masks_and_weights_are_those_of_the_slow_way(
    case: tuple[str, str], family: str, saved: Callable[[str], Path], context: Any
) -> None:
    name, how = case
    settings = {"pattern": how} if ":" in how else {"sparsity": 0.5, "over": how}
    got, expected = pruned(name, saved(family), context, **settings), load(saved(family))
    slowly, choices = SLOW[case]
    slowly(expected, context, *choices)
    for layer, each in linears(expected.module).items():
        mine = weight_of(linears(got.module)[layer])
        assert (mine != 0).equal(weight_of(each) != 0)
        assert got.masks[layer].equal(mine != 0)
        assert mine.numpy() == pytest.approx(weight_of(each).numpy(), abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("name", "slowly"),
    [("wanda", slow_wanda_over_all), ("sparsegpt", slow_sparsegpt_over_all)],
    ids=["wanda", "sparsegpt"],
)
def test_one_threshold_over_the_model_is_that_of_the_slow_way(
    name: str, slowly: Any, family: str, saved: Callable[[str], Path], context: Any
) -> None:
    """On layers of unlike size, so that they lose unlike shares."""
    models = []
    for _ in range(2):
        model = load(saved(family))
        for place, layer in enumerate(linears(model.module).values()):
            weight_of(layer).mul_(1 + place % 3)
        models.append(model)
    got, expected = models
    catalog.build(Choice("prune", name, {"sparsity": 0.5, "over": "model"})).apply(got, context)
    slowly(expected, context)
    shares = set()
    for layer, each in linears(expected.module).items():
        mine = weight_of(linears(got.module)[layer])
        assert (mine != 0).equal(weight_of(each) != 0), layer
        assert got.masks[layer].equal(mine != 0)
        assert mine.numpy() == pytest.approx(weight_of(each).numpy(), abs=1e-4)
        shares.add(round(float(got.masks[layer].float().mean()), 2))
    assert len(shares) > 3


@pytest.mark.parametrize("pattern", [None, "2:4"])
def test_sparsegpt_with_several_blocks_of_inputs(pattern: str | None) -> None:
    """More inputs than compete in one block; masks of earlier pruning hold."""
    import torch

    dice = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 200, generator=dice)
    x = torch.randn(300, 40, generator=dice) @ torch.randn(40, 200, generator=dice)
    x += torch.randn(300, 200, generator=dice)
    gram = Gram()
    gram.add(x)
    zeros = _Zeros(Cut(None if pattern else 0.5, pattern, "layer"), 0.5, torch.ones(200, 3, dtype=torch.bool))
    got = compensate(weight, inverse_factor(gram.matrix, 0.01, "layer"), zeros)
    choose, group = (best_two_of_four, 4) if pattern else (half_of_all, 128)
    expected = surgeon(weight, x.t() @ x, choose, group)
    assert (expected != 0).equal(zeros.kept.t())
    assert got.numpy() == pytest.approx(expected.numpy(), abs=1e-4)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("first", "then"), [("2:4", 0.75), ("2:4", 0.25), (0.5, "2:4"), ("2:4", "4:8")])
def test_earlier_masks_stay_in_force_and_count(
    name: str, first: Any, then: Any, saved: Callable[[str], Path], context: Any
) -> None:
    def step(wanted: Any) -> Any:
        key = "pattern" if isinstance(wanted, str) else "sparsity"
        return catalog.build(Choice("prune", name, {key: wanted}))

    model = step(first).apply(load(saved("llama")), context)
    before = {layer: mask.clone() for layer, mask in model.masks.items()}
    step(then).apply(model, context)
    for layer, mask in model.masks.items():
        assert not (mask & ~before[layer]).any()
        assert not weight_of(linears(model.module)[layer])[~mask].any()
        if then == 0.75:
            assert int((~mask).sum()) == pytest.approx(0.75 * mask.numel(), rel=0.02)
        if then in (0.25, "4:8"):
            assert mask.equal(before[layer])
    if "2:4" in (first, then):
        assert set(model.patterns.values()) == {"2:4"}


@pytest.mark.parametrize("name", METHODS)
def test_over_the_model_layers_lose_different_shares(name: str, saved: Callable[[str], Path], context: Any) -> None:
    model = load(saved("llama"))
    first = next(iter(linears(model.module)))
    weight_of(linears(model.module)[first]).mul_(100)
    catalog.build(Choice("prune", name, {"sparsity": 0.5, "over": "model"})).apply(model, context)
    shares = {layer: float((~mask).float().mean()) for layer, mask in model.masks.items()}
    sizes = {layer: mask.numel() for layer, mask in model.masks.items()}
    whole = sum(shares[layer] * sizes[layer] for layer in sizes) / sum(sizes.values())
    assert whole == pytest.approx(0.5, abs=0.01)
    assert shares[first] < 0.1
    assert model.history == [f"prune {name} 0.5 over the model"]


@pytest.mark.parametrize("name", METHODS)
def test_a_pattern_has_no_threshold_over_the_model(name: str) -> None:
    from leanwatt.errors import StudyError

    with pytest.raises(StudyError, match="leave out `over: model`"):
        catalog.build(Choice("prune", name, {"pattern": "2:4", "over": "model"}))
    with pytest.raises(StudyError, match="either sparsity or pattern"):
        catalog.build(Choice("prune", name, {"pattern": "2:4", "sparsity": 0.5}))


@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
def test_plain_text_is_read_and_named(name: str, saved: Callable[[str], Path], context: Any, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("fibre cut at site A then router down " * 400, encoding="utf-8")
    step = catalog.build(Choice("prune", name, {"sparsity": 0.5, "text": str(text), "examples": 4}))
    assert step.files() == [text]
    assert catalog.build(Choice("prune", name, {"sparsity": 0.5})).files() == []
    on_text, on_tickets = step.apply(load(saved("llama")), context), pruned(name, saved("llama"), context, sparsity=0.5)
    assert any(not on_text.masks[layer].equal(on_tickets.masks[layer]) for layer in on_text.masks)


@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
def test_inputs_that_are_never_active_go_first(name: str, saved: Callable[[str], Path], context: Any) -> None:
    import torch

    model = load(saved("llama"))
    for block in model.module.model.layers:
        block.input_layernorm.weight.data[:5] = 0
    catalog.build(Choice("prune", name, {"sparsity": 0.5})).apply(model, context)
    for layer, mask in model.masks.items():
        if layer.endswith("q_proj"):
            assert not mask[:, :5].any()
        assert torch.isfinite(weight_of(linears(model.module)[layer])).all()


@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
def test_broken_activations_are_refused_by_name(name: str, saved: Callable[[str], Path], context: Any) -> None:
    from leanwatt.errors import RefusedError

    model = load(saved("llama"))
    model.module.model.layers[1].input_layernorm.weight.data[0] = float("nan")
    with pytest.raises(RefusedError, match=r"layers\.1\.self_attn\.q_proj and .*NaN"):
        catalog.build(Choice("prune", name, {"sparsity": 0.5})).apply(model, context)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_computed_in_full_and_stays_half(
    name: str, dtype: str, saved: Callable[[str], Path], context: Any
) -> None:
    import torch

    from leanwatt.model import cast, check

    model = load(saved("gpt2"))
    cast(model.module, getattr(torch, dtype))
    catalog.build(Choice("prune", name, {"pattern": "2:4"})).apply(model, context)
    check(model)
    for layer in linears(model.module).values():
        weight = weight_of(layer)
        assert weight.dtype == getattr(torch, dtype)
        assert torch.isfinite(weight).all()
        assert float((weight != 0).float().mean()) == pytest.approx(0.5, abs=0.01)


@pytest.fixture(scope="module")
def trained(saved: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A model that has learnt its tickets, so that its activations are like those of real ones; and the tickets."""
    from leanwatt.contracts import Context
    from leanwatt.question import Example, Generate, Prompt

    folder = tmp_path_factory.mktemp("trained")
    faults = {"power": "mains failure", "link": "fibre cut", "router": "reset", "cell": "replaced"}
    examples = [
        Example(
            f"{site}{i}{what}",
            "g",
            "train",
            Generate(
                Prompt("Name the root cause of this fault.", f"alarm {i} at site {site} {what} lost", "Root:"), 12
            ),
            f"{fault} at site {site}",
        )
        for site in "ABCD"
        for i in range(4)
        for what, fault in faults.items()
    ]
    context = Context(examples, (), 0, folder, lambda _text, _share: None)
    tune = catalog.build(Choice("finetune", "full", {"epochs": 25, "learning_rate": 5e-3}))
    tune.apply(load(saved("llama")), context).save(folder / "model")
    return folder / "model", context


WANTED: list[dict[str, Any]] = [{"sparsity": 0.5, "over": "layer"}, {"pattern": "2:4"}, {"pattern": "4:8"}]
"""All three let the same weights compete; Wanda's own groups, the rows, are smaller, so its error is not the least."""


@pytest.mark.parametrize("wanted", WANTED, ids=str)
def test_the_published_order_of_layer_errors(wanted: dict[str, Any], trained: tuple[Path, Any]) -> None:
    folder, context = trained
    dense = load(folder)
    texts = [list(lesson.ids) for lesson in sample(dense, context, 1000)]
    errors = {name: layer_errors(dense, pruned(name, folder, context, **wanted), texts) for name in METHODS}
    assert errors["sparsegpt"] < 0.8 * errors["wanda"]
    assert errors["wanda"] < errors["magnitude"]


@pytest.mark.parametrize("family", ["opt", "phi", "gpt_neox", "qwen3", "gemma"])
@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
def test_every_family_is_pruned_saved_and_opened_again(
    name: str, family: str, saved: Callable[[str], Path], context: Any, tmp_path: Path
) -> None:
    import torch

    model = pruned(name, saved(family), context, pattern="2:4")
    model.save(tmp_path / "variant")
    again = load(tmp_path / "variant")
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        assert again.module(ids).logits.equal(model.module(ids).logits)
    for layer, mask in again.masks.items():
        assert mask.equal(weight_of(linears(again.module)[layer]) != 0)
        assert mask.view(len(mask), -1, 4).sum(-1).eq(2).all()


@pytest.mark.parametrize("wanted", WANTED[:2], ids=str)  # 172 inputs are no groups of 8.
@pytest.mark.parametrize("name", ["stories260k", "tinystories-656k"])
def test_the_published_order_on_models_that_others_trained(
    name: str, wanted: dict[str, Any], shared: Path, context: Any, tmp_path: Path
) -> None:
    text = tmp_path / "story.txt"
    text.write_text(STORY * 8, encoding="utf-8")
    dense, folder = load(shared / "models" / name), shared / "models" / name
    texts = [dense.tokenizer(STORY)["input_ids"]]
    errors = {}
    for method in METHODS:
        reads = {} if method == "magnitude" else {"text": str(text), "examples": 32}
        errors[method] = layer_errors(dense, pruned(method, folder, context, **wanted, **reads), texts)
    assert errors["sparsegpt"] < errors["wanda"] < errors["magnitude"]


STORY = (
    "Once upon a time there was a little dog who lived near a big lake. Every day the dog ran to the water and looked "
    "for his friend, a small green frog. One day the frog was not there. The dog was sad and asked the birds for help. "
    '"We saw him by the old tree," they said. The dog ran to the tree and found the frog, who had lost his red ball. '
    "They looked for it together until it was dark. At last a kind girl came with a light and found the ball under a "
    "leaf. They all laughed and went home happy. The next day they played with the girl and her mother gave them cake. "
)
