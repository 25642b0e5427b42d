"""What a ranking says, as plain data: nothing here computes, and all of it can be written as JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from leanwatt.bill import Bill, Terms

Word = Literal["reference", "non-inferior", "inferior", "cannot tell"]
"""Of quality against the reference, at the study's margin."""

Verdict = Literal["nothing saves", "not yet confirmed", "confirmed", "cross-validated", "not confirmed"]
Axis = Literal["training", "engine", "batch", "precision", "pruning", "output length"]
"""What a saving comes from; `training` is the base and every step that is none of the others'."""


@dataclass(frozen=True)
class Figure:
    """A number that is never bare: what it is, and what it lies between."""

    value: float
    low: float | None = None
    """95 % interval; None where one repeat says nothing of the spread."""
    high: float | None = None
    repeats: int = 0
    """Examples behind a quality, rounds behind a cost."""


@dataclass(frozen=True)
class Ratio:
    """Cost over another's cost, paired within each round."""

    value: float
    low: float | None
    """95 % t-interval of the mean log-ratio over rounds; None with one round."""
    high: float | None
    rounds: int
    p: float | None
    """Chance of so large a difference if the two were within the allowance; None with one round."""
    allowance: float
    """Difference that counts as none, for example 0.02."""


@dataclass(frozen=True)
class Loss:
    """Quality against the reference on one task, paired example by example."""

    word: Word
    difference: float
    """Own minus the reference's."""
    low: float
    """One-sided 95 % bounds of the difference."""
    high: float
    p: float
    """Chance of so good a result if the true loss were the margin."""
    examples: int
    """Compared."""
    examples_needed: int | None = None
    """That would probably tell (80 % power), if the difference seen is the true one; None where it is told already."""
    p_higher: float = 1.0
    """Chance of so good a result if there were no gain: below the level, it is better than the reference."""


@dataclass(frozen=True)
class Spending:
    """What one answer, or one ticket through all tasks, costs to serve."""

    cpu_seconds: Figure
    seconds: Figure
    joules: Figure | None
    """Gross, of the devices that all variants have in common; None where unknown."""
    joules_lower: float | None
    """Band of the sensor or estimate, which repeats do not narrow."""
    joules_upper: float | None
    net_joules: float | None
    """Less what the idle machine would have spent; None without an idle reading."""
    tokens_out: float
    """Per answer."""


@dataclass(frozen=True)
class Phases:
    """What a token takes to read and to write, at fixed lengths, in the unit that is ranked."""

    prefill: Figure
    """Per prompt token; one new token per prompt is in it."""
    decode: Figure
    """Per new token after the first."""
    prompt_tokens: float
    """Per prompt."""
    new_tokens: float
    """Per answer, after the first."""


@dataclass(frozen=True)
class TaskResult:
    """One variant on one task."""

    metric: str
    quality: Figure
    """The primary metric: rho."""
    by_seed: Mapping[str, float]
    figures: Mapping[str, Figure]
    """Every metric of the task."""
    classes: tuple[Mapping[str, Any], ...] = ()
    """Per class, of the first seed: `class`, `precision`, `recall`, `f1`, `support`, `errors`, `said` (what it was most
    often taken for), `said_times`."""
    risk: Mapping[str, float] = field(default_factory=dict)
    """Share answered, the most confident first -> share of these that is wrong; empty without confidences."""
    spending: Spending | None = None
    phi: float | None = None
    """J_ref / (J_ref + J_own): 0.5 for the reference, whoever else is in the table."""
    r: float | None = None
    """w * phi + (1 - w) * rho."""
    phi_least: float | None = None
    """J_least / J_own: depends on who else is in the table."""
    loss: Loss | None = None
    """Against the reference; of several seeds the worst."""
    loss_by_seed: Mapping[str, Loss] = field(default_factory=dict)


