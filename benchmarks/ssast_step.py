"""How long does a step of SSAST's joint pretraining take, against the reference's algorithm?

    python benchmarks/ssast_step.py
    python benchmarks/ssast_step.py --size tiny --frames 256 --masked 100 --compile
    python benchmarks/ssast_step.py --finetune 10 --size tiny --batch 32
    python benchmarks/ssast_step.py --reference-python ~/ssast/venv/bin/python --ssast ~/ssast

A step is forward, backward and the optimizer, on one batch that all share. The sides are timed in turns, in one
process, so that what disturbs one disturbs all:

- the reference's algorithm (`_ssast_reference.py`): two passes with two masks drawn in Python, loops over the clips,
  attention written out, Adam; a user who has SSAST itself (timm 0.4.5) can have that timed as well, in its own
  environment, by `--reference-python` and `--ssast`;
- ours in one pass, with the clipping of the gradient and the AdamW of `tymbal pretrain`: the same losses, which is
  checked first, on the same weights and masks, with their gradients;
- ours with `--encode visible`. This is another model (MAE-AST), whose speed says nothing without what it learns: look
  at its probe (`tymbal probe`) beside it.

With `--finetune LABELS` it is a step of fine-tuning instead, the mean over all patches with one label a clip; beside
both sides stand the matrix products of our float32 step alone, which bound any float32 step.

bf16 is measured where the hardware computes it; emulated it is no gain. On Linux all sides let glibc keep freed
memory, as Tymbal's command line does (`--plain-malloc`: none does). On a machine that is busy with other work,
`OMP_NUM_THREADS=1 … --processor-time` counts the seconds that the process computed instead of those that passed.
"""

from __future__ import annotations

import argparse
import copy
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from _report import machine, ratios, table
from _ssast_reference import ReferenceSSAST, adam, finetune_step, joint_step
from small_steps import Written
from tymbal.compute.device import choose_device, choose_precision
from tymbal.features.normalisation import Normalisation
from tymbal.machine import tune_malloc
from tymbal.models.classifier import SpectrogramClassifier
from tymbal.models.encoder import SpectrogramEncoder
from tymbal.models.formats.ssast_checkpoint import from_state
from tymbal.objectives.classification import ClassificationObjective
from tymbal.objectives.ssast import SSASTObjective
from tymbal.settings import SIZES, PretrainSettings
from tymbal.training.optimization import parameter_groups

MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}
ANOTHER = "another model (MAE-AST): read its probe beside it"


class Side(NamedTuple):
    """One of those that are compared.

    Attributes:
        name: What it is called in the table.
        step: Takes a step and gives its seconds.
        note: What the table says beside it.
    """

    name: str
    step: Callable[[], float]
    note: str = ""


def main() -> None:
    arguments = parse()
    tuned = not arguments.plain_malloc and tune_malloc()
    torch.set_num_threads(arguments.threads)
    device, _ = choose_device(arguments.device)
    if device.type != "cpu" and arguments.clock == "process_time":
        sys.exit("A GPU's work is no processor time: leave --processor-time out.")
    torch.manual_seed(0)
    random.seed(0)
    reference = ReferenceSSAST(**shape(arguments)).to(device)
    batch = torch.randn(arguments.batch, arguments.frames, arguments.mels, device=device)

    print(headline(arguments, device, tuned=tuned))
    if arguments.finetune:
        sides = finetuning_sides(arguments, reference, batch, device)
    else:
        check_losses(reference, batch, arguments.masked)
        sides = all_sides(arguments, reference, batch, device)
    print(figures(sides, measure(sides, arguments.rounds)))
    if not has_bf16(device):
        print(f"bf16: not available, {choose_precision('auto', device)[1]}")


