"""The plan: its rules, its file, and the paper's notation."""

from __future__ import annotations

import json
from contextlib import suppress
from functools import reduce
from math import prod
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from skrr_export.encoders.base import parameter_shapes
from skrr_export.encoders.t5 import T5Encoder
from skrr_export.errors import PlanError
from skrr_export.plan import FORMAT, KINDS, Plan, parse_reuse, parse_units
from tests import bundles

JSON_LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
JSON = st.recursive(JSON_LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
FAMILIES = st.from_regex(r"[a-z][a-z0-9_.-]{0,15}", fullmatch=True)

XXL = {
    "num_layers": 24,
    "d_model": 4096,
    "num_heads": 64,
    "d_kv": 64,
    "d_ff": 10240,
    "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu",
}
ORDERS = {
    "PixArt-Sigma": "46,5,6,47,44,2,11,24,23,17,18,45,10,30,29,40,39,38,37,42,25,22,43,36",
    "SD3": "46,5,45,6,11,2,22,23,17,18,30,29,43,44,20,1,41,42,40,39,38,37,21,16",
    "FLUX.1-dev": "46,45,5,6,11,20,19,22,23,30,29,47,2,44,32,31,18,17,37,36,43,40,39,42",
}
"""The skip orders that the paper prints for T5-XXL."""


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any valid plan of up to eight layers."""
    sources = draw(st.integers(1, 8).flatmap(bundles.plans))
    return Plan(draw(FAMILIES), tuple(sources), draw(st.dictionaries(st.text(), JSON, max_size=3)))


def document(sources: list[tuple[int | None, int | None]] | None = None) -> dict[str, Any]:
    """The content of a valid plan file: keep, skip, re-use from before and from behind."""
    sources = sources or [(0, 1), (None, 1), (0, 3), (3, 3)]
    return Plan("t5", tuple(sources), {"method": "by hand"}).to_dict()


def refused(changed: Any) -> str:
    """The message with which a plan file of this content is refused."""
    with pytest.raises(PlanError) as caught:
        Plan.from_json(json.dumps(changed))
    return str(caught.value)


@given(plans())
def test_a_plan_survives_its_file_unchanged(plan: Plan) -> None:
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.provenance == plan.provenance
    assert again.to_json() == plan.to_json()
    assert json.loads(plan.to_json()) == plan.to_dict()


def test_a_plan_survives_the_disk_unchanged(tmp_path: Path) -> None:
    plan = Plan("t5", ((0, None), (0, 1)), {"prompts": ["☃", "😀", "ü"]})
    (tmp_path / "plan.json").write_text(plan.to_json(), encoding="ascii")
    again = Plan.load(tmp_path / "plan.json")
    assert (again, again.provenance) == (plan, plan.provenance)


def test_the_documented_example_reads_as_documented() -> None:
    plan = Plan.from_json(
        """{"format": "skrr-plan/1",
         "encoder": {"family": "t5", "num_layers": 4},
         "layers": [{"attention": 0, "feed_forward": 0}, {"attention": null, "feed_forward": 1},
                    {"attention": 0, "feed_forward": 2}, {"attention": 3, "feed_forward": 2}],
         "provenance": {}}"""
    )
    assert plan.family == "t5"
    assert plan.sources == ((0, 0), (None, 1), (0, 2), (3, 2))
    actions = [(str(position), position.unit, position.action) for position in plan.positions()]
    assert actions == [
        ("layers[0].attention", 0, "keep"),
        ("layers[0].feed_forward", 1, "keep"),
        ("layers[1].attention", 2, "skip"),
        ("layers[1].feed_forward", 3, "keep"),
        ("layers[2].attention", 4, "re-use"),
        ("layers[2].feed_forward", 5, "keep"),
        ("layers[3].attention", 6, "keep"),
        ("layers[3].feed_forward", 7, "re-use"),
    ]
    assert plan.counts() == {"keep": 5, "re-use": 2, "skip": 1}
    assert not plan.is_identity


def test_provenance_may_be_left_out() -> None:
    changed = document()
    del changed["provenance"]
    assert Plan.from_dict(changed).provenance == {}


@pytest.mark.parametrize("num_layers", [1, 2, 24])
def test_the_identity_keeps_every_position(num_layers: int) -> None:
    plan = Plan.identity("bert", num_layers)
    assert plan.is_identity
    assert plan.counts() == {"keep": 2 * num_layers, "re-use": 0, "skip": 0}
    assert Plan.from_order("bert", num_layers, [0], drop=0) == plan


def test_a_plan_of_no_layers_is_refused() -> None:
    with pytest.raises(PlanError, match="at least one layer"):
        Plan("t5", ())


# The paper's notation


@st.composite
def orders(draw: st.DrawFn) -> tuple[int, list[int], int, dict[int, int]]:
    """Layers, an order, how much of it is dropped, and a valid re-use map."""
    num_layers = draw(st.integers(1, 8))
    order = draw(st.permutations(range(2 * num_layers)))[: draw(st.integers(0, 2 * num_layers))]
    drop = draw(st.integers(0, len(order)))
    reuse = {}
    for unit in order[:drop]:
        kept = [other for other in range(unit % 2, 2 * num_layers, 2) if other not in order[:drop]]
        if kept and draw(st.booleans()):
            reuse[unit] = draw(st.sampled_from(kept))
    return num_layers, order, drop, reuse


@given(orders())
def test_from_order_drops_the_prefix_and_fills_in_what_is_reused(
    drawn: tuple[int, list[int], int, dict[int, int]],
) -> None:
    num_layers, order, drop, reuse = drawn
    rows = [[layer, layer] for layer in range(num_layers)]
    for unit in order[:drop]:
        rows[unit // 2][unit % 2] = reuse[unit] // 2 if unit in reuse else None
    plan = Plan.from_order("t5", num_layers, order, drop=drop, reuse=reuse)
    assert [list(pair) for pair in plan.sources] == rows
    skipped = [position.unit for position in plan.positions() if position.action == "skip"]
    assert skipped == sorted(set(order[:drop]) - reuse.keys())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"order": [6]}, "unit 6 is out of range: 3 layers have units 0 to 5"),
        ({"order": [-1]}, "unit -1 is out of range"),
        ({"order": [1, 2, 1]}, "unit 1 stands twice"),
        ({"order": [1], "drop": 2}, "cannot drop 2 units: the order names 1"),
        ({"order": [1], "drop": -1}, "cannot drop -1 units"),
        ({"order": [], "num_layers": 0}, "an encoder has 1 to 10,000 layers, not 0"),
        ({"order": [], "num_layers": 10**12}, "an encoder has 1 to 10,000 layers, not 1000000000000"),
        ({"order": [1, 3], "reuse": {3: 5}}, "unit 3 is not dropped"),
        ({"order": [1], "reuse": {1: 2}}, "unit 2 is not a feed_forward of this encoder"),
        ({"order": [1], "reuse": {1: 7}}, "unit 7 is not a feed_forward of this encoder"),
        ({"order": [2], "reuse": {2: -2}}, "unit -2 is not a attention of this encoder"),
        ({"order": [1, 3], "drop": 2, "reuse": {1: 3}}, "re-use 1:3: unit 3 is dropped; only kept weights"),
        ({"order": [1], "reuse": {1: 1}}, "re-use 1:1: unit 1 is dropped; only kept weights"),
    ],
)
def test_from_order_says_what_does_not_fit(arguments: dict[str, Any], words: str) -> None:
    call = {"num_layers": 3, "drop": 1, **arguments}
    with pytest.raises(PlanError) as caught:
        Plan.from_order("t5", **call)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("denoiser", "printed"), [("PixArt-Sigma", "41.9%"), ("SD3", "41.9%"), ("FLUX.1-dev", "43.2%")]
)
def test_the_papers_orders_give_their_sparsity(denoiser: str, printed: str) -> None:
    """21 units of T5-XXL's 4.762 billion parameters: the paper's 41.9% for all but FLUX.1-dev.

    Of FLUX.1-dev's first 21 units 11 are feed-forwards, of the others' 10, and a feed-forward is the larger one.
    """
    encoder = T5Encoder.from_config(XXL, {"shared.weight"})
    order = parse_units(ORDERS[denoiser])
    plan = Plan.from_order("t5", 24, order, drop=21)

    def parameters(of: Plan) -> int:
        return sum(prod(shape) for shape in parameter_shapes(encoder, of).values())

    total = parameters(Plan.identity("t5", 24))
    attention, feed_forward, embedding = 4 * 4096 * 4096 + 4096, 3 * 4096 * 10240 + 4096, 32128 * 4096
    assert total == 24 * (attention + feed_forward) + embedding + 32 * 64 + 4096
    assert f"{total / 1e9:.3f}" == "4.762"
    dropped = sum(feed_forward if unit % 2 else attention for unit in order[:21])
    assert parameters(plan) == total - dropped
    assert f"{1 - parameters(plan) / total:.1%}" == printed


def test_reuse_costs_no_parameters() -> None:
    encoder = T5Encoder.from_config(XXL, {"shared.weight"})
    order = parse_units(ORDERS["FLUX.1-dev"])
    skipped = Plan.from_order("t5", 24, order, drop=21)
    reused = Plan.from_order("t5", 24, order, drop=21, reuse={5: 7, 6: 4, 11: 9})
    assert set(parameter_shapes(encoder, reused)) == set(parameter_shapes(encoder, skipped))


@given(st.lists(st.integers(0, 99), min_size=1), st.sampled_from([",", ", ", " ,\n"]))
def test_units_are_read_as_written(units: list[int], separator: str) -> None:
    assert parse_units(separator.join(map(str, units))) == units


@given(st.dictionaries(st.integers(0, 99), st.integers(0, 99), min_size=1))
def test_reuse_pairs_are_read_as_written(pairs: dict[int, int]) -> None:
    assert parse_reuse(",".join(f"{unit} : {source}" for unit, source in pairs.items())) == pairs


@pytest.mark.parametrize("text", ["", "1,", "1,,2", "-1", "1.0", "a", "1;2", "²", "٣", "0x1", "1_0", "9" * 5000])
def test_what_is_no_unit_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match="is not a unit number"):
        Plan.from_order("t5", 50, parse_units(text), drop=0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not a pair"),
        ("5", "'5' is not a pair DROPPED:SOURCE, such as 5:7"),
        ("5:", "is not a unit number"),
        (":7", "is not a unit number"),
        ("5:7:9", "is not a unit number"),
        ("5:7,5:9", "unit 5 is given two sources"),
        ("5:7,05:9", "is given two sources"),
    ],
)
def test_what_is_no_reuse_pair_is_refused(text: str, words: str) -> None:
    with pytest.raises(PlanError) as caught:
        parse_reuse(text)
    assert words in str(caught.value)


@given(st.text())
def test_any_text_is_units_or_a_plan_error(text: str) -> None:
    for parse in (parse_units, parse_reuse):
        with suppress(PlanError):
            parse(text)


# Plan files that are refused


@given(plans(), st.data())
def test_an_unknown_key_is_named(plan: Plan, data: st.DataObject) -> None:
    changed = plan.to_dict()
    place = data.draw(st.sampled_from([changed, changed["encoder"], *changed["layers"]]))
    key = data.draw(st.text(min_size=1))
    assume(key not in place)
    place[key] = 0
    assert f"has the unknown key '{key}'; known: " in refused(changed)


@given(plans(), st.data())
def test_a_missing_key_is_named(plan: Plan, data: st.DataObject) -> None:
    changed = plan.to_dict()
    place = data.draw(st.sampled_from([changed, changed["encoder"], *changed["layers"]]))
    key = data.draw(st.sampled_from(sorted(place.keys() - {"provenance"})))
    del place[key]
    assert f"lacks the key '{key}'" in refused(changed)


@pytest.mark.parametrize(
    ("once", "twice"),
    [
        ('"format"', '"format": "skrr-plan/1", "format"'),
        ('"family"', '"family": "t5", "family"'),
        ('"attention"', '"attention": 0, "attention"'),
        ('"method"', '"method": 1, "method"'),
    ],
)
def test_a_key_that_stands_twice_is_named(once: str, twice: str) -> None:
    text = json.dumps(document()).replace(once, twice, 1)
    with pytest.raises(PlanError) as caught:
        Plan.from_json(text)
    assert str(caught.value) == f"not a JSON file: the key {once} stands twice in one object".replace('"', "'")


@pytest.mark.parametrize("value", [None, 1, True, "skrr-plan/2", "skrr-plan/1 ", ["skrr-plan/1"], {}])
def test_another_format_is_refused(value: Any) -> None:
    assert refused({**document(), "format": value}) == f"the plan's format is {value!r}; this release reads '{FORMAT}'"


@given(plans(), st.data())
def test_a_source_that_is_no_layer_number_is_refused(plan: Plan, data: st.DataObject) -> None:
    changed = plan.to_dict()
    layer, kind = data.draw(st.integers(0, plan.num_layers - 1)), data.draw(st.sampled_from(KINDS))
    value = data.draw(
        JSON_LEAVES.filter(lambda leaf: leaf is not None and type(leaf) is not int)
        | st.just([0])
        | st.just({"layer": 0})
    )
    changed["layers"][layer][kind] = value
    assert f"layers[{layer}].{kind} must be a layer number or null, not " in refused(changed)


@given(plans(), st.data())
def test_a_source_out_of_range_is_refused(plan: Plan, data: st.DataObject) -> None:
    changed = plan.to_dict()
    layer, kind = data.draw(st.integers(0, plan.num_layers - 1)), data.draw(st.sampled_from(KINDS))
    source = data.draw(st.integers(max_value=-1) | st.integers(min_value=plan.num_layers))
    for other in changed["layers"]:  # nobody re-uses the position that is changed
        other[kind] = None
    changed["layers"][layer][kind] = source
    message = refused(changed)
    assert f"layers[{layer}].{kind} re-uses layer {source}" in message
    assert f"the encoder has layers 0 to {plan.num_layers - 1}" in message


@given(plans(), st.data())
def test_a_source_that_is_not_kept_is_refused(plan: Plan, data: st.DataObject) -> None:
    """Neither a skipped position nor one that re-uses can be a source: re-use does not chain."""
    assume(plan.num_layers > 1)
    changed, kind = plan.to_dict(), data.draw(st.sampled_from(KINDS))
    first, second, *others = data.draw(st.permutations(range(plan.num_layers)))
    for layer in others:
        changed["layers"][layer][kind] = layer
    changed["layers"][second][kind] = data.draw(st.sampled_from([None, *others]))
    changed["layers"][first][kind] = second
    message = refused(changed)
    assert f"layers[{first}].{kind} re-uses layer {second}, whose {kind} is not kept at its own position" in message


def test_two_positions_cannot_reuse_each_other() -> None:
    with pytest.raises(PlanError, match="not kept at its own position"):
        Plan("t5", ((1, 0), (0, 1)))


@given(plans(), JSON_LEAVES)
def test_a_wrong_number_of_layers_is_refused(plan: Plan, number: Any) -> None:
    assume(type(number) is not int or number != plan.num_layers)
    changed = plan.to_dict()
    changed["encoder"]["num_layers"] = number
    assert f"but layers has {plan.num_layers} entries" in refused(changed)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ((), [], "the plan must be a JSON object, not []"),
        ((), "x" * 99, f'the plan must be a JSON object, not "{"x" * 39}'),
        (("encoder",), "t5", 'encoder must be a JSON object, not "t5"'),
        (("encoder", "family"), 5, "encoder.family must be a string, not 5"),
        (("encoder", "family"), None, "encoder.family must be a string, not None"),
        (("layers",), {}, "layers must be a list"),
        (("layers",), [], "layers must be a list"),
        (("layers", 1), None, "layers[1] must be a JSON object, not null"),
        (("layers", 1), [0, 0], "layers[1] must be a JSON object, not [0, 0]"),
        (("provenance",), [], "provenance must be an object"),
        (("provenance",), None, "provenance must be an object"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(path: tuple[Any, ...], value: Any, words: str) -> None:
    changed: Any = {"plan": document()}
    *outer, last = ("plan", *path)
    reduce(getitem, outer, changed)[last] = value
    assert words in refused(changed["plan"])


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_numbers_that_json_does_not_know_are_refused(number: str) -> None:
    """Nobody else could read the plan, nor could we print it as JSON."""
    with pytest.raises(PlanError):
        Plan.from_json(json.dumps(document()).replace('"by hand"', number))


@pytest.mark.parametrize("family", ["", "[/]", "[red]", "\x00", "\x1b[2J", "a\nb", "t5\n", "\ud800", "<t5>", " "])
def test_a_family_that_no_picture_or_terminal_could_show_is_refused(family: str) -> None:
    changed = document()
    changed["encoder"]["family"] = family
    assert refused(changed) == f"the plan's family must be a name such as t5, not {family!r}"
    with pytest.raises(PlanError, match="family must be a name"):
        Plan.from_order(family, 1, [], drop=0)


@given(st.text() | JSON.map(json.dumps))
def test_any_text_is_a_plan_or_a_plan_error(text: str) -> None:
    with pytest.raises(PlanError):
        Plan.from_json(text)


@given(plans(), st.data())
def test_a_plan_file_with_any_damage_is_a_plan_or_a_plan_error(plan: Plan, data: st.DataObject) -> None:
    text = plan.to_json()
    begin = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(begin, min(begin + 12, len(text))))
    damaged = text[:begin] + data.draw(st.text(max_size=4) | st.sampled_from('{}[]":,01-')) + text[end:]
    try:
        read = Plan.from_json(damaged)
    except PlanError:
        return
    assert Plan.from_json(read.to_json()) == read


@pytest.mark.parametrize(
    "text",
    [
        "%s",
        '{"format": %s, "encoder": {}, "layers": []}',
        '{"format": "skrr-plan/1", "encoder": %s, "layers": []}',
        '{"format": "skrr-plan/1", "encoder": {"family": %s, "num_layers": 1}, "layers": []}',
        '{"format": "skrr-plan/1", "encoder": {"family": "t5", "num_layers": 1}, "layers": [{"attention": %s, '
        '"feed_forward": 0}]}',
    ],
)
def test_nesting_of_any_depth_is_a_plan_error(text: str) -> None:
    """Each depth about the interpreter's limit, since reading and describing a value may give up at different ones."""
    for depth in [*range(1, 1050), 100_000]:
        with pytest.raises(PlanError):
            Plan.from_json(text % ("[" * depth + "]" * depth))


def test_a_plan_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"cannot read the plan '.*absent\.json': No such file or directory"):
        Plan.load(tmp_path / "absent.json")
    with pytest.raises(PlanError, match=r"cannot read the plan .*: Is a directory"):
        Plan.load(tmp_path)
    (tmp_path / "latin.json").write_bytes(b'{"\xe9": 1}')
    with pytest.raises(PlanError, match=r"latin\.json': not UTF-8 text"):
        Plan.load(tmp_path / "latin.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(PlanError, match=r"bad\.json: not a JSON file: "):
        Plan.load(tmp_path / "bad.json")