@dataclass(frozen=True)
class Making:
    """What it took to make a variant, the work it shares with others included."""

    cpu_seconds: float
    seconds: float
    joules: float | None
    """Known part; None where no stage's energy is known."""
    provenance: str
    unknown_seconds: float
    """Length of the stages whose energy is unknown."""
    reused_cpu_seconds: float
    """The part that was spent once for several variants."""
    stages: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    """By stage: `seconds`, `cpu_seconds`, `joules`."""


@dataclass(frozen=True)
class Sharing:
    """What variants that begin alike saved by doing the fine-tuning once."""

    spent_cpu_seconds: float
    saved_cpu_seconds: float
    """What it would have taken more, had each variant been fine-tuned by itself."""
    spent_joules: float | None
    """None where a stage's energy is unknown."""
    saved_joules: float | None


@dataclass(frozen=True)
class Searched:
    """What finding the answer took."""

    method: str
    """The search."""
    tried: int
    """Variants and baselines that were tried in full, failures included."""
    glances: int
    """Trials of less fidelity, which served the choice only."""
    not_tried: tuple[str, ...]
    """Variants of the study that nothing is known of, and that have no line."""
    still_wanted: int
    """How many of these the search still wants: the budget, or a stop, came first."""
    budget: Mapping[str, float]
    """As the study gives it: `kwh`, `hours`, `trials`."""
    charged: Mapping[str, float]
    """What counts against it so far, by the same keys; estimates at their upper bound. Unknown is absent."""
    spent_on_glances: Making | None
    """The part of the totals that the search spent on trials of less fidelity; None without any."""
    sharing: Sharing
    payback_tickets: float | None
    """Until all that the study took, beyond the making of the reference, is saved again; None if it never is."""


@dataclass(frozen=True)
class Confirmation:
    """What the test split says."""

    figures: Mapping[str, Figure]
    """The primary metric by task."""
    losses: Mapping[str, Loss]
    """By task; empty for the reference."""
    p: float | None = None
    """Worst task and seed; None for the reference."""
    why: str = ""
    """It could not be judged: then it does not hold."""


@dataclass(frozen=True)
class Entry:
    """One line of the table: all seeds and folds of one recipe in one engine at one batch size, or a baseline."""

    label: str
    place: int
    """In the study, from 0."""
    is_baseline: bool
    engine: str
    batch: int
    steps: tuple[str, ...]
    status: Literal["done", "failed", "refused", "missing"]
    why: str = ""
    """Of any status but done; or why a done one could not be weighed or compared."""
    tasks: Mapping[str, TaskResult] = field(default_factory=dict)
    """Tasks that it can do; a baseline may lack some."""
    is_complete: bool = False
    """Graded and weighed, comparably, on every task of the study."""
    spending: Spending | None = None
    """Per ticket: one answer to every task; None unless complete."""
    cost: Figure | None = None
    """Per ticket, in the unit that is ranked."""
    phases: Phases | None = None
    """None where they were not weighed apart."""
    quality: float | None = None
    """Mean of the primary metrics; None unless every task was done."""
    phi: float | None = None
    r: float | None = None
    """Mean over tasks."""
    r_low: float | None = None
    r_high: float | None = None
    """Outer bounds: cost and quality both at their worse, or better, ends."""
    r_least: float | None = None
    """The form that depends on the table: see TaskResult.phi_least."""
    to_leader: Ratio | None = None
    to_reference: Ratio | None = None
    is_tied: bool = False
    """Cost not distinguishable from the leader's."""
    saves: Literal["yes", "no", "cannot tell"] | None = None
    """Against the reference; None where it cannot be compared."""
    word: Word = "cannot tell"
    """The worst of all tasks."""
    is_on_front: bool = False
    """No other is both cheaper and better."""
    note: str = ""
    """For example: no saving expected."""
    making: Making | None = None
    payback_tickets: float | None = None
    """Until making it, beyond the reference, is paid back; None if it never is."""
    cost_per_day: float | None = None
    """At the study's load, in the unit that is ranked; None where the load or the idle power is not known."""
    bill: Bill | None = None
    """Of 1,000 tickets; None where the study has no terms or the joules are unknown."""
    bytes_on_disk: int | None = None
    weight_bytes: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    confirmation: Confirmation | None = None


