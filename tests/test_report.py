import csv
import json
import math
import re
from collections import Counter
from html import escape
from pathlib import Path

import pytest
from invented import Truth, World, world

from leanwatt.errors import StoreError
from leanwatt.measurement import Energy, Provenance
from leanwatt.ranking import Ratio
from leanwatt.report import report, sentence, text_table
from leanwatt.runs import command_of
from leanwatt.sections import sections
from leanwatt.sweet_spot import next_candidates
from leanwatt.verdict import WIDTH, number, percent, short_names, shortened

FILES = {"report.md", "report.html", "table.csv", "ranking.json"}


@pytest.fixture(scope="module")
def usual() -> World:
    found = world(wanda=Truth(status="failed"))
    found.settings["load"] = {"tickets_per_day": 500}
    return found


@pytest.fixture(scope="module")
def table(usual):
    return usual.ranking(confirmed=next_candidates(usual.ranking()))


@pytest.fixture(scope="module")
def written(table, tmp_path_factory) -> dict[str, str]:
    paths = report(table, tmp_path_factory.mktemp("report"), "leanwatt run a&b.yaml")
    assert set(paths) == FILES
    return {name: path.read_text(encoding="utf-8") for name, path in paths.items()}


def test_the_sentence_names_winner_saving_quality_and_proof(table):
    said = sentence(table)
    assert said.startswith("Use gptq(bits=4): it takes 50 % (")
    assert "of the energy per ticket of the reference, the best 16-bit model" in said
    assert "at most 0.02 below the reference (one-sided, 95 %), confirmed on the test split" in said


def test_the_sentence_compares_with_the_best_engine_at_the_same_batch():
    found = world()
    found.settings |= {"engine": ["transformers", "openvino"], "batch": [1, 8]}
    found.factor = lambda trial: (0.5 if trial.engine.name == "openvino" else 1.0) * (0.8 if trial.batch == 8 else 1.0)
    table = found.ranking()
    spot = table.sweet_spot
    assert spot.label.endswith("gptq(bits=4) | openvino | batch 8")
    assert spot.uncompressed.endswith("full(precision=fp32) | openvino | batch 8")
    assert spot.to_uncompressed.value == pytest.approx(0.5, rel=0.05)
    assert spot.to_reference.value == pytest.approx(0.2, rel=0.05)
    said = sentence(table)
    assert "of the best 16-bit model at the same batch (full(precision=fp32) | openvino | batch 8)" in said


def test_use_tfidf():
    found = world(tfidf=Truth(cost=0.001, right=0.95, kernel="classical"))
    said = sentence(found.ranking())
    assert re.match(r"Use tfidf: it takes 0\.(1|09\d+|10\d+) % \(", said)
    assert "The best language model here is gptq(bits=4)." in said
    alone = world(tfidf=Truth(cost=0.001, right=0.95, kernel="classical"), gptq=Truth(right=0.5, cost=0.5))
    assert "is full(precision=fp32) (the reference)." in sentence(alone.ranking())


def test_use_tfidf_for_one_task():
    found = world(tfidf=Truth(cost=0.01, right=0.95, only=("root_cause",)))
    assert "For root_cause alone, use tfidf" in sentence(found.ranking())


def test_nothing_here_saves():
    dear = world(**{"gptq": Truth(cost=1.5), "wanda": Truth(cost=1.5), "wanda+gptq": Truth(cost=1.5)})
    assert sentence(dear.ranking()).startswith("Nothing here saves: no variant is certainly cheaper")
    bad = world(gptq=Truth(cost=0.5, right=0.5))
    assert sentence(bad.ranking()).startswith("Nothing here saves: 2 are cheaper than the reference")


def test_cannot_tell_says_how_many_examples_would():
    found = world(gptq=Truth(cost=0.5, right=0.895))
    found.examples = 100
    said = sentence(found.ranking())
    assert re.search(r"For \d+ of them it cannot be told; about \d+0? validation examples would", said)


def test_not_confirmed_recommends_the_reference():
    found = world(gptq=Truth(cost=0.5, right_on_test=0.5))
    said = sentence(found.ranking(confirmed=next_candidates(found.ranking())))
    assert said.startswith("Not confirmed: 1 cheaper variant looked good enough")
    assert "Stay with the reference, full(precision=fp32)" in said


