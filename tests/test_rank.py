import json
import math
import random
from dataclasses import asdict, replace

import pytest
from invented import CAUSES, PRIMARIES, Truth, World, world

from leanwatt.errors import StudyError
from leanwatt.measurement import PREFILL, PREFILL_AND_DECODE, Energy, Measurement, Provenance
from leanwatt.rank import next_candidates, rank
from leanwatt.sections import sections
from leanwatt.store import Store
from leanwatt.verdict import apart_sentence, short_names


@pytest.fixture(scope="module")
def usual() -> World:
    return world()


@pytest.fixture(scope="module")
def table(usual):
    return usual.ranking()


def test_the_known_answer_is_found(usual, table):
    entry = table.entry(usual.label("gptq"))
    assert table.sweet_spot.label == usual.label("gptq")
    assert table.order_of_candidates == (usual.label("gptq"),)
    assert (entry.word, entry.saves, entry.is_on_front) == ("non-inferior", "yes", True)
    assert entry.to_reference.value == pytest.approx(0.5, rel=0.03)
    assert entry.to_reference.low < entry.to_reference.value < entry.to_reference.high
    assert entry.cost.value == pytest.approx(1.0, rel=0.3)
    assert table.scale.unit == "joules" and table.scale.devices == ("package-0",)


def test_worse_ones_are_named_inferior_however_cheap(usual, table):
    both = table.entry(usual.label("wanda+gptq"))
    assert both.word == "inferior"
    assert table.leader == both.label
    assert both.tasks["root_cause"].loss.difference == pytest.approx(-0.3, abs=0.03)


def test_scores_are_what_the_formulas_say(usual, table):
    reference, gptq = table.entry(usual.label("plain")), table.entry(usual.label("gptq"))
    assert reference.phi == pytest.approx(0.5)
    assert reference.word == "reference" and reference.saves is None
    ratio = gptq.to_reference.value
    assert gptq.phi == pytest.approx(1 / (1 + ratio))
    assert gptq.r == pytest.approx(0.5 * gptq.phi + 0.5 * gptq.quality)
    assert gptq.r_low < gptq.r < gptq.r_high
    cheapest = table.entry(usual.label("wanda+gptq"))
    assert all(result.phi_least == pytest.approx(1) for result in cheapest.tasks.values())
    expected = [0.5 * result.phi_least + 0.5 * result.quality.value for result in gptq.tasks.values()]
    assert gptq.r_least == pytest.approx(sum(expected) / 2)


def test_every_figure_has_examples_and_an_interval(table):
    figures = [
        figure for entry in table.entries for result in entry.tasks.values() for figure in result.figures.values()
    ]
    assert figures
    assert all(figure.low <= figure.value <= figure.high and figure.repeats == 600 for figure in figures)
    classes = table.entry(table.reference).tasks["root_cause"].classes
    assert [row["class"] for row in classes] == sorted(CAUSES)


def test_a_ranking_is_json(table):
    assert json.loads(json.dumps(asdict(table), allow_nan=False))["reference"] == table.reference


def test_the_order_of_records_changes_nothing(usual, table):
    records = usual.records()
    random.Random(1).shuffle(records)
    assert usual.ranking(records=records) == table


def test_zeros_without_a_kernel_are_not_expected_to_save(usual, table):
    wanda = table.entry(usual.label("wanda"))
    assert "No saving expected from pruning: 50% of the weights are zero" in wanda.note
    assert wanda.saves == "cannot tell"
    packed = world(gptq=Truth(cost=0.5, facts={"codes_bits": 4, "requantized": True}))
    note = packed.ranking().entry(packed.label("gptq")).note
    assert "unpacked and multiplied as dense float32" in note and "its own way" in note


def test_drift_of_an_engine_at_few_bits_is_told():
    def said(share):
        facts = {"codes_bits": 4, "option_agreement": share, "option_examples": 400}
        return [each for each in world(gptq=Truth(facts=facts)).ranking().caveats if "another option" in each]

    [told] = said(0.95)
    assert "gptq" in told and "5.0% of 400" in told
    assert said(0.9925) == []


