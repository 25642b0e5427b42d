"""A shape of a billion weights on an NVIDIA GPU: fp32, bf16, fp8, int8, int4, 2:4 in sparse kernels; measured joules.

    pip install 'leanwatt' torchao==0.18.0 mslk  # with a CUDA build of torch; int4's kernels are in mslk
    python benchmarks/engines_gpu.py --shape 1b --batch 1 8 64 --minutes 30 --out runs/engines-gpu

Not yet run on hardware. Random weights, with the same values shuffled as a control, since a GPU's watts move with the
values; no quality, and no part of any ranking. Before a case is weighed, its logits are compared with those of the same
weights, unpacked, in plain fp32: one that computes something else is named with its error. Each case runs in a process
of its own, in rounds of random order; what cannot run here is named with its reason. It stops after --minutes and goes
on from there when started again. `--device cpu --shape 14m` tries the script without a GPU: cases that need one are
named as failed.
"""

import argparse
import json
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from leanwatt import agreement, catalog, shape
from leanwatt.contracts import WorkerDied
from leanwatt.errors import LeanwattError
from leanwatt.ledger import Ledger
from leanwatt.recipe import Choice

PRECISIONS = ("fp32", "bf16", "fp8", "int8", "int4", "2:4")


@dataclass(frozen=True)
class Weighing:
    """One precision at one batch size; pickles."""

    folder: Path
    device: str
    compiled: bool

    def __call__(self, item: tuple[shape.Case, str]) -> shape.Outcome:
        case, precision = item
        name = f"{precision}{', compiled' if self.compiled else ''}, batch {case.batch}, {case.weights}"
        try:
            found = self._weighed(case, precision)
        except (
            LeanwattError,
            RuntimeError,
            ImportError,
            AssertionError,
            ValueError,
            TypeError,
            NotImplementedError,
        ) as error:
            return shape.Failed(name, f"{type(error).__name__}: {error}")
        return [replace(each, case=name) for each in found]

    def _weighed(self, case: shape.Case, precision: str) -> list[shape.PhaseCost]:
        from leanwatt.engine.transformers import _Torch

        module, right = opened(self.folder, precision, self.device)
        expected = reference(self.folder, right, self.device, case.plan.checked)
        if self.compiled:
            module.compile(dynamic=True)
        session = SimpleNamespace(backend=_Torch(module, self.device), facts={"precision": precision})
        with catalog.build(case.plan.meter).open() as read:
            return list(shape.phases(case, session, Ledger(read), expected))


def opened(folder: Path, precision: str, device: str) -> tuple[Any, dict[str, Any]]:
    """The model on the device, its blocks' linear layers in that precision; and what these layers' weights are."""
    import torch

    from leanwatt.model import cast, linears, load, weight_of

    model = load(folder)
    if precision == "2:4":
        for layer in linears(model.module).values():
            weight = weight_of(layer)
            groups = weight.float().abs().view(weight.shape[0], -1, 4)
            smallest = groups.argsort(-1)[..., :2]
            weight.view(weight.shape[0], -1, 4).scatter_(-1, smallest, 0)
    module = cast(model.module, torch.float32 if precision == "fp32" else torch.bfloat16).to(device)
    right = {name: layer.weight.data for name, layer in linears(module).items()}
    if precision == "2:4":
        for layer in linears(module).values():
            packed = torch.sparse.to_sparse_semi_structured(layer.weight.data)
            layer.weight = torch.nn.Parameter(packed, requires_grad=False)
    elif precision not in ("fp32", "bf16"):
        quantized(module, precision)
        right = {name: unpacked(layer.weight) for name, layer in linears(module).items()}
    return module, right


def reference(folder: Path, right: dict[str, Any], device: str, ids: Any) -> agreement.Logits:
    """Logits of the same weights, multiplied by plain transformers in fp32."""
    import torch

    from leanwatt.engine.transformers import _Torch
    from leanwatt.model import cast, linears, load

    plain = cast(load(folder).module, torch.float32)
    with torch.no_grad():
        for name, layer in linears(plain).items():
            layer.weight.copy_(right[name])
    return agreement.after_rows(_Torch(plain.to(device), device), ids)