def test_without_a_reference_there_is_no_answer(usual):
    assert sentence(usual.ranking(records=[])).startswith("No answer: the reference")
    broken = world(plain=Truth(status="failed"))
    assert "no <b>room</b>" in sentence(broken.ranking())


def test_quick_cross_validated_and_ties_are_said():
    found = world(**{"wanda": Truth(cost=0.505), "gptq": Truth(cost=0.5), "wanda+gptq": Truth(cost=0.8)})
    found.settings["protocol"] = "quick"
    found.folds, found.noise = 2, 0.03
    table = found.ranking()
    said = sentence(found.ranking(confirmed=next_candidates(table)))
    assert said.startswith("A first look (quick protocol), not a ranking.")
    assert "cross-validated" in said and "Not distinguishable from it in cost" in said


def test_an_uncompressed_winner_owes_it_to_its_engine():
    found = world()
    found.provenance = Provenance.ABSENT
    found.settings |= {"steps": [], "engine": ["transformers", "openvino"]}
    found.factor = lambda trial: 0.3 if trial.engine.name == "openvino" else 1.0
    said = sentence(found.ranking())
    assert said.startswith("Use starter | openvino") and "it is not compressed" in said and "CPU time" in said


def test_the_terminal_table_fits(usual, table):
    lines = text_table(table).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert sum(line.startswith("*") for line in lines) == 1
    assert len(lines) == 2 + len(table.entries)
    assert "failed" in text_table(table) and "only root_cause" in text_table(table)
    wide = world()
    wide.settings |= {"engine": ["transformers", "openvino"], "batch": [1, 16]}
    assert max(map(len, text_table(wide.ranking()).splitlines())) <= WIDTH


def test_all_formats_carry_the_answer(table, written):
    assert sentence(table) in written["report.md"]
    assert "- **2 times less** energy per ticket than the reference: 50 % (" in written["report.md"]
    assert json.loads(written["ranking.json"])["sweet_spot"]["label"] == table.sweet_spot.label
    assert "Use gptq(bits=4)" in written["report.html"]
    rows = list(csv.DictReader(written["table.csv"].splitlines()))
    assert [row["variant"] for row in rows] == [entry.label for entry in table.entries]
    winner = next(row for row in rows if row["variant"] == table.sweet_spot.label)
    assert float(winner["joules_per_ticket"]) == table.entry(table.sweet_spot.label).cost.value
    assert winner["quality_verdict"] == "non-inferior"
    failed = next(row for row in rows if row["status"] == "failed")
    assert failed["joules_per_ticket"] == ""


@pytest.mark.parametrize(
    "title",
    ["The answer", "Before you rely on it", "All variants", "Quality", "Cost against quality", "What a ticket takes",
     "A day at your load", "What making it took", "What each stage took", "Where the study's energy went",
     "If energy mattered more, or less", "What a wrong answer is worth",
     "The saving taken apart", "From the reference to each variant",
     "F1 by class: root_cause", "If it may abstain: root_cause", "On the test split",
     "What really ran", "What was measured, what estimated", "Machine", "Do it again"],
)  # fmt: skip
def test_every_part_is_there(written, title):
    assert f"## {title}\n" in written["report.md"]
    assert f"<h2>{escape(title)}</h2>" in written["report.html"]


def checked(share: float | None, prefill: float, decode: float, **facts) -> Truth:
    """A variant whose engine was compared with the reference engine."""
    shares = {} if share is None else {"option_agreement": share, "option_examples": 400}
    return Truth(cost=0.5, facts={"logit_error_prefill": prefill, "logit_error_decode": decode, **shares, **facts})