def test_a_baseline_that_lacks_a_task_is_named_and_can_win_that_task():
    good = world(tfidf=Truth(cost=0.01, right=0.93, only=("root_cause",)))
    table = good.ranking()
    entry = table.entry("tfidf")
    assert (entry.is_complete, entry.why, entry.r) == (False, "does not do response", None)
    assert table.best_by_task["root_cause"] == "tfidf"
    assert table.best_by_task["response"] == good.label("gptq")
    assert any("tfidf: not ranked, since it does not do response" in each for each in table.caveats)


def test_a_baseline_may_win_and_the_best_model_is_named_after_it():
    found = world(tfidf=Truth(cost=0.01, right=0.95, kernel="classical"))
    table = found.ranking()
    assert table.sweet_spot.label == "tfidf"
    assert table.sweet_spot.best_model == found.label("gptq")
    assert table.sweet_spot.uncompressed == found.label("plain")
    found.tasks = ("root_cause",)
    assert found.ranking().sweet_spot.label == "tfidf"


def test_nothing_saves():
    found = world(gptq=Truth(cost=1.5, right=0.9))
    table = found.ranking()
    assert table.sweet_spot.verdict == "nothing saves"
    assert table.sweet_spot.label == table.reference
    assert table.entry(found.label("gptq")).saves == "no"
    assert table.entry(found.label("gptq")).payback_tickets is None
    assert next_candidates(table) == ()


def test_a_difference_within_the_noise_is_a_tie():
    found = world(**{"wanda": Truth(cost=0.505), "gptq": Truth(cost=0.5), "wanda+gptq": Truth(cost=0.8)})
    table = found.ranking()
    pair = {found.label("gptq"), found.label("wanda")}
    assert {table.sweet_spot.label, *table.sweet_spot.tied} == pair
    assert {entry.label for entry in table.entries if entry.is_tied} == pair - {table.leader}


def test_confirmation_on_the_test_split(usual):
    table = usual.ranking()
    assert next_candidates(table) == (usual.label("plain"), usual.label("gptq"), "tfidf")
    confirmed = usual.ranking(confirmed=next_candidates(table))
    assert confirmed.sweet_spot.verdict == "confirmed"
    assert next_candidates(confirmed) == ()
    figures = confirmed.entry(usual.label("gptq")).confirmation
    assert figures.losses["root_cause"].word == "non-inferior" and figures.p <= 0.05
    assert confirmed.entry(table.reference).confirmation.p is None


def test_a_candidate_that_fails_on_test_gives_way_to_the_next():
    found = world(**{"gptq": Truth(cost=0.5, right_on_test=0.8), "wanda": Truth(cost=0.6)})
    table = found.ranking()
    assert table.order_of_candidates == (found.label("gptq"), found.label("wanda"))
    after = found.ranking(confirmed=next_candidates(table))
    assert after.sweet_spot.label == found.label("wanda")
    assert after.sweet_spot.verdict == "not yet confirmed"
    assert next_candidates(after) == (found.label("wanda"),)
    done = found.ranking(confirmed=[*next_candidates(table), found.label("wanda")])
    assert (done.sweet_spot.label, done.sweet_spot.verdict) == (found.label("wanda"), "confirmed")


def test_where_none_holds_the_reference_is_recommended():
    found = world(gptq=Truth(cost=0.5, right_on_test=0.8))
    table = found.ranking(confirmed=[found.label("plain"), found.label("gptq"), "tfidf"])
    assert (table.sweet_spot.label, table.sweet_spot.verdict) == (table.reference, "not confirmed")


def test_a_test_that_failed_does_not_hold_and_is_not_asked_for_again(usual):
    table = usual.ranking()
    records = usual.records(confirmed=next_candidates(table))
    label = usual.label("gptq")
    broken = [
        replace(r, status="failed", error="killed for memory") if r.job == "confirm" and r.trial.label == label else r
        for r in records
    ]
    after = usual.ranking(records=broken)
    assert after.sweet_spot.verdict == "not confirmed" and next_candidates(after) == ()
    assert any("could not answer the test split (killed for memory)" in each for each in after.caveats)
    broken = [
        replace(r, status="failed", error="x") if r.job == "confirm" and r.trial.label == table.reference else r
        for r in records
    ]
    after = usual.ranking(records=broken)
    assert after.sweet_spot.verdict == "not yet confirmed" and next_candidates(after) == ()