def all_sides(
    arguments: argparse.Namespace, reference: ReferenceSSAST, batch: Tensor, device: torch.device
) -> list[Side]:
    sides = []
    for precision in ("float32", "bf16") if has_bf16(device) else ("float32",):
        for compiled in (False, True) if arguments.compile else (False,):
            kind = "".join([", bf16" if precision == "bf16" else "", ", compiled" if compiled else ""])
            for encode, name, note in (("all", "one pass", ""), ("visible", "visible only", ANOTHER)):
                step = ours(reference, batch, arguments.masked, encode=encode, precision=precision, compiled=compiled)
                sides.append(Side(f"ours, {name}{kind}", timed(step, device, arguments.clock), note))
    optimizer = adam(reference, 1e-4)
    step = partial(joint_step, reference, optimizer, batch, arguments.masked)
    first = Side("the reference's algorithm", timed(step, device, arguments.clock))
    if arguments.reference_python:
        return [first, Side("SSAST itself", Peer(arguments, device).step, "in its own environment"), *sides]
    return [first, *sides]


def finetuning_sides(
    arguments: argparse.Namespace, reference: ReferenceSSAST, batch: Tensor, device: torch.device
) -> list[Side]:
    """The steps of fine-tuning that are compared, from the same weights; their losses are compared first."""
    labels = torch.randint(0, arguments.finetune, (len(batch),), device=device)
    width = SIZES[arguments.size][0]
    head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, arguments.finetune)).to(device)
    objective = classifier_from(reference, head)
    rows = torch.arange(len(batch), device=device)
    given = {"frames": torch.full_like(rows, batch.shape[1]), "row": rows, "epoch": torch.zeros_like(rows)}
    with torch.no_grad():
        wanted = nn.functional.cross_entropy(head(reference.embed(batch)), labels).item()
        got = objective(batch, labels=labels, **given)["loss"].item()
    print(f"Loss {wanted:.6f} by the reference's algorithm, {got:.6f} by ours\n")
    if abs(got - wanted) > 1e-5 * abs(wanted):
        sys.exit("They are not the same: what follows would compare nothing.")
    own = copy.deepcopy(reference)
    optimizer = torch.optim.Adam([*own.v.parameters(), *head.parameters()], 1e-4, betas=(0.95, 0.999))
    theirs = partial(finetune_step, own, head, optimizer, batch, labels)
    sides = [Side("the reference's algorithm", timed(theirs, device, arguments.clock))]
    for precision in ("float32", "bf16") if has_bf16(device) else ("float32",):
        step = stepping(copy.deepcopy(objective), {"spectrogram": batch, "labels": labels, **given}, precision)
        sides.append(Side(f"ours, {precision}", timed(step, device, arguments.clock)))
    written = Written()
    with written:
        stepping(objective, {"spectrogram": batch, "labels": labels, **given}, "float32")()
    return [*sides, Side("the products of ours in float32 alone", timed(written.again(), device, arguments.clock))]


def classifier_from(reference: ReferenceSSAST, head: nn.Sequential) -> ClassificationObjective:
    """Our classifier with the reference's weights and a head of its."""
    checkpoint = from_state({name: value.clone() for name, value in reference.state_dict().items()}, path="reference")
    encoder = SpectrogramEncoder(checkpoint.description.encoder)
    encoder.load_state_dict(checkpoint.encoder)
    labels = head[1].out_features
    model = SpectrogramClassifier(encoder, labels, pooling="mean", head_eps=head[0].eps)
    model.head_norm.load_state_dict(head[0].state_dict())
    model.head.load_state_dict(head[1].state_dict())
    plain = Normalisation(mean=0.0, std=0.5, padding=0.0)
    objective = ClassificationObjective(model, normalisation=plain, columns=torch.arange(labels))
    return objective.to(reference.mask_embed.device)


