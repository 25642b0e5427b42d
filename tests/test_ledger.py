"""The ledger: what a stage spent is kept, whether it ends well or not."""

import pytest

from leanwatt.ledger import Ledger
from leanwatt.measurement import Counter, Provenance, Reading
from leanwatt.question import Answer


def ticking() -> Ledger:
    """A meter on which every reading comes one second and ten joules after the last."""
    state = {"now": 0}

    def read() -> Reading:
        state["now"] += 1
        joules = 10.0 * state["now"]
        counter = Counter(joules, joules - 1, joules + 1, Provenance.MEASURED, "rapl", "package", float(state["now"]))
        return Reading(float(state["now"]), state["now"] / 2, {"package-0": counter})

    return Ledger(read)


def test_a_stage_is_what_was_spent_between_its_ends() -> None:
    ledger = ticking()
    with ledger.stage("prune"):
        pass
    with ledger.stage("grade/root_cause") as tally:
        tally.add([Answer("a", tokens_in=5, tokens_out=2), Answer("b", tokens_in=7, tokens_out=1)])
        tally.add([Answer("c", tokens_in=1)])
    prune, grade = ledger.measurements
    assert (prune.stage, prune.seconds, prune.cpu_seconds, prune.total.joules) == ("prune", 1.0, 0.5, 10.0)
    assert (prune.answers, prune.tokens_in, prune.tokens_out, prune.reused) == (0, 0, 0, False)
    assert (grade.stage, grade.answers, grade.tokens_in, grade.tokens_out) == ("grade/root_cause", 3, 13, 3)
    assert grade.total.joules == 10.0


@pytest.mark.parametrize("failure", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_a_stage_that_fails_spent_its_joules_all_the_same(failure: BaseException) -> None:
    ledger = ticking()
    with pytest.raises(type(failure)), ledger.stage("finetune") as tally:
        tally.add([Answer("a", tokens_in=5)])
        raise failure
    [spent] = ledger.measurements
    assert (spent.stage, spent.total.joules, spent.answers) == ("finetune", 10.0, 1)


def test_stages_within_stages_are_both_kept() -> None:
    ledger = ticking()
    with ledger.stage("outer"), ledger.stage("inner"):
        pass
    assert [(m.stage, m.seconds) for m in ledger.measurements] == [("inner", 1.0), ("outer", 3.0)]


def test_reused_joules_are_charged_and_marked() -> None:
    ledger, other = ticking(), ticking()
    with other.stage("finetune"):
        pass
    ledger.reuse(other.measurements)
    [charged] = ledger.measurements
    assert charged.reused
    assert charged.total == other.measurements[0].total
    assert not other.measurements[0].reused


def test_a_meter_without_devices_gives_no_joules_and_no_zero() -> None:
    ledger = Ledger(lambda: Reading(1.0, 1.0))
    with ledger.stage("load"):
        pass
    assert ledger.measurements[0].devices == {}
    assert ledger.measurements[0].total.joules is None


def test_parts_of_a_stage_share_its_energy_by_their_time() -> None:
    ledger = ticking()
    with ledger.stage("prune"):
        for _ in range(3):
            with ledger.stage("calibrate"):
                pass
        with pytest.raises(RuntimeError), ledger.stage("calibrate"):
            raise RuntimeError
    part, whole = ledger.measurements
    assert (part.stage, part.within, whole.stage, whole.within) == ("calibrate", "prune", "prune", "")
    assert (part.seconds, whole.seconds) == (4.0, 9.0)
    assert part.total.joules == pytest.approx(whole.total.joules * 4 / 9)
    assert part.total.provenance is Provenance.ATTRIBUTED
    assert whole.total.provenance is Provenance.MEASURED
    with ledger.stage("save"):
        pass
    assert ledger.measurements[-1].within == ""