def test_a_weighing_that_failed_is_named(usual):
    label = usual.label("gptq")
    records = [
        replace(r, status="failed", error="sensor gone", measurements=())
        if r.job == "weigh" and r.trial.label == label
        else r
        for r in usual.records()
    ]
    table = usual.ranking(records=records)
    assert table.entry(label).why == "not weighed: sensor gone"


def test_a_store_gives_the_same_ranking(usual, table, tmp_path):
    store = Store(tmp_path)
    for record in usual.records():
        rows = usual.rows[record.predictions] if record.predictions else []
        store.add(replace(record, predictions=None), rows)
    study = usual.study
    stored = rank(study, PRIMARIES, store.records(), store.rows)
    assert stored == table


def test_folds_are_pooled_and_called_cross_validated(usual):
    found = replace(usual, folds=3, rows={})
    table = found.ranking(confirmed=[found.label("plain"), found.label("gptq")])
    assert table.sweet_spot.verdict == "cross-validated"
    assert table.entry(found.label("gptq")).tasks["root_cause"].quality.repeats == 600
    assert any("Cross-validated over 3 folds" in each for each in table.caveats)


def test_seeds_stand_side_by_side():
    found = world()
    found.settings = {**found.settings, "seeds": [0, 1]}
    table = found.ranking()
    result = table.entry(found.label("gptq")).tasks["root_cause"]
    assert list(result.by_seed) == ["0", "1"]
    assert result.quality.repeats == 600
    assert table.entry(found.label("gptq")).word == "non-inferior"
    assert any(each.startswith("2 seeds") for each in table.caveats)


def test_ways_of_training_that_were_tried_with_one_seed_are_said(table):
    assert not any("ways of training" in each for each in table.caveats), "all rest on one training"
    found = world()
    tuned = [{"finetune": ["none", {"full": {"precision": "fp32"}}, {"full": {"precision": "bf16"}}]}]
    found.settings = {**found.settings, "steps": [*tuned, *found.settings["steps"][1:]]}
    [said] = [each for each in found.ranking().caveats if "ways of training" in each]
    assert said.startswith("2 ways of training with one seed"), "the untouched base is no training"
    found.settings = {**found.settings, "seeds": [0, 1]}
    assert not any("ways of training" in each for each in found.ranking().caveats)


def test_a_failed_trial_is_a_line_with_its_reason_and_no_traceback():
    found = world(wanda=Truth(status="refused"))
    table = found.ranking()
    entry = table.entry(found.label("wanda"))
    assert entry.status == "refused"
    assert "no <b>room</b>" in entry.why and "secret" not in entry.why
    assert any("refused" in each for each in table.caveats)


def test_the_newest_finished_attempt_counts(usual, table):
    records = usual.records()
    extra = [replace(r, status="failed", error="killed", measurements=()).again(1) for r in records if r.job == "grade"]
    better = [r.again(2) for r in records if r.job == "grade"]
    assert usual.ranking(records=[*records, *extra]).entries == table.entries
    broken = [replace(r, status="failed", error="killed") if r.job == "grade" else r for r in records]
    assert usual.ranking(records=broken).sweet_spot is None
    assert usual.ranking(records=[*broken, *better]).sweet_spot == table.sweet_spot


def test_untried_variants_and_foreign_records_are_named(usual):
    records = usual.records()
    wanda = usual.label("wanda")
    kept = [r for r in records if r.trial.label != wanda]
    foreign = [replace(r, trial=replace(r.trial, variant=replace(r.trial.variant, data="old"))) for r in records[:3]]
    foreign = [replace(r, machine={**r.machine, "utc": "2020"}) for r in foreign]
    table = usual.ranking(records=[*kept, *foreign])
    assert table.entry(wanda).status == "missing"
    assert any(each.startswith(f"3 of {len(kept) + 3} records are of other data") for each in table.caveats)


def test_no_records_at_all_is_a_table_of_missing_lines(usual):
    table = usual.ranking(records=[])
    assert {entry.status for entry in table.entries} == {"missing"}
    assert table.sweet_spot is None and table.leader is None and table.totals.cpu_seconds == 0
    assert next_candidates(table) == ()