def stepping(objective: nn.Module, given: dict[str, Tensor], precision: str) -> Callable[[], object]:
    """A step of ours with the optimizer and clipping of Tymbal's verbs."""
    settings = PretrainSettings()
    groups = parameter_groups(objective.named_parameters(), learning_rate=1e-4, weight_decay=settings.weight_decay)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, settings.adam_beta2), fused=True)

    def step() -> None:
        with autocast(given["spectrogram"].device, precision):
            loss = objective(**given)["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(objective.parameters(), settings.clip_norm)
        optimizer.step()
        optimizer.zero_grad()

    return step


def ours(
    reference: ReferenceSSAST, batch: Tensor, masked: int, *, encode: str, precision: str, compiled: bool
) -> Callable[[], object]:
    """Our step, from the reference's weights."""
    settings = PretrainSettings()
    objective = objective_from(reference, masked, encode=encode)
    groups = parameter_groups(objective.named_parameters(), learning_rate=1e-4, weight_decay=settings.weight_decay)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, settings.adam_beta2), fused=True)
    module = torch.compile(objective) if compiled else objective
    clips, frames, _ = batch.shape
    rows = torch.arange(clips, device=batch.device)
    lengths, epoch = torch.full_like(rows, frames), torch.zeros_like(rows)

    def step() -> None:
        nonlocal epoch
        with autocast(batch.device, precision):
            loss = module(spectrogram=batch, frames=lengths, row=rows, epoch=epoch)["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(objective.parameters(), settings.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        epoch = epoch + 1

    return step


def objective_from(reference: ReferenceSSAST, masked: int, *, encode: str) -> SSASTObjective:
    """Our objective with the reference's weights (the decoder, which that has not, with random ones)."""
    device = reference.mask_embed.device
    checkpoint = from_state({name: value.clone() for name, value in reference.state_dict().items()}, path="reference")
    encoder = SpectrogramEncoder(checkpoint.description.encoder)
    encoder.load_state_dict(checkpoint.encoder)
    # The batch is normalised: mean 0 and deviation 1/2 leave it as it is.
    plain = Normalisation(mean=0.0, std=0.5, padding=0.0)
    objective = SSASTObjective(encoder, normalisation=plain, mask_count=masked, encode=encode)
    objective.load_head_state(objective.head_state() | checkpoint.objective)
    return objective.to(device)


def check_losses(reference: ReferenceSSAST, batch: Tensor, masked: int) -> None:
    """Stops where the losses or gradients of one pass are not those of the reference's two with the same masks.

    The models compute in float64: in float32 a unit of a head that is about 0 for all masked patches can get either
    sign, and gradients of the same mathematics differ by more than that.
    """
    theirs, clips = copy.deepcopy(reference).cpu().double(), batch[:2].cpu().double()
    objective = objective_from(theirs, masked, encode="all").double()
    rows = torch.arange(len(clips))
    masks = objective.make_masks(clips.shape[1], torch.full_like(rows, clips.shape[1]), rows, torch.zeros_like(rows))
    loss = objective.losses(objective.predict(clips, masks), objective.encoder.patchify(clips), masks.index)["loss"]
    wanted_loss = theirs.mpc(clips, masked, masks.index)[1] + 10 * theirs.mpg(clips, masked, masks.index)
    loss.backward()
    wanted_loss.backward()
    gradient, wanted = objective.encoder.position_embedding.grad, theirs.v.pos_embed.grad
    away = float((gradient - wanted).norm() / wanted.norm())
    print(
        f"Equal masks: loss {wanted_loss.item():.5f} by the reference's algorithm in two passes, {loss.item():.5f} by "
        f"ours in one; gradients differ by {away:.1e}\n"
    )
    if abs(loss.item() - wanted_loss.item()) > 1e-4 * abs(wanted_loss.item()) or away > 1e-3:
        sys.exit("They are not the same: what follows would compare nothing.")


class Peer:
    """SSAST itself, in a process and an environment of its own, that takes a step when it is told to."""

    def __init__(self, arguments: argparse.Namespace, device: torch.device) -> None:
        malloc = {} if arguments.plain_malloc else MALLOC
        script = Path(__file__).with_name("_ssast_peer.py")
        names = ("ssast", "size", "clock", "frames", "mels", "batch", "masked", "threads")
        values = [str(getattr(arguments, name)) for name in names]
        self.process = subprocess.Popen(
            [arguments.reference_python, script, device.type, *values],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **malloc, "OMP_NUM_THREADS": str(arguments.threads)},
        )

    def step(self) -> float:
        """Lets it take a step and gives the seconds."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"SSAST's process ended with {self.process.wait()}; its own message is above.")
        return float(answer)


def timed(step: Callable[[], object], device: torch.device, clock: str) -> Callable[[], float]:
    """The step with its seconds, by a clock of the module `time`."""
    now = getattr(time, clock)

    def taken() -> float:
        start = now()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return float(now() - start)

    return taken


def measure(sides: list[Side], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side by round; two rounds, in which memory is taken and code compiled, are not counted."""
    for side in sides:
        side.step()
        side.step()
    by_round = [[side.step() for side in sides] for _ in range(rounds)]
    return {side.name: list(seconds) for side, seconds in zip(sides, zip(*by_round, strict=True), strict=True)}