def test_how_near_each_engine_is_stands_in_a_table_and_in_words(tmp_path):
    coded = {"kernel": "int4 weights, bfloat16", "codes_bits": 4}
    found = world(
        plain=checked(0.9975, 0.002, 0.004),
        gptq=checked(0.9625, 0.08, 0.05, **coded, requantized=True),
        wanda=checked(0.985, 0.003, 0.001, sparsity=0.5),
        **{"wanda+gptq": checked(0.9999, 0.02, 0.03, **coded)},
    )
    ranking = found.ranking()
    [part] = [each for each in sections(ranking, "") if each.title.startswith("How near the engines")]
    names = short_names(ranking)
    rows = {row[0]: row[1:] for row in part.grid.rows}
    assert len(rows) == 4, "a baseline has no engine that could drift"
    again = "int4 weights, bfloat16, quantized again by the engine"
    assert rows[names[found.label("gptq")]] == (again, "0.08", "0.05", "96.2 %", "400", "drifts")
    assert rows[names[found.label("plain")]] == ("dense float32", "0.002", "0.004", "99.8 %", "400", "agrees")
    assert rows[names[found.label("wanda")]][3:] == ("98.5 %", "400", "as near as 16 bits must be")
    assert rows[names[found.label("wanda+gptq")]][3:] == ("99.9 %", "400", "agrees"), "not all, so never 100 %"
    assert part.text[1:] == (
        "At 16 bits and more (2 variants): the same option on 98.5 % or more, logits off by 0.004 or less.",
        "At fewer bits (2 variants): the same option on 96.2 % or more, logits off by 0.08 or less.",
    )
    files = report(ranking, tmp_path)
    for name in ("report.md", "report.html"):
        text = files[name].read_text(encoding="utf-8").replace("\u00a0", " ")
        assert part.text[2] in text and "drifts" in text, name


def test_where_no_task_scores_options_the_logits_alone_are_told():
    found = world(gptq=checked(None, 0.01, 0.02))
    [part] = [each for each in sections(found.ranking(), "") if each.title.startswith("How near the engines")]
    assert [row[4:] for row in part.grid.rows] == [("-", "-", "logits agree; no task scores options")]
    assert part.text[1:] == ("At 16 bits and more (1 variant): logits off by 0.02 or less.",)
    assert not [each for each in sections(world().ranking(), "") if each.title.startswith("How near the engines")]


def test_no_ticket_text_and_no_traceback_anywhere(written):
    for name, text in written.items():
        assert "SECRET TICKET" not in text, name
        assert "secret ticket" not in text, name