def test_a_reference_must_be_a_variant(usual):
    found = replace(usual, settings={**usual.settings, "reference": "nonsense"})
    with pytest.raises(StudyError, match="No 'nonsense' in the variants"):
        found.ranking(records=[])
    named = replace(usual, settings={**usual.settings, "reference": usual.label("gptq")}, rows={})
    assert named.ranking().entry(usual.label("gptq")).word == "reference"
    only = replace(usual, settings={"base": [], "baselines": ["tfidf"]})
    with pytest.raises(StudyError, match="names no language model"):
        only.ranking(records=[])


# Which cost is ranked


def test_estimates_are_shown_but_cpu_seconds_rank():
    found = world()
    found.provenance = Provenance.ESTIMATED
    table = found.ranking()
    assert table.scale.unit == "cpu_seconds"
    spending = table.entry(found.label("gptq")).spending
    assert spending.joules_lower < spending.joules.value < spending.joules_upper
    assert any("estimates" in each for each in table.caveats)
    assert table.sweet_spot.label == found.label("gptq")


@pytest.mark.parametrize(
    ("cost", "kernel", "saves"),
    [(0.85, "int8", "cannot tell"), (0.85, "dense float32", "yes"), (0.5, "int8", "yes"), (0.85, None, "cannot tell")],
)
def test_cpu_seconds_of_unlike_kernels_are_told_apart_beyond_30_per_cent_only(cost, kernel, saves):
    found = world(gptq=Truth(cost=cost, kernel=kernel))
    found.provenance = Provenance.ABSENT
    table = found.ranking()
    assert table.entry(found.label("gptq")).saves == saves
    assert table.entry(found.label("gptq")).spending.joules is None


def energy(joules: float, provenance=Provenance.MEASURED, source="rapl", scope="package") -> Energy:
    return Energy(joules, joules, joules, provenance, source=source, scope=scope)


def test_the_widest_devices_that_all_have_are_ranked_and_the_rest_is_named():
    def devices(name, number, joules):
        found = {"package-0": energy(joules), "gpu-0": energy(2 * joules, source="nvml", scope="gpu")}
        return found if name == "gptq" else {**found, "package-1": energy(joules)}

    found = world()
    found.device = devices
    table = found.ranking()
    assert table.scale.devices == ("gpu-0", "package-0")
    assert table.scale.scope == "gpu+package" and table.scale.source == "nvml+rapl"
    assert any(each.startswith("package-1 is left out") for each in table.caveats)
    spending = table.entry(found.label("gptq")).spending
    assert spending.joules.value == pytest.approx(3 * spending.cpu_seconds.value)


def test_a_node_meter_stands_alone():
    def devices(name, number, joules):
        return {"package-0": energy(joules), "plug": energy(4 * joules, Provenance.INTEGRATED, "plug", "node")}

    found = world()
    found.device = devices
    table = found.ranking()
    assert (table.scale.devices, table.scale.provenance) == (("plug",), "integrated")
    assert not any("package-0" in each for each in table.caveats)


def test_one_that_was_measured_otherwise_is_named_and_not_compared():
    def devices(name, number, joules):
        return {"package-0": energy(joules, Provenance.SUSPECT if name == "gptq" else Provenance.MEASURED)}

    found = world()
    found.device = devices
    table = found.ranking()
    entry = table.entry(found.label("gptq"))
    assert table.scale.unit == "joules"
    assert entry.cost is None and "not measured as that of the others" in entry.why
    assert entry.saves is None and entry.r is None and not table.order_of_candidates


def test_a_window_with_a_lost_sensor_is_left_out():
    def devices(name, number, joules):
        lost = name == "gptq" and number == 2
        return {"package-0": energy(joules, Provenance.INCOMPLETE if lost else Provenance.MEASURED)}

    found = world()
    found.device = devices
    table = found.ranking()
    assert table.entry(found.label("gptq")).to_reference.rounds == 4
    assert any(each.startswith("1 windows are left out") for each in table.caveats)