def figures(sides: list[Side], seconds: dict[str, list[float]]) -> str:
    """The table, with what must be read beside it."""
    rows = []
    for number, side in enumerate(sides):
        own = seconds[side.name]
        faster = ratios(seconds, sides[0].name, side.name)
        note = f" ({number})" if side.note else ""
        rows.append([side.name + note, f"{statistics.median(own):.3f}", f"{min(own):.3f}", f"{faster:.2f}"])
    notes = [f"({number}) {side.note}" for number, side in enumerate(sides) if side.note]
    return "\n".join([table(["step", "median s", "fastest s", "times as fast"], rows), *notes])


def shape(arguments: argparse.Namespace) -> dict[str, int]:
    width, depth, heads = SIZES[arguments.size]
    return {"width": width, "depth": depth, "heads": heads, "mels": arguments.mels, "frames": arguments.frames}


def has_bf16(device: torch.device) -> bool:
    return choose_precision("auto", device)[0] is torch.bfloat16


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


def headline(arguments: argparse.Namespace, device: torch.device, *, tuned: bool) -> str:
    patches = arguments.mels // 16 * (arguments.frames // 16)
    what = f"A joint step, {arguments.masked} of {patches} patches masked"
    if arguments.finetune:
        what = f"A step of fine-tuning on {arguments.finetune} labels"
    gpu = f"{torch.cuda.get_device_name()}, " if device.type == "cuda" else ""
    seconds = "in seconds of processor time" if arguments.clock == "process_time" else "in seconds that passed"
    memory = "glibc keeps freed memory" if tuned else "malloc as the C library has it"
    return (
        f"{what}, {arguments.size} encoder, {arguments.batch} clips of {arguments.frames} frames x "
        f"{arguments.mels} mel bins, {arguments.rounds} rounds\n"
        f"{gpu}{machine()}, {arguments.threads} threads, torch {torch.__version__}\n"
        f"All in float32 unless said otherwise, {seconds}; {memory}, for all."
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--frames", type=int, default=1024)
    parser.add_argument("--mels", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--masked", type=int, default=400)
    parser.add_argument("--finetune", type=int, default=0, metavar="LABELS", help="measure fine-tuning instead")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true", help="measure the compiled steps as well")
    parser.add_argument("--plain-malloc", action="store_true", help="leave glibc's malloc as it is, on all sides")
    parser.add_argument(
        "--processor-time",
        dest="clock",
        action="store_const",
        const="process_time",
        default="perf_counter",
        help="count the seconds of computing, of all threads",
    )
    parser.add_argument("--reference-python", metavar="PYTHON", help="interpreter of an environment with timm 0.4.5")
    parser.add_argument("--ssast", metavar="PATH", help="a clone of SSAST, for --reference-python")
    arguments = parser.parse_args()
    if bool(arguments.reference_python) != bool(arguments.ssast):
        parser.error("--reference-python and --ssast belong together")
    return arguments


if __name__ == "__main__":
    main()
