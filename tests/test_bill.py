"""Bills: joules as kWh, money and carbon, with the same bounds and provenance, and nothing guessed."""

import csv
import json
import math
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from invented import World, world

from leanwatt import bill
from leanwatt.bill import Amount, Terms, look_up, table
from leanwatt.errors import StudyError
from leanwatt.measurement import Energy, Provenance, total
from leanwatt.report import report
from leanwatt.study import Study

KWH = Energy(3.6e6, 3.0e6, 4.5e6, Provenance.MEASURED, "rapl", "package")
FULL = {"country": "FR", "year": 2024, "pue": 1.2, "price_per_kwh": 0.25, "currency": "eur"}


def terms(**data: Any) -> Terms:
    found = Terms.parse(data)
    assert found is not None
    return found


def test_a_bill_carries_bounds_and_provenance_along() -> None:
    found = terms(**FULL).bill(KWH, answers=10)
    assert found.kwh == Amount(*map(pytest.approx, (12.0, 10.0, 15.0)))
    assert found.money == Amount(*map(pytest.approx, (3.0, 2.5, 3.75)))
    assert found.grams == Amount(pytest.approx(12 * 44.18), pytest.approx(441.8), pytest.approx(15 * 44.18))
    assert found.provenance == "measured"


@pytest.mark.parametrize(("scope", "kwh"), [("package+dram", 1.5), ("node", 1.5), ("site", 1.0)])
def test_pue_multiplies_only_what_is_not_already_the_whole_site(scope: str, kwh: float) -> None:
    energy = Energy(3.6e6, None, None, Provenance.MEASURED, "plug", scope)
    assert terms(pue=1.5).bill(energy).kwh == Amount(pytest.approx(kwh), None, None)


def test_without_pue_none_is_applied_and_the_terms_say_so() -> None:
    found = terms(price_per_kwh=0.5, currency="EUR")
    assert found.bill(KWH).kwh == Amount(*map(pytest.approx, (1.0, 3.0 / 3.6, 1.25)))
    assert found.words() == "0.5 EUR per kWh; PUE not applied"
    assert "44.18 g of CO2 equivalent per kWh generated in France in 2024" in terms(**FULL).words()
    assert terms(**FULL).words().endswith("PUE 1.2")


def test_an_unknown_energy_has_no_bill() -> None:
    unknown = terms(**FULL).bill(total({"gpu-0": Energy(None)}))
    assert unknown.kwh is None and unknown.money is None and unknown.grams is None
    assert unknown.provenance == "absent"