def test_machines_are_never_mixed(usual):
    label = usual.label("gptq")
    moved = [
        replace(r, machine={**r.machine, "id": "m2"}) if r.job == "weigh" and r.trial.label == label else r
        for r in usual.records()
    ]
    table = usual.ranking(records=moved)
    assert table.scale.machine == "m1"
    assert table.entry(label).why == "weighed on another machine"
    assert any("5 weighings on other machines" in each for each in table.caveats)


def test_contended_windows_and_gpus_without_a_meter_are_told(usual):
    found = replace(usual, provenance=Provenance.ABSENT, rows={})
    records = [
        replace(r, facts={**r.facts, "flags": ["contended"]}, machine={**r.machine, "gpus": ["H200"]})
        for r in found.records()
    ]
    caveats = found.ranking(records=records).caveats
    assert any("`contended`" in each for each in caveats)
    assert any("has a GPU whose energy was not read" in each for each in caveats)


# What follows from costs


def test_net_energy_is_less_the_idle_power(usual, table):
    spending = table.entry(usual.label("gptq")).spending
    assert spending.net_joules == pytest.approx(spending.joules.value - 0.5 * spending.seconds.value, rel=0.05)


def test_making_counts_shared_work_for_each_and_once_in_the_total(usual, table):
    gptq = table.entry(usual.label("gptq")).making
    assert gptq.cpu_seconds == 150 and gptq.reused_cpu_seconds == 50 and gptq.joules == 1500
    assert set(gptq.stages) == {"finetune", "quantize"}
    weighed = sum(m.cpu_seconds for r in usual.records() if r.job == "weigh" for m in r.measurements)
    graded = 5 * 2
    assert table.totals.cpu_seconds == pytest.approx(50 + 4 * 100 + graded + weighed)


def test_payback_is_extra_making_over_saving():
    found = world(gptq=Truth(cost=0.5, making=300.0))
    table = found.ranking()
    entry, reference = table.entry(found.label("gptq")), table.entry(table.reference)
    expected = (3500 - 1500) / (reference.cost.value - entry.cost.value)
    assert entry.payback_tickets == pytest.approx(expected)


def test_a_day_at_the_users_load_has_idle_or_reload_in_it(usual):
    load = {"tickets_per_day": 1000}
    found = replace(usual, settings={**usual.settings, "load": load}, rows={})
    entry = found.ranking().entry(usual.label("gptq"))
    assert entry.cost_per_day == pytest.approx(1000 * entry.cost.value + 20.0)
    found = replace(usual, settings={**usual.settings, "load": {**load, "always_on": 1}}, rows={})
    entry = found.ranking().entry(usual.label("gptq"))
    idle = 0.5 * (86400 - 1000 * entry.spending.seconds.value)
    assert entry.cost_per_day == pytest.approx(1000 * entry.cost.value + idle)


def test_factors_compare_pairs_that_differ_in_one_thing(usual):
    found = replace(
        usual, settings={**usual.settings, "engine": ["transformers", "openvino"], "batch": [1, 8]}, rows={}
    )
    table = found.ranking()
    by_axis = {
        axis: [f for f in table.factors if f.axis == axis] for axis in ("engine", "batch", "precision", "pruning")
    }
    assert {(f.before, f.after) for f in by_axis["engine"]} == {("transformers", "openvino")}
    assert {(f.before, f.after) for f in by_axis["batch"]} == {("1", "8")}
    assert {(f.before, f.after) for f in by_axis["pruning"]} == {("none", "wanda(sparsity=0.5)")}
    assert all(len(found) == 8 for found in by_axis.values())
    assert all(f.ratio.value == pytest.approx(0.5, rel=0.1) for f in by_axis["precision"])


def chained(phases=True, without=(), **truths):
    """Two engines and two batch sizes, where openvino takes half and a batch of 8 a quarter."""
    shorter = {"gptq": Truth(cost=0.6, tokens_out=2.0), "wanda+gptq": Truth(cost=0.3, tokens_out=1.0)}
    found = world(**{**shorter, **truths})
    found.settings |= {"engine": ["transformers", "openvino"], "batch": [1, 8]}
    found.factor = lambda t: (0.5 if t.engine.name == "openvino" else 1) * (0.25 if t.batch == 8 else 1)

    def with_phases(record):
        stages = []
        for stage, joules, new in ((PREFILL, 20.0, 10), (PREFILL_AND_DECODE, 52.0, 330)):
            stages.append(Measurement(stage, 1.0, 1.0, {"package-0": energy(joules)}, {}, 10, 1000, new))
        return replace(record, measurements=(*record.measurements, *stages))

    records = [r for r in found.records() if (found.name(r.trial), r.trial.engine.name, r.trial.batch) not in without]
    is_model = {r.id: r.job == "weigh" and not r.trial.is_baseline for r in records}
    return found, found.ranking(records=[with_phases(r) if phases and is_model[r.id] else r for r in records])


