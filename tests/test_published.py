"""The paper's skip orders: what is printed, and what follows from T5-XXL's dimensions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skrr_export.encoders.base import parameter_shapes
from skrr_export.encoders.bert import BertEncoder
from skrr_export.encoders.t5 import T5Encoder
from skrr_export.errors import InputError, PlanError
from skrr_export.pipelines import find_preset
from skrr_export.plan import Plan
from skrr_export.published import (
    PUBLISHED,
    SOURCE,
    PublishedOrder,
    check_xxl,
    find_published,
    prefix_for,
    published_sparsities,
)
from tests.bundles import run_python

PRINTED = {
    "PixArt-Sigma": "46, 5, 6, 47, 44, 2, 11, 24, 23, 17, 18, 45, 10, 30, 29, 40, 39, 38, 37, 42, 25, 22, 43, 36",
    "SD3": "46, 5, 45, 6, 11, 2, 22, 23, 17, 18, 30, 29, 43, 44, 20, 1, 41, 42, 40, 39, 38, 37, 21, 16",
    "FLUX.1-dev": "46, 45, 5, 6, 11, 20, 19, 22, 23, 30, 29, 47, 2, 44, 32, 31, 18, 17, 37, 36, 43, 40, 39, 42",
}
"""The paper's table of orders, as it stands there."""

CONFIG: Mapping[str, Any] = {
    "num_layers": 24,
    "d_model": 4096,
    "num_heads": 64,
    "d_kv": 64,
    "d_ff": 10240,
    "vocab_size": 32128,
    "relative_attention_num_buckets": 32,
    "feed_forward_proj": "gated-gelu",
}
"""T5-XXL's, as in its `config.json`."""

ATTENTION = 4 * 4096 * 4096 + 4096
FEED_FORWARD = 3 * 4096 * 10240 + 4096
TOTAL = 4_762_310_656

ORDERS = pytest.mark.parametrize("order", PUBLISHED.values(), ids=list(PUBLISHED))


def encoder(**changed: Any) -> T5Encoder:
    """T5-XXL, with other dimensions where they are given."""
    return T5Encoder.from_config({**CONFIG, **changed}, {"shared.weight"})


def parameters(of: T5Encoder, plan: Plan) -> int:
    """Parameters that an encoder needs under a plan."""
    return sum(math.prod(shape) for shape in parameter_shapes(of, plan).values())


def test_the_orders_are_the_printed_ones() -> None:
    assert {order.denoiser: ", ".join(map(str, order.units)) for order in PUBLISHED.values()} == PRINTED
    assert "arXiv 2502.08690" in SOURCE


def test_each_order_stands_under_its_name_with_its_pipeline() -> None:
    assert {name: (order.name, order.denoiser, order.pipeline) for name, order in PUBLISHED.items()} == {
        "pixart-sigma": ("pixart-sigma", "PixArt-Sigma", "pixart-sigma"),
        "sd3": ("sd3", "SD3", "sd3"),
        "flux.1-dev": ("flux.1-dev", "FLUX.1-dev", "flux.1"),
    }


@ORDERS
def test_an_order_names_24_units_of_t5_xxl_and_a_preset_for_t5(order: PublishedOrder) -> None:
    assert len(order.units) == len(set(order.units)) == 24
    assert set(order.units) <= set(range(48))
    assert find_preset(order.pipeline, encoder()).name == order.pipeline


def test_an_order_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        PUBLISHED["sd3"].units = ()  # type: ignore[misc]


def test_the_parameters_of_t5_xxl_are_as_the_tests_count_them() -> None:
    assert 32128 * 4096 + 32 * 64 + 24 * (ATTENTION + FEED_FORWARD) + 4096 == TOTAL
    assert parameters(encoder(), Plan.identity("t5", 24)) == TOTAL


@ORDERS
def test_each_prefix_has_the_sparsity_that_arithmetic_gives(order: PublishedOrder) -> None:
    sparsities = published_sparsities(order)
    assert len(sparsities) == 24
    for drop, sparsity in enumerate(sparsities, start=1):
        units = [int(unit) for unit in PRINTED[order.denoiser].split(", ")[:drop]]
        dropped = sum(FEED_FORWARD if unit in range(1, 48, 2) else ATTENTION for unit in units)
        assert sparsity == pytest.approx(float(Fraction(dropped, TOTAL)), abs=1e-15)


@ORDERS
@pytest.mark.parametrize("drop", [1, 12, 21, 24])
def test_each_prefix_has_the_sparsity_that_the_encoder_has_under_its_plan(order: PublishedOrder, drop: int) -> None:
    plan = Plan.from_order("t5", 24, order.units, drop=drop)
    kept = parameters(encoder(), plan)
    assert published_sparsities(order)[drop - 1] == pytest.approx(1 - kept / TOTAL, abs=1e-15)


@pytest.mark.parametrize(
    ("name", "drop", "percent"),
    [
        ("pixart-sigma", 12, "24.3%"),
        ("pixart-sigma", 17, "33.8%"),
        ("pixart-sigma", 21, "41.9%"),
        ("sd3", 13, "27.0%"),
        ("sd3", 16, "32.4%"),
        ("sd3", 21, "41.9%"),
        ("flux.1-dev", 13, "27.0%"),
        ("flux.1-dev", 16, "32.4%"),
        ("flux.1-dev", 21, "43.2%"),
    ],
)
def test_the_papers_prefixes_have_these_sparsities(name: str, drop: int, percent: str) -> None:
    """The paper prints 27.0% and 32.4% for the first two; its other orders have these after 13 and 16 units."""
    assert f"{published_sparsities(PUBLISHED[name])[drop - 1]:.1%}" == percent
    assert prefix_for(PUBLISHED[name], float(percent.rstrip("%")) / 100) == drop