@dataclass(frozen=True)
class Scale:
    """Which cost is ranked, and what it leaves out."""

    unit: Literal["joules", "cpu_seconds"]
    devices: tuple[str, ...]
    """Whose joules are counted; also shown where CPU-seconds rank."""
    scope: str
    provenance: str
    source: str
    machine: str | None
    left_out: tuple[str, ...] = ()
    """Sentences: devices, machines, windows and variants that could not be compared."""

    @property
    def symbol(self) -> str:
        """For tables."""
        return "J" if self.unit == "joules" else "CPU-s"


@dataclass(frozen=True)
class Segment:
    """Between two values of a weight or price, this one is best."""

    begin: float
    end: float | None
    """None: for ever."""
    label: str


@dataclass(frozen=True)
class Factor:
    """Two variants that differ in one thing only: what that thing is worth."""

    axis: Axis
    before: str
    after: str
    """The two values of the axis."""
    ratio: Ratio
    label: str
    """The one with `after`."""


@dataclass(frozen=True)
class Part:
    """What one axis does to the cost, with the number of tokens written as it was where that is told apart."""

    axes: tuple[Axis, ...]
    """More than one where no variant was weighed that differs in the first of them alone."""
    factor: Figure


@dataclass(frozen=True)
class Apart:
    """The cost of one variant over the reference's, taken apart along the axes."""

    label: str
    parts: tuple[Part, ...]
    """Their factors multiply to the whole. `output length` comes last, and is absent where phases were not weighed:
    then it is in the others."""
    whole: Figure


@dataclass(frozen=True)
class SweetSpot:
    """The least cost among those that lose no more than the margin, and how sure that is."""

    label: str
    verdict: Verdict
    """`not confirmed`: the label is the reference, which is recommended instead."""
    tied: tuple[str, ...] = ()
    """Other candidates whose cost cannot be told from this one's."""
    best_model: str | None = None
    """The best language model, where a baseline wins."""
    uncompressed: str | None = None
    """Best engine running the uncompressed model at the same batch: what the headline compares with."""
    uncompressed_bits: str = ""
    to_uncompressed: Ratio | None = None
    to_reference: Ratio | None = None


@dataclass(frozen=True)
class Ranking:
    """The answer to a study."""

    study: str
    protocol: str
    rounds: int
    margin: float
    weight: float
    folds: int
    seeds: tuple[int, ...]
    reference: str
    scale: Scale
    entries: tuple[Entry, ...]
    """Cheapest first; those without a comparable cost after them, in the order of the study."""
    leader: str | None
    """The cheapest of all, however good."""
    order_of_candidates: tuple[str, ...]
    """Cheaper than the reference and non-inferior to it on validation; cheapest first."""
    sweet_spot: SweetSpot | None
    """None where the reference is not there to compare with."""
    best_by_task: Mapping[str, str]
    """Cheapest that is non-inferior on this task alone, be it able to do the others or not."""
    winner_by_weight: tuple[Segment, ...]
    winner_by_price: tuple[Segment, ...]
    """Over the price of a wrong answer, in kWh (or in CPU-hours, where these rank)."""
    least_form_winner: str | None
    least_form_turned_by: tuple[str, ...]
    """Leaving one of these out would change who wins in the least/own form."""
    factors: tuple[Factor, ...]
    apart: tuple[Apart, ...]
    """Of every language model but the reference, in the order of the study."""
    totals: Making
    """Of the whole study: every job and attempt, shared work once."""
    machine: Mapping[str, Any]
    searched: Searched
    caveats: tuple[str, ...]
    interrupted: Making | None = None
    """What jobs spent that were stopped from outside and left no record; not in the totals."""
    load: Mapping[str, Any] = field(default_factory=dict)
    terms: Terms | None = None
    """Of the bills; None where the study has none."""

    def entry(self, label: str) -> Entry:
        """The line of that name; raises KeyError."""
        for each in self.entries:
            if each.label == label:
                return each
        raise KeyError(label)