def by_axes(table, label):
    [each] = [each for each in table.apart if each.label == label]
    return {part.axes: part.factor.value for part in each.parts}, each


def test_the_factor_of_each_variant_is_taken_apart_and_its_parts_multiply_to_it():
    found, table = chained()
    end = next(t.label for t in found.trials() if found.name(t) == "wanda+gptq" and t.label.endswith("batch 8")
               and "openvino" in t.label)  # fmt: skip
    parts, each = by_axes(table, end)
    assert list(parts) == [("engine",), ("batch",), ("precision",), ("pruning",), ("output length",)]
    assert math.prod(parts.values()) == pytest.approx(each.whole.value, rel=1e-12)
    assert each.whole.value == pytest.approx(table.entry(end).to_reference.value)
    reference = table.entry(table.reference)
    assert reference.phases.decode.value == pytest.approx(0.1)
    # Two tasks: 6 tokens per ticket at the reference, 4 with gptq, 2 with both; 0.1 J each at the reference.
    length = {tokens: 1 + 0.1 * (tokens - 6) / reference.cost.value for tokens in (4, 2)}
    assert parts["output length",] == pytest.approx(length[2]) and length[2] < 0.9
    assert parts["engine",] == pytest.approx(0.5, rel=0.03) and parts["batch",] == pytest.approx(0.25, rel=0.03)
    assert parts["precision",] == pytest.approx(0.6 / length[4], rel=0.03)
    assert parts["pruning",] == pytest.approx(0.5 / (length[2] / length[4]), rel=0.03)
    step = each.parts[0].factor
    assert step.low < step.value < step.high and step.repeats == found.study.protocol.rounds
    assert {other.label for other in table.apart} == {e.label for e in table.entries if not e.is_baseline} - {
        table.reference
    }


def test_without_phases_what_is_written_stays_in_the_other_parts():
    found, table = chained(phases=False)
    for each in table.apart:
        assert all("output length" not in part.axes for part in each.parts)
        assert math.prod(part.factor.value for part in each.parts) == pytest.approx(each.whole.value, rel=1e-12)
    gptq, _ = by_axes(table, found.label("gptq"))
    assert gptq == {("precision",): pytest.approx(0.6, rel=0.03)}


def test_axes_are_told_together_where_nothing_was_weighed_between():
    _, table = chained(without=[("gptq", "openvino", 8), ("plain", "openvino", 1)])
    end = next(each.label for each in table.apart if "wanda" in each.label and "gptq" in each.label
               and "openvino" in each.label and each.label.endswith("batch 8"))  # fmt: skip
    parts, each = by_axes(table, end)
    assert list(parts) == [("engine", "batch"), ("precision", "pruning"), ("output length",)]
    assert math.prod(parts.values()) == pytest.approx(each.whole.value, rel=1e-12)
    assert apart_sentence(each).startswith("engine and batch 1") and " x output length 8" in apart_sentence(each)
    [part] = [part for part in sections(table, "") if part.title == "From the reference to each variant"]
    row = next(row for row in part.grid.rows if row[0] == short_names(table)[end])
    assert part.grid.head == (
        "variant",
        "engine",
        "batch",
        "precision",
        "pruning",
        "output length",
        "all",
        "tokens out",
    )
    assert (row[1], row[3], row[7]) == ("with batch", "with pruning", "2")
    assert row[5].endswith(" %") and "(" in row[6]


