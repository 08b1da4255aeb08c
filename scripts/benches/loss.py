"""The distillation losses beside plain KD and beside the formulation that public code uses."""

import subprocess
import sys
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from benches.timing import Bench, Figure, ratios
from gdkd_cache import losses

_SHAPES = ((64, 100), (512, 1000), (128, 21841))


def plain(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """KD as it is usually written."""
    log_q, p = (student / temperature).log_softmax(-1), (teacher / temperature).softmax(-1)
    return F.kl_div(log_q, p, reduction="batchmean") * temperature**2


def masked(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """GDKD as the public implementations write it: masks of -1000, logarithms of sums of probabilities."""
    top = teacher.topk(5, -1).indices
    mask = torch.zeros_like(student, dtype=torch.bool).scatter(-1, top, True)
    q, p = (student / temperature).softmax(-1), (teacher / temperature).softmax(-1)
    masses_q, masses_p = (torch.stack([(z * mask).sum(-1), (z * ~mask).sum(-1)], -1) for z in (q, p))
    value = F.kl_div(masses_q.log(), masses_p, reduction="batchmean")
    for weight, other in ((1.0, ~mask), (8.0, mask)):
        log_q = (student / temperature - 1000 * other).log_softmax(-1)
        value = value + weight * F.kl_div(
            log_q, (teacher / temperature - 1000 * other).softmax(-1), reduction="batchmean"
        )
    return value * temperature**2


def loss(bench: Bench) -> Iterator[Figure]:
    """GDKD, forward and backward, against plain KD and the public formulation."""
    for shape in _SHAPES[:1] if bench.smoke else _SHAPES:
        generator = torch.Generator().manual_seed(0)
        student, teacher = (
            torch.randn(shape, generator=generator).mul(3).to(bench.device).requires_grad_(grad)
            for grad in (True, False)
        )
        top = losses.top_classes(teacher, 5)
        things = {
            "gdkd": lambda s=student, t=teacher, top=top: torch.autograd.grad(losses.gdkd(s, t, top=top), s),
            "plain": lambda s=student, t=teacher: torch.autograd.grad(plain(s, t), s),
            "public": lambda s=student, t=teacher: torch.autograd.grad(masked(s, t), s),
        }
        times = bench.seconds(things)
        size = f"gdkd {list(shape)}"
        goal = "<= 1.1" if shape[1] >= 1000 else "<= 2"
        yield Figure(what=size, against="plain KD", ratios=ratios(times["gdkd"], times["plain"]), goal=goal)
        yield Figure(
            what=f"public code {list(shape)}",
            against="gdkd",
            ratios=ratios(times["public"], times["gdkd"]),
            goal=">= 4",
        )
    if bench.device.type == "cpu":
        yield Figure(
            what="gdkd: memory beyond its inputs and gradient",
            against="the student's logits",
            ratios=[_memory()],
            goal="<= 2",
        )


def _memory() -> float:
    """Most memory that a loss and its gradient take, in the size of the student's logits [512, 21841]; in a process."""
    done = subprocess.run([sys.executable, "-c", _MEASURED], capture_output=True, text=True, check=True)
    return float(done.stdout)


_MEASURED = """
import torch
from pathlib import Path
from gdkd_cache import losses
def status(name): return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0]) * 1024
small = torch.randn(8, 100).requires_grad_()
losses.gdkd(small, torch.randn(8, 100)).backward()
s, t = torch.randn(512, 21841).requires_grad_(), torch.randn(512, 21841)
top = losses.top_classes(t[:1], 5).expand(512, 5)
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
losses.gdkd(s, t, top=top).backward()
print((status("VmHWM") - before) / s.nbytes - 1)  # the gradient that is asked for is no extra
"""