def test_row_34_carbon_needs_a_country_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing: no carbon. ZZZ or a region: an error. Lower case: accepted. Never a silent world average."""

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert terms(pue=1.2).bill(KWH).grams is None
    for strange in ("ZZZ", "", "FR-75", "nowhere", "World", "EU", None, 33, ["FR"]):
        with pytest.raises(StudyError, match="ISO 3166"):
            terms(country=strange, year=2024)
    with pytest.raises(StudyError, match="No 'region' in the keys of bill"):
        terms(country="US", year=2024, region="nowhere")
    for accepted in ("fr", "FR", "fra", "Fra"):
        assert terms(country=accepted, year=2024).intensity == look_up("FRA", 2024)


def test_row_34_a_country_without_a_year_is_refused_and_the_other_way_round() -> None:
    with pytest.raises(StudyError, match="has country and lacks year"):
        terms(country="FR")
    with pytest.raises(StudyError, match="has year and lacks country"):
        terms(year=2024)


@pytest.mark.parametrize("year", [2019, 2030, "2024", True, None, math.nan])
def test_a_year_that_the_table_lacks_is_refused_with_those_that_it_has(year: object) -> None:
    with pytest.raises(StudyError, match=r"for France the table has 2023, 2024\. Name one of them"):
        terms(country="FR", year=year)


@pytest.mark.parametrize("pue", [-1, 0.5, math.nan, 10, math.inf, "1.2", True, None])
def test_row_35_a_pue_that_makes_no_sense_is_refused(pue: object) -> None:
    with pytest.raises(StudyError, match=r"bill\.pue: got .*; a number from 1 to 3 is needed"):
        terms(pue=pue)


@pytest.mark.parametrize("grams", ["-5", "0", "2001", "nan", "inf"])
def test_row_35_an_intensity_that_makes_no_sense_is_refused(grams: str) -> None:
    row = {"alpha3": "FRA", "country": "France", "year": "2024", "grams_per_kwh": grams, "source": "x"}
    with pytest.raises(ValueError, match="impossible"):
        bill._intensity(row)


@pytest.mark.parametrize("price", [-0.1, math.nan, math.inf, "cheap", True])
def test_a_price_that_makes_no_sense_is_refused(price: object) -> None:
    with pytest.raises(StudyError, match=r"bill\.price_per_kwh"):
        terms(price_per_kwh=price, currency="EUR")


@pytest.mark.parametrize("currency", ["euro", "E1R", "", 978, None])
def test_a_currency_is_three_letters(currency: object) -> None:
    with pytest.raises(StudyError, match="ISO 4217"):
        terms(price_per_kwh=0.25, currency=currency)


def test_what_is_half_said_or_no_mapping_is_refused() -> None:
    with pytest.raises(StudyError, match="has price_per_kwh and lacks currency"):
        terms(price_per_kwh=0.25)
    with pytest.raises(StudyError, match="bill: got 'FR'; a mapping with country"):
        Terms.parse("FR")
    assert Terms.parse({}) is None


def test_every_line_of_the_table_is_possible_and_stands_once() -> None:
    lines = table()
    assert len(lines) > 300
    keys = [(found.country, found.year) for _, found in lines]
    assert len(set(keys)) == len(keys)
    for (alpha3, alpha2), found in lines:
        assert (len(alpha3), len(alpha2)) == (3, 2)
        assert alpha3 == found.country
        assert 2021 <= found.year <= 2024
        assert found.source in ("codecarbon 3.3.2", "carbontracker 2.4.7")
    owners = {alpha2: alpha3 for (alpha3, alpha2), _ in lines}
    assert all(owners[alpha2] == alpha3 for (alpha3, alpha2), _ in lines)


@given(
    joules=st.floats(1e-6, 1e12),
    spread=st.floats(0, 1),
    pue=st.floats(1, 3),
    price=st.floats(0, 100),
    answers=st.floats(1e-3, 1e6),
)
def test_a_bill_is_linear_and_keeps_its_order(
    joules: float, spread: float, pue: float, price: float, answers: float
) -> None:
    energy = Energy(joules, joules * (1 - spread), joules * (1 + spread), Provenance.MEASURED, "rapl", "package")
    found = terms(pue=pue, price_per_kwh=price, currency="EUR").bill(energy, answers)
    assert found.kwh is not None and found.money is not None
    assert found.kwh.lower is not None and found.kwh.upper is not None
    assert found.kwh.lower <= found.kwh.value <= found.kwh.upper
    assert found.kwh.value == pytest.approx(joules * answers * pue / 3.6e6)
    assert found.money.value == pytest.approx(found.kwh.value * price)


def test_a_study_takes_its_terms_and_its_trials_stay_the_same() -> None:
    small = {"name": "a", "tasks": [{"root_cause": {"data": "t.csv"}}]}
    plain, billed = Study.parse(small), Study.parse({**small, "bill": FULL})
    assert plain.bill is None
    assert billed.bill == terms(**FULL)
    assert [t.id for t in plain.trials("x", 1)] == [t.id for t in billed.trials("x", 1)]


@pytest.fixture(scope="module")
def billed() -> World:
    found = world()
    found.settings["bill"] = FULL
    return found


def test_the_report_shows_what_a_thousand_tickets_cost(billed: World, tmp_path: Any) -> None:
    ranking = billed.ranking()
    paths = report(ranking, tmp_path)
    reference = ranking.entry(ranking.reference)
    assert reference.spending is not None and reference.spending.joules is not None
    expected = 1000 * reference.spending.joules.value * 1.2 / 3.6e6
    rows = {row["variant"]: row for row in csv.DictReader(paths["table.csv"].read_text(encoding="utf-8").splitlines())}
    row = rows[ranking.reference]
    assert float(row["kwh_per_1000_tickets"]) == pytest.approx(expected)
    assert float(row["money_per_1000_tickets"]) == pytest.approx(expected * 0.25)
    assert float(row["gco2e_per_1000_tickets"]) == pytest.approx(expected * 44.18)
    assert float(row["kwh_per_1000_tickets_lower"]) < expected < float(row["kwh_per_1000_tickets_upper"])
    written = json.loads(paths["ranking.json"].read_text(encoding="utf-8"))
    assert written["terms"]["intensity"]["country"] == "FRA"
    [entry] = [each for each in written["entries"] if each["label"] == ranking.reference]
    assert entry["bill"]["grams"]["value"] == pytest.approx(expected * 44.18)
    assert entry["bill"]["provenance"] == "measured"
    text = paths["report.md"].read_text(encoding="utf-8")
    assert "## What a thousand tickets cost" in text
    assert "| variant | kWh | EUR | g CO2e | from |" in text
    assert "CC BY 4.0" in text
    assert "What a thousand tickets cost" in paths["report.html"].read_text(encoding="utf-8")


def test_without_terms_no_report_has_a_bill(tmp_path: Any) -> None:
    ranking = world().ranking()
    paths = report(ranking, tmp_path)
    assert all(entry.bill is None for entry in ranking.entries)
    assert "thousand tickets" not in paths["report.md"].read_text(encoding="utf-8")
    assert "kwh" not in paths["table.csv"].read_text(encoding="utf-8").splitlines()[0]


def test_without_joules_there_is_no_bill() -> None:
    found = world()
    found.settings["bill"] = FULL
    found.device = lambda _task, _number, _joules: {}
    assert all(entry.bill is None for entry in found.ranking().entries)
