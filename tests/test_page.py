"""The report as a page in a real Chromium: light and dark, desk and phone, mouse and keyboard, screen and paper."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from invented import Truth, world

from leanwatt.beside import write_page
from leanwatt.bill import Terms
from leanwatt.charts import front, prices, risks, stages, weights
from leanwatt.gist import badges, gist, lead, times_less
from leanwatt.marks import free_places, ticks, with_prefix
from leanwatt.measurement import Provenance
from leanwatt.origin import origins
from leanwatt.page import page as written
from leanwatt.page import whole
from leanwatt.ranking import Ranking, Ratio
from leanwatt.report import report
from leanwatt.section import Grid, Section
from leanwatt.sections import sections
from leanwatt.sweet_spot import next_candidates
from leanwatt.verdict import round_up, sentence


def ranked(**settings: Any) -> Ranking:
    found = world(tfidf=Truth(cost=0.001, kernel="classical", right=0.5))
    found.settings |= settings
    return found.ranking(confirmed=next_candidates(found.ranking()))


@pytest.fixture(scope="module")
def table() -> Ranking:
    return ranked(load={"tickets_per_day": 500}, bill={"price_per_kwh": 0.25, "currency": "EUR"})


@pytest.fixture(scope="module")
def file(table: Ranking, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(written(table, sections(table, "leanwatt run invented.yaml")), encoding="utf-8")
    return path.as_uri()


def facts_of(table: Ranking) -> Mapping[str, str]:
    return {fact.about: fact.value for fact in gist(table)}


def test_the_first_screen_says_what_is_saved_what_is_kept_and_when_it_pays(table: Ranking) -> None:
    facts = facts_of(table)
    assert facts["energy per ticket than the reference"] == "2 times less"
    assert facts["by more than 0.02 on any task (95 %)"] == "No worse"
    assert facts["per ticket, recommended"].endswith(" J")
    assert badges(table)[0] == ("Confirmed on unseen tickets", True)


def test_without_a_sensor_the_first_screen_says_so() -> None:
    found = world()
    found.provenance = Provenance.ABSENT
    table = found.ranking()
    assert "CPU time per ticket than the reference" in facts_of(table)
    assert facts_of(table)["per ticket, recommended"] == "Joules unknown"
    assert ("No energy sensor: CPU time ranks", False) in badges(table)
    assert ("No answer", False) in badges(found.ranking(records=[])) and gist(found.ranking(records=[])) == ()


def test_where_nothing_is_certain_the_closest_is_named() -> None:
    found = world(gptq=Truth(cost=0.8))
    found.noise = 0.6
    table = found.ranking()
    assert table.sweet_spot is not None and table.sweet_spot.verdict == "nothing saves"
    assert any(about.startswith("of the reference's energy, perhaps") for about in facts_of(table))


REFERENCE = "per ticket than the reference, full(precision=fp32)"
KEPT = "quality no worse by more than 0.02 (95 %)"


def test_the_first_sentence_says_what_saves_how_that_is_known_and_when_it_pays() -> None:
    found = world(gptq=Truth(cost=0.5, making=300))
    table = found.ranking(confirmed=next_candidates(found.ranking()))
    tickets = table.entry(found.label("gptq")).payback_tickets
    assert tickets is not None and 1000 < tickets < 3000
    assert lead(table) == (
        f"gptq(bits=4): 2 times less energy {REFERENCE}, measured by hardware counters; {KEPT}, confirmed on unseen "
        f"tickets; pays for itself after {round_up(math.ceil(tickets)):,} tickets."
    )
    [answer, *_] = sections(table, "")
    assert answer.text[:2] == (lead(table), sentence(table)), "before the exact one"


def test_the_first_sentence_never_calls_cpu_time_energy() -> None:
    found = world()
    found.settings["protocol"] = "quick"
    found.provenance = Provenance.ESTIMATED
    assert lead(found.ranking()) == (
        f"A first look: gptq(bits=4): 2 times less CPU time {REFERENCE}, with no energy sensor to rank by; {KEPT}, not "
        "yet confirmed."
    )


def test_the_first_sentence_says_of_little_what_is_left() -> None:
    assert "gptq(bits=4): 93 % (92 to 94 %) of the energy per ticket of the reference" in lead(
        world(gptq=Truth(cost=0.93)).ranking()
    )


def test_the_first_sentence_stays_with_the_reference_where_nothing_saves() -> None:
    stay = "Stay with the reference, full(precision=fp32): "
    nothing = world(gptq=Truth(cost=0.5, right=0.5)).ranking()
    assert lead(nothing) == f"{stay}nothing here is shown to save energy without losing quality."
    found = world(gptq=Truth(cost=0.5, right_on_test=0.5))
    refuted = found.ranking(confirmed=next_candidates(found.ranking()))
    assert lead(refuted) == f"{stay}what looked cheaper and as good did not hold on unseen tickets."
    unanswered = found.ranking(records=[])
    assert lead(unanswered) == "" and sections(unanswered, "")[0].text[0].startswith("No answer")


@pytest.mark.parametrize(
    ("right", "on_test"), [(0.95, 0.95), (0.86, 0.99)], ids=["on validation too", "on the test split alone"]
)
def test_the_first_sentence_names_a_baseline_that_wins(right: float, on_test: float) -> None:
    found = world(tfidf=Truth(cost=0.001, right=right, right_on_test=on_test, kernel="classical"))
    before = found.ranking()
    said = lead(found.ranking(confirmed=[*before.order_of_candidates, before.reference, "tfidf"]))
    assert said.startswith(f"tfidf, which is no language model: 1,000 times less energy {REFERENCE}, ")
    assert said.endswith(f"{KEPT}, confirmed on unseen tickets.")


def test_times_less_is_said_only_of_less() -> None:
    assert times_less(Ratio(0.164, None, None, 3, None, 0.02)) == "6.1 times less"
    assert times_less(Ratio(0.00001, None, None, 3, None, 0.02)) == "100,000 times less"
    assert times_less(Ratio(0.01, None, None, 3, None, 0.02)) == "100 times less"
    assert times_less(Ratio(0.95, 0.9, 1.0, 3, None, 0.02)) == "95 % (90 to 100 %)"


def test_every_kind_of_figure_has_an_origin(table: Ranking) -> None:
    grid = origins(table).grid
    assert grid is not None
    lines = {row[0]: row[1:] for row in grid.rows}
    assert lines["joules"][0] == "measured (hardware counter)" and "; ranked" in lines["joules"][1]
    assert lines["CPU-seconds"][1].endswith("not ranked")
    assert lines["root_cause: macro_f1"][1].startswith("600 validation examples")
    assert "0.25 EUR per kWh" in lines["kWh, money, CO2e"][1] and "test split" in lines
    found = world()
    found.provenance = Provenance.ABSENT
    blind = origins(found.ranking()).grid
    assert blind is not None and {row[0]: row[1] for row in blind.rows}["joules"] == "unknown"


@pytest.mark.parametrize(
    ("load", "around"), [({"tickets_per_day": 500}, "one reload a day"),
                         ({"tickets_per_day": 500, "always_on": True}, "idle in between")],
)  # fmt: skip
def test_a_day_is_answering_and_what_lies_around_it(load: dict[str, Any], around: str) -> None:
    [day] = [part for part in sections(ranked(load=load), "") if part.title == "A day at your load"]
    assert day.grid is not None and day.grid.head[3] == around
    whole_day, answering, rest = (float(cell) for cell in day.grid.rows[-1][1:4])
    assert whole_day == pytest.approx(answering + rest, rel=0.02) and rest > 0


def test_a_price_of_mistakes_is_also_told_in_money(table: Ranking) -> None:
    [part] = [part for part in sections(table, "") if part.title == "What a wrong answer is worth"]
    assert part.grid is not None and part.grid.head[-1] == "from, EUR"
    assert isinstance(table.terms, Terms) and table.terms.price_per_kwh == 0.25
    assert float(part.grid.rows[-1][-1]) == pytest.approx(float(part.grid.rows[-1][0]) * 0.25, rel=0.01)


def test_charts_say_in_words_what_they_show(table: Ranking) -> None:
    for plot in (*front(table).values(), *weights(table).values(), *prices(table).values(), *stages(table).values()):
        assert len(plot["about"]) > 40
    assert "gptq(bits=4)" in front(table)["root_cause"]["about"]
    bands = weights(table)[""]["strip"]
    assert bands[0]["from"] == 0 and bands[-1]["to"] == 1
    assert [band["name"] for band in bands] == list(dict.fromkeys(band["name"] for band in bands))
    assert risks(table, "response") == {}, "nothing is known of confidences there"
    assert risks(table, "root_cause")[""]["data"]


def test_numbers_beside_points_stay_apart() -> None:
    crowd = [(1.0, 0.8), (1.02, 0.8), (1.04, 0.8), (100.0, 0.1)]
    found = free_places(crowd)
    assert len(set(found[:3])) == 3, "neighbours go to different sides"
    assert free_places([(1.0, 0.5)]) == ["top right"]


def test_an_axis_is_marked_in_plain_units() -> None:
    assert [with_prefix(each, "J") for each in (0.0123, 4000.0, 1e-6, 2e-10)] == ["12.3 mJ", "4 kJ", "1 µJ", "0.2 nJ"]
    wide, narrow = ticks([1e-6, 1.0], "s"), ticks([0.001, 0.01], "s")
    assert "1 ms" in wide["ticktext"] and "2 ms" not in wide["ticktext"]
    assert "2 ms" in narrow["ticktext"]


def test_a_page_of_several_chapters_has_links_that_stay_apart(table: Ranking) -> None:
    lead = Section("Side by side", ("Each by itself.",), Grid(("study",), (("one",),)))
    text = whole("Two", [(None, [lead]), (table, sections(table, "")), (table, sections(table, ""))])
    assert 'id="side-by-side"' in text and 'id="the-answer-1"' in text and 'id="the-answer-2"' in text
    assert text.count('class="opening"') == 2


LIMIT_BYTES = 5_000_000
"""What a mail server takes without a word."""


def test_sixty_variants_and_two_studies_side_by_side_stay_below_five_megabytes(tmp_path: Path) -> None:
    found = world()
    found.settings |= {"engine": ["transformers", "openvino"], "batch": [1, 2, 4, 8, 16, 32, 64, 128]}
    found.examples = 200
    table = found.ranking()
    assert len(table.entries) >= 60
    paths = report(table, tmp_path, "leanwatt run invented.yaml")
    assert paths["report.html"].stat().st_size < LIMIT_BYTES
    both = write_page([tmp_path] * 3, [table] * 3, tmp_path / "all.html")
    assert both.stat().st_size < LIMIT_BYTES


def opened(page: Any, file: str) -> None:
    """With all its plots drawn, which takes the page a moment: it unpacks the library first."""
    page.goto(file)
    page.wait_for_function("[...document.querySelectorAll('.plot')].every(each => each.querySelector('.main-svg'))")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1400])
def test_it_opens_from_disk_and_fits(page: Any, file: str, width: int, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    opened(page, file)
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing sticks out"
    drawn = page.locator(".plot:has(.main-svg):has(.trace, .shapelayer path)").count()
    assert drawn == page.locator(".plot").count() == 6, "every plot is drawn, with something in it"
    assert page.locator("#undrawn").is_hidden()
    assert [each for each in asked if not each.startswith(("file:", "data:", "blob:"))] == [], "no network"
    assert page.locator("nav details[open]").count() == (width > 1280)
    ink, paper = page.evaluate("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
    dark = sum(map(int, paper.removeprefix("rgb(").removesuffix(")").split(","))) < 3 * 128
    assert dark == (scheme == "dark") and ink != paper


@pytest.mark.parametrize("without", ["DecompressionStream", "scripts"])
def test_where_plots_cannot_be_drawn_the_page_says_where_the_figures_are(browser: Any, file: str, without: str) -> None:
    context = browser.new_context(java_script_enabled=without != "scripts")
    context.add_init_script("delete globalThis.DecompressionStream")
    page = context.new_page()
    page.goto(file)
    page.wait_for_selector("#undrawn", state="visible", timeout=20_000)
    assert "The tables hold their figures" in page.locator("#undrawn").text_content()
    assert page.locator(".plot .main-svg").count() == 0
    assert page.locator("#all-variants tbody tr").count() > 4
    context.close()


def test_a_page_of_several_studies_draws_all_its_plots(page: Any, table: Ranking, tmp_path: Path) -> None:
    opened(page, write_page([tmp_path] * 2, [table] * 2, tmp_path / "both.html").as_uri())
    assert page.locator(".plot:has(.main-svg):has(.trace)").count() == page.locator(".plot").count() == 4


def test_the_winners_are_named_along_the_axis(page: Any, file: str, table: Ranking) -> None:
    page.set_viewport_size({"width": 1400, "height": 800})
    opened(page, file)
    plot = page.locator("#if-energy-mattered-more-or-less .plot")
    assert "gptq" in " ".join(plot.locator(".annotation-text").all_text_contents())


def test_the_keyboard_reaches_links_tables_and_sorting(page: Any, file: str) -> None:
    opened(page, file)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "report"
    head = page.locator("#all-variants thead button").nth(2)
    head.focus()
    page.keyboard.press("Enter")
    assert page.locator("#all-variants th[aria-sort=ascending]").count() == 1
    rising = page.locator("#all-variants tbody th").all_text_contents()
    page.keyboard.press("Enter")
    falling = page.locator("#all-variants tbody th").all_text_contents()
    known = page.locator("#all-variants tbody tr:has(td:nth-child(3) small)").count()
    assert falling[:known] == rising[:known][::-1] and falling[known:] == rising[known:], "what is unknown comes last"
    nameless = "[...document.querySelectorAll('[tabindex=\"0\"][role], [role=img]')].filter(e => !e.ariaLabel).length"
    assert page.evaluate(nameless) == 0, "a region or plot without a name"


def test_a_plot_can_leave_out_the_baselines(page: Any, file: str) -> None:
    opened(page, file)
    wide = "document.getElementById('plot-0').layout.xaxis.range.slice()"
    before = page.evaluate(wide)
    page.locator(".zoom").first.click()
    after = page.evaluate(wide)
    assert after[1] - after[0] < before[1] - before[0]
    assert page.locator(".zoom").first.get_attribute("aria-pressed") == "true"
    page.locator(".zoom").first.click()
    assert page.evaluate(wide) == pytest.approx(before)


def test_it_prints_in_ink_on_paper(page: Any, file: str, tmp_path: Path) -> None:
    page.emulate_media(color_scheme="dark")
    opened(page, file)
    printed = page.pdf(format="A4")
    assert printed.startswith(b"%PDF") and printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page ") < 20
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.getElementById('plot-0').layout.font.color") == "#000"
    assert page.evaluate("document.getElementById('plot-0').layout.width") <= 700