def test_another_training_is_an_axis_of_its_own():
    found = world(plain=Truth(facts={"weight_dtype": "bfloat16"}))
    found.settings["also"] = [{"steps": [], "engine": "openvino"}]
    found.factor = lambda trial: 1.0 if trial.variant.recipe.steps else 1.5
    found.settings["reference"] = found.label("plain")
    table = found.ranking()
    [other] = [each for each in table.apart if each.label.startswith("starter |")] if table.apart else []
    assert [part.axes for part in other.parts] == [("training", "precision")]
    assert other.whole.value == pytest.approx(1.5, rel=0.03)


def test_winners_over_weight_and_price(usual, table):
    assert table.winner_by_weight[0].label == usual.label("gptq")
    assert table.winner_by_weight[-1].label == usual.label("wanda+gptq")
    assert table.winner_by_price[0].label == usual.label("wanda+gptq")
    assert table.winner_by_price[-1].label == usual.label("gptq")
    cheap, good = table.entry(usual.label("wanda+gptq")), table.entry(usual.label("gptq"))
    price = (good.cost.value - cheap.cost.value) / 3.6e6 / (good.quality - cheap.quality)
    assert table.winner_by_price[0].end == pytest.approx(price)


def test_the_least_form_warns_when_one_variant_decides():
    costs = {
        "plain": Truth(cost=1.0, right=0.95),
        "gptq": Truth(cost=0.5, right=0.6),
        "wanda": Truth(cost=0.2, right=0.0),
    }
    found = world(**costs, **{"wanda+gptq": Truth(cost=2.0, right=0.5)})
    table = found.ranking()
    assert table.least_form_turned_by == (found.label("wanda"),)
    assert any("least/own form" in each for each in table.caveats)


def test_quick_is_never_called_a_ranking(usual):
    found = replace(usual, settings={**usual.settings, "protocol": "quick"}, rows={})
    assert "not a ranking" in found.ranking().caveats[0]


def test_few_examples_and_cut_tickets_are_told():
    found = world()
    found.examples = 60
    records = found.records()
    for rows in found.rows.values():
        for place, row in enumerate(rows):
            row["truncated"] = place % 4 == 0
    caveats = found.ranking(records=records).caveats
    assert "root_cause: only 60 validation examples; small losses cannot be seen." in caveats
    assert any("longer than the model's context" in each for each in caveats)
    assert found.ranking(records=records).entry(found.label("gptq")).word == "cannot tell"


def test_unlike_sets_of_examples_are_compared_on_those_that_both_have(usual):
    records = usual.records()
    grade = next(r for r in records if r.job == "grade" and r.trial.label == usual.label("gptq"))
    rows = dict(usual.rows)
    shorter = replace(usual, rows={**rows, grade.predictions: rows[grade.predictions][100:]})
    table = shorter.ranking(records=records)
    assert table.entry(usual.label("gptq")).tasks["root_cause"].loss.examples == 500
    none = replace(
        usual, rows={**rows, grade.predictions: [{**row, "id": f"x{row['id']}"} for row in rows[grade.predictions]]}
    )
    entry = none.ranking(records=records).entry(usual.label("gptq"))
    assert entry.tasks["root_cause"].loss is None and entry.word == "cannot tell"


def test_phases_are_differences_within_a_round_on_the_ranked_scale(usual, table):
    def with_phases(record):
        stages = []
        for stage, joules, new in ((PREFILL, 20.0, 10), (PREFILL_AND_DECODE, 84.0, 330)):
            devices = {"package-0": energy(joules * (1 + 0.1 * record.round))}
            stages.append(Measurement(stage, 1.0, 1.0, devices, answers=10, tokens_in=1000, tokens_out=new))
        return replace(record, measurements=(*record.measurements, *stages))

    records = [with_phases(r) if r.job == "weigh" and not r.trial.is_baseline else r for r in usual.records()]
    found = usual.ranking(records=records).entry(usual.label("gptq")).phases
    rounds = usual.study.protocol.rounds
    drifts = sum(1 + 0.1 * number for number in range(rounds)) / rounds
    assert found.prefill.value == pytest.approx(20 / 1000 * drifts)
    assert found.decode.value == pytest.approx((84 - 20) / 320 * drifts)
    assert found.decode.low < found.decode.value < found.decode.high
    assert (found.prompt_tokens, found.new_tokens, found.decode.repeats) == (100, 32, rounds)
    assert table.entry(usual.label("gptq")).phases is None