def unpacked(weight: Any) -> Any:
    """A layer's weights as fp32 numbers (rows, columns), without the kernel that is weighed."""
    import torch

    if type(weight).__name__ != "Int4Tensor":  # The one that torchao cannot unpack itself.
        return weight.dequantize(torch.float32)
    # Two numbers a byte, the first in the low half; scales and offsets are (groups, rows).
    halves = torch.stack([weight.qdata & 0xF, (weight.qdata >> 4) & 0xF], dim=-1).flatten(1).to(torch.int8)
    numbers = torch.where(halves > 7, halves - 16, halves).float()
    scale, offset = (each.float().T[..., None] for each in (weight.scale, weight.zero_point))
    return (numbers.unflatten(1, (scale.shape[1], -1)) * scale + offset).flatten(1)


def quantized(module: Any, precision: str) -> None:
    """By torchao, on the layers of the blocks only."""
    from torchao import quantization as ao

    from leanwatt.model import linears

    ours = set(linears(module))
    settings: dict[str, Callable[[], Any]] = {
        "fp8": lambda: ao.Float8DynamicActivationFloat8WeightConfig(granularity=ao.PerRow()),
        "int8": ao.Int8DynamicActivationInt8WeightConfig,
        "int4": lambda: ao.Int4WeightOnlyConfig(group_size=128),
    }
    ao.quantize_(module, settings[precision](), filter_fn=lambda _layer, name: name in ours)


def main() -> None:
    """Read the command line, weigh, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="1b")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compiled", action="store_true", help="torch.compile every case")
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--answer", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="shortest window")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    print(f"{device_name(asked.device)}\n\n{weighed(asked)}")


def device_name(device: str) -> str:
    """The machine, for the table's head."""
    import platform

    import torch

    where = torch.cuda.get_device_name(0) if device == "cuda" else platform.processor() or platform.machine()
    return f"Machine: {where}; torch {torch.__version__}."


def weighed(asked: Any) -> str:
    """Case after case until the time is over; each is kept as a line of JSON."""
    kept, deadline = asked.out / "outcomes.jsonl", time.monotonic() + 60 * asked.minutes
    known = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()] if kept.exists() else []
    lines = [line for line in known if "why" not in line]  # What failed is tried again.
    done = {(line["round"], *line["asked"]) for line in lines}
    for number in range(asked.rounds):
        items = [(case, precision) for case in cases(asked) for precision in asked.precision]
        random.Random(number).shuffle(items)
        for case, precision in items:
            key = (precision, case.batch, case.weights)
            if (number, *key) in done or time.monotonic() > deadline:
                continue
            outcome = one(asked, case, precision)
            found = [outcome] if isinstance(outcome, shape.Failed) else outcome
            lines += [{"round": number, "asked": key, **asdict(each)} for each in found]
            kept.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return shape.table(outcome_of(line) for line in lines)


def cases(asked: Any) -> list[shape.Case]:
    """Batch sizes and weights; the engine stands for what `opened` makes."""
    plan = shape.Plan(
        shape.parse(asked.shape),
        (Choice("engine", "transformers"),),
        bits=(16,),
        batches=tuple(asked.batch),
        prompt=asked.prompt,
        answer=asked.answer,
        window_seconds=asked.seconds,
    )
    return plan.cases


def one(asked: Any, case: shape.Case, precision: str) -> shape.Outcome:
    """In a fresh process, since memory of a GPU comes back with its process."""
    folder = asked.out / f"{asked.shape}-{case.weights}"
    if not folder.is_dir():
        shape.make(case.plan.shape, folder, case.weights, 16)
    executor = catalog.build(case.plan.executor)
    [outcome] = executor.run(Weighing(folder, asked.device, asked.compiled), [(case, precision)])
    died = isinstance(outcome, WorkerDied)
    return shape.Failed(f"{precision}, batch {case.batch}, {case.weights}", outcome.reason) if died else outcome


def outcome_of(line: dict[str, Any]) -> Any:
    fields = {key: value for key, value in line.items() if key not in ("round", "asked")}
    return shape.Failed(**fields) if "why" in fields else shape.PhaseCost(**fields)


if __name__ == "__main__":
    main()