def test_the_page_stands_alone_and_escapes_everything(written):
    text = written["report.html"]
    assert len(text.encode()) < 5_000_000
    assert "<b>room</b>" not in text and "&lt;b&gt;room&lt;/b&gt;" in text
    assert "Test CPU &lt;1&gt;" in text and "leanwatt run a&amp;b.yaml" in text
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", text.split("/**")[0])
    plots = re.search(r'id="plots">(.*?)</script>', text, re.DOTALL).group(1)
    assert "<" not in plots
    assert len(json.loads(plots)) == text.count('class="plot"') == 6


def test_plots_hold_what_the_table_says(table, written):
    plots = json.loads(re.search(r'id="plots">(.*?)</script>', written["report.html"], re.DOTALL).group(1))
    spot = table.entry(table.sweet_spot.label).tasks["root_cause"]
    star = next(each for each in plots["plot-0"]["data"] if each.get("marker", {}).get("symbol") == "star")
    assert (star["x"][0], star["y"][0]) == (spot.spending.joules.value, spot.quality.value)
    lines = plots["plot-2"]["data"]
    assert any(each["type"] == "bar" for each in lines)


def column(table, title, name):
    """Of one of the report's tables, by what stands in its first column."""
    [grid] = [part.grid for part in sections(table, "") if part.title == title]
    return {row[0]: row[grid.head.index(name)] for row in grid.rows}


def test_what_each_stage_took_adds_up_to_what_making_took():
    table = world(gptq=Truth(cost=0.5, making=300)).ranking()
    gptq = {name: column(table, "What each stage took", name)["gptq(bits=4)"] for name in STAGES}
    assert list(gptq.values()) == ["500", "50", "3000", "300", "3500", "350", "measured"]
    assert column(table, "What making it took", "joules")["gptq(bits=4)"] == "3500 (measured)"
    assert column(table, "What making it took", "CPU-seconds")["gptq(bits=4)"] == "350"
    for entry in table.entries:
        for unit in ("joules", "cpu_seconds") if entry.making else ():
            parts = math.fsum(took[unit] for took in entry.making.stages.values())
            assert parts == pytest.approx(getattr(entry.making, unit)), f"{unit} of {entry.label}"


STAGES = ("finetune, J", "finetune, CPU-s", "quantize, J", "quantize, CPU-s", "all, J", "all, CPU-s", "joules are")


def test_what_no_sensor_saw_is_unknown_in_the_stages_and_not_nothing():
    def seen(name, number, joules):
        energy = Energy(joules, joules, joules, Provenance.MEASURED, source="rapl", scope="package")
        return {} if name == "quantize" else {"package-0": energy}

    found = world()
    found.device = seen
    table = found.ranking()
    took = [column(table, "What each stage took", name)["gptq(bits=4)"] for name in STAGES]
    assert took == ["500", "50", "unknown", "100", "500", "150", "measured"]
    assert table.entry(found.label("gptq")).making.unknown_seconds == 100
    found.device, found.provenance = None, Provenance.ABSENT
    took = [column(found.ranking(), "What each stage took", name)["gptq(bits=4)"] for name in STAGES]
    assert took == ["unknown", "50", "unknown", "100", "unknown", "150", "unknown"]


def test_where_the_studys_energy_went_adds_up_to_its_totals(table):
    went = {name: column(table, "Where the study's energy went", name) for name in ("CPU-seconds", "joules")}
    assert list(went["joules"]) == ["finetune", "quantize", "load", "weigh/root_cause", "weigh/response"]
    assert (went["joules"]["finetune"], went["joules"]["quantize"]) == ("500", "4000"), "shared once, failed ones too"
    for name, unit in (("CPU-seconds", "cpu_seconds"), ("joules", "joules")):
        told = math.fsum(map(float, went[name].values()))
        assert told == pytest.approx(getattr(table.totals, unit), rel=0.01), name


def test_markdown_cells_cannot_break_the_table(written):
    rows = [line for line in written["report.md"].splitlines() if line.startswith("| ")]
    assert all(line.endswith(" |") for line in rows)
    assert "&lt;b>room&lt;/b>" in written["report.md"]


def test_an_empty_study_still_has_a_report(usual, tmp_path):
    paths = report(usual.ranking(records=[]), tmp_path / "new")
    assert "No answer" in paths["report.md"].read_text()
    assert "Do it again" not in paths["report.md"].read_text(), "nobody said what repeats it"


def test_the_command_that_repeats_a_study_is_the_one_that_was_typed(usual):
    assert command_of("examples/tickets/study.yaml", None) == "leanwatt run examples/tickets/study.yaml"
    assert command_of(Path("my study.yaml"), Path("/runs/x y")) == "leanwatt run 'my study.yaml' --out '/runs/x y'"
    assert command_of(usual.study, "runs/x") == "", "no file, so no command"


def test_estimates_are_called_estimates(tmp_path):
    found = world()
    found.provenance = Provenance.ESTIMATED
    text = report(found.ranking(), tmp_path)["report.md"].read_text()
    assert "Ranked by CPU-seconds. Joules beside them come from an estimate" in text
    found.provenance = Provenance.ABSENT
    assert "No joules are known." in report(found.ranking(), tmp_path)["report.md"].read_text()


def test_a_folder_that_cannot_be_written_is_named(table, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        report(table, Path(blocked) / "inside")


def test_words_and_numbers():
    assert [number(each) for each in (0, 0.5, 1234.5, 1e-7, 3e9)] == ["0", "0.5", "1234", "1.00e-07", "3.00e+09"]
    assert percent(Ratio(0.5, None, None, 1, None, 0.02)) == "50 % (one round, so no interval)"
    assert percent(Ratio(0.005, 0.004, 0.006, 5, 0.0, 0.02)) == "0.5 % (0.4 to 0.6 %)"
    assert shortened("abcdefghij", 6) == "ab..ij" and shortened("abc", 6) == "abc"


def test_short_names_leave_out_settings_that_never_change():
    settings = {"rank": 64, "learning_rate": 0.001}
    arms = [{"lora": {"precision": precision, **settings}} for precision in ("fp32", "nf4")]
    here = world()
    here.settings["steps"] = [{"finetune": arms}, {"quantize": ["none", {"gptq": {"bits": 4}}]}]
    names = set(short_names(here.ranking(records=[])).values())
    assert names == {
        "lora(precision=fp32)",
        "lora(precision=nf4)",
        "lora(precision=fp32) > gptq(bits=4)",
        "lora(precision=nf4) > gptq(bits=4)",
        "tfidf",
    }


def test_short_names_stay_apart(usual, table):
    names = short_names(table)
    assert names[usual.label("plain")] == "full(precision=fp32)"
    assert names[usual.label("gptq")] == "gptq(bits=4)"
    assert len(set(names.values())) == len(names)


def test_a_baseline_that_only_the_test_split_vindicates_opens_the_headline():
    found = world(tfidf=Truth(cost=0.001, right=0.86, right_on_test=0.99, kernel="classical"), gptq=Truth(cost=0.5))
    before = found.ranking()
    assert before.entry("tfidf").word != "non-inferior"
    after = found.ranking([*before.order_of_candidates, before.reference, "tfidf"])
    said = sentence(after)
    assert said.startswith("Use tfidf: on the test split it is non-inferior to the reference (macro_f1 0.9")
    assert "Among the language models: use gptq(bits=4)" in said
    assert "Use tfidf" not in sentence(before), "nothing is claimed before the test split was met"


@pytest.fixture(scope="module")
def weak_on_cards() -> World:
    """Recommended, since its margin is wide, though it loses on one class."""
    found = world(gptq=Truth(cost=0.5, right=0.9, weak={"card": 0.6}))
    found.settings["margin"] = 0.2
    return found


def confusions(found, name):
    """Pairs of what is right and what was said, counted in the graded rows."""
    [trial] = [each for each in found.trials() if found.name(each) == name]
    rows = [row for row in found.rows[f"grade {trial.id}"] if row["task"] == "root_cause"]
    return Counter((row["target"], row["chosen"]) for row in rows)


def test_the_class_that_loses_most_is_named_with_what_it_loses(weak_on_cards):
    table = weak_on_cards.ranking()
    assert table.sweet_spot.label == weak_on_cards.label("gptq")
    f1 = {}
    for name in ("gptq", "plain"):
        pairs = confusions(weak_on_cards, name)
        chosen = sum(count for (_, said), count in pairs.items() if said == "card")
        f1[name] = 2 * pairs["card", "card"] / (chosen + 150)
    lost = f1["gptq"] - f1["plain"]
    assert lost < -0.1
    [part] = [part for part in sections(table, "") if part.title == "F1 by class: root_cause"]
    assert part.text[0].startswith(
        f"Where gptq(bits=4) loses most against the reference: card ({lost:+.2f}), fibre (-0."
    )
    assert column(table, part.title, "gptq(bits=4)")["card"] == f"{f1['gptq']:.2f}"


def test_errors_are_counted_by_class_and_the_most_frequent_confusion_is_named(weak_on_cards, tmp_path):
    table = weak_on_cards.ranking()
    title = "Errors by class: root_cause"
    for name, label in (("gptq", "gptq(bits=4)"), ("plain", "full(precision=fp32)")):
        pairs = confusions(weak_on_cards, name)
        for cause, after in (("card", "fibre"), ("link", "card")):
            wrong = 150 - pairs[cause, cause]
            assert column(table, title, f"errors: {label}")[cause] == str(wrong)
            assert column(table, title, f"most often: {label}")[cause] == f"{cause} -> {after} ({wrong})"
    errors = {label: int(column(table, title, f"errors: {label}")["card"]) for label in ("gptq(bits=4)", REFERENCE)}
    assert errors == {"gptq(bits=4)": 51, REFERENCE: 22}, "of 150 each: it loses on cards"
    page = report(table, tmp_path)["report.html"].read_text(encoding="utf-8")
    [section] = re.findall(r'<section id="errors-by-class-root-cause">.*?</section>', page, re.DOTALL)
    assert section.count("<button type='button'>") == 6, "every column sorts"
    assert section.count("<th scope='col' class='figure'>") == 3, "examples and errors, as numbers"


REFERENCE = "full(precision=fp32)"


def test_errors_of_the_reference_stand_alone_where_it_is_recommended():
    table = world(gptq=Truth(cost=3.0)).ranking()
    [part] = [part for part in sections(table, "") if part.title == "Errors by class: root_cause"]
    assert part.grid.head == ("class", "examples", f"errors: {REFERENCE}", f"most often: {REFERENCE}")


def test_tables_can_be_sorted(written):
    assert written["report.html"].count("<button type='button'>") > 20