@pytest.mark.parametrize(
    ("name", "sparsity", "drop"),
    [
        ("pixart-sigma", 0.419, 21),
        ("sd3", 0.419, 21),
        ("flux.1-dev", 0.419, 21),
        ("pixart-sigma", 0.42, 22),
        ("sd3", 0.4, 20),
        ("pixart-sigma", 0.4, 21),
        ("pixart-sigma", 0.001, 1),
        ("pixart-sigma", 0.474, 24),
        ("sd3", 0.486, 24),
        ("flux.1-dev", 0.486, 24),
    ],
)
def test_a_sparsity_needs_so_many_units(name: str, sparsity: float, drop: int) -> None:
    assert prefix_for(PUBLISHED[name], sparsity) == drop


@given(st.sampled_from(sorted(PUBLISHED)), st.floats(0.0001, 0.47))
def test_the_prefix_is_the_shortest_that_reaches_the_sparsity(name: str, sparsity: float) -> None:
    order = PUBLISHED[name]
    reached = [drop for drop in range(1, 25) if published_sparsities(order)[drop - 1] > sparsity - 0.0005]
    assert prefix_for(order, sparsity) == reached[0]


@pytest.mark.parametrize(
    ("sparsity", "words"),
    [
        (0.6, "sparsity 60.0% cannot be reached: the nearest is 47.4%"),
        (1.0, "sparsity 100.0% cannot be reached: the nearest is 47.4%"),
        (0.0, "sparsity 0.0% cannot be reached: the nearest is 1.4%"),
        (-0.1, "sparsity -10.0% cannot be reached: the nearest is 1.4%"),
        (math.nan, "a sparsity is a number, not nan; 1.4% to 47.4% can be reached"),
    ],
)
def test_a_sparsity_out_of_reach_is_refused_with_what_is_in_reach(sparsity: float, words: str) -> None:
    with pytest.raises(PlanError) as caught:
        prefix_for(PUBLISHED["pixart-sigma"], sparsity)
    assert str(caught.value) == f"published order 'pixart-sigma', 24 units: {words}"


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_an_order_is_found_by_its_name(name: str) -> None:
    assert find_published(name) is PUBLISHED[name]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("flux.1", "flux.1-dev"),
        ("flux", "flux.1-dev"),
        ("FLUX.1-dev", "flux.1-dev"),
        ("pixart", "pixart-sigma"),
        ("PixArt_Sigma", "pixart-sigma"),
        ("SD3", "sd3"),
        ("sd3.5", "sd3"),
        ("hunyuan", None),
        ("", None),
        ("a\nb", None),
    ],
)
def test_an_unknown_name_is_refused_with_what_may_be_meant(name: str, meant: str | None) -> None:
    with pytest.raises(InputError) as caught:
        find_published(name)
    hint = f"did you mean '{meant}'? " if meant else ""
    assert str(caught.value) == f"unknown published order {name!r}; {hint}known: pixart-sigma, sd3, flux.1-dev"


def test_t5_xxl_is_accepted_under_any_prefix() -> None:
    check_xxl(encoder())
    check_xxl(T5Encoder.from_config(CONFIG, {"encoder.embed_tokens.weight"}))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"num_layers": 23}, "num_layers 23, not 24"),
        ({"d_model": 2048}, "hidden_size 2048, not 4096"),
        ({"num_heads": 32}, "num_heads 32, not 64"),
        ({"d_kv": 128}, "head_size 128, not 64"),
        ({"d_ff": 16384}, "intermediate_size 16384, not 10240"),
        ({"feed_forward_proj": "relu"}, "gated False, not True"),
        ({"vocab_size": 32100}, "vocab_size 32100, not 32128"),
        ({"relative_attention_num_buckets": 64}, "num_buckets 64, not 32"),
        ({"d_model": 2048, "d_ff": 5120, "num_heads": 32}, "hidden_size 2048, not 4096"),
    ],
)
def test_another_t5_is_refused_by_the_first_dimension_that_differs(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError) as caught:
        check_xxl(encoder(**changed))
    assert str(caught.value) == (
        f"the paper's orders are for T5-XXL only, and this encoder has {words}; find an order for it with `plan search`"
    )


def test_every_change_of_the_parameters_is_refused() -> None:
    """Whatever integer or switch of `T5Encoder` changes a shape, `check_xxl` sees it."""
    dense = parameter_shapes(encoder(), Plan.identity("t5", 24))
    for dimension, value in vars(encoder()).items():
        if not isinstance(value, int):
            continue
        changed = replace(encoder(), **{dimension: not value if isinstance(value, bool) else 2 * value})
        if parameter_shapes(changed, Plan.identity("t5", changed.num_layers)) != dense:
            with pytest.raises(PlanError, match=f" has {dimension} "):
                check_xxl(changed)


def test_another_family_is_refused() -> None:
    bert = BertEncoder.from_config(
        {
            "num_hidden_layers": 24,
            "hidden_size": 1024,
            "vocab_size": 32128,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
            "max_position_embeddings": 512,
            "type_vocab_size": 2,
            "layer_norm_eps": 1e-12,
            "hidden_act": "gelu",
        },
        {"embeddings.word_embeddings.weight"},
    )
    with pytest.raises(PlanError, match=r"for T5-XXL only, and this encoder is bert; .* `plan search`$"):
        check_xxl(bert)


def test_the_orders_load_without_torch() -> None:
    code = "import sys, skrr_export.published; print(sorted({'torch', 'numpy', 'transformers'} & sys.modules.keys()))"
    assert run_python(code).stdout.strip() == "[]"
