"""Noise on what a teacher says, so that what is kept of one view tells little of what the teacher said exactly.

Each distribution p = softmax(z), [class], is released by the Laplace mechanism (Dwork et al., TCC 2006) and made a
distribution again, which uses the released numbers alone and so reveals no more:

    r = p + noise, each class's drawn from the Laplace distribution of scale 2 / epsilon
    z' = log((1 - f) * projection of r to the simplex + f / C), f = 0.01

Two distributions of any two images, of any two teachers, differ by at most 2 in the sum over classes, the mechanism's
sensitivity; so whatever is kept is at most exp(epsilon) times as likely for one as for the other: epsilon-differential
privacy of what is said of one view of one image, in the local sense. Swing distillation (Li et al., arXiv 2212.08349)
adds noise to soft targets as well, with a temperature that follows how private a token seems; here that would say
itself what is private, so there is none, and the guarantee needs no measurement of what leaks.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gdkd_cache.store.facts import LAPLACE, NoiseFacts

SECRET_BYTES = 32
_SENSITIVITY = 2.0
_FLOOR = 0.01
_PURPOSE = b"gdkd-cache noise"


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Noise of one build.

    Attributes:
        epsilon: of one view of one image, above 0.
        secret: what the draws are a function of, beside view and key: who has it can take the noise away again.
    """

    epsilon: float
    secret: bytes

    @property
    def facts(self) -> NoiseFacts:
        """What a manifest says of it: not the secret."""
        return NoiseFacts(mechanism=LAPLACE, epsilon=self.epsilon, sensitivity=_SENSITIVITY)

    def added(self, logits: Float[Tensor, "row class"], view: int, keys: Sequence[str]) -> Float[Tensor, "row class"]:
        """What is kept in place of a teacher's logits: float32 on their device, the same for the same view and key."""
        noise = np.stack([self._draws(view, key, logits.shape[-1]) for key in keys])
        released = logits.cpu().double().softmax(-1) + torch.from_numpy(noise)
        kept = (1 - _FLOOR) * projected(released) + _FLOOR / logits.shape[-1]
        return kept.log().float().to(logits.device)

    def _draws(self, view: int, key: str, count: int) -> np.ndarray:
        """Laplace noise of one distribution: float64 [count].

        SHAKE-256, not the streams of `seeding.py`: these are not made to hide their seed, and one draw that somebody
        knows, as whoever has the teacher does, would give all others away.
        """
        address = self.secret + _PURPOSE + view.to_bytes(8, "little") + key.encode()
        words = np.frombuffer(hashlib.shake_256(address).digest(8 * count), "<u8")
        # Uniform in (-1/2, 1/2), on a grid of 2**-53 that has neither end nor middle.
        uniform = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53 - 0.5
        return -(_SENSITIVITY / self.epsilon) * np.sign(uniform) * np.log1p(-2 * np.abs(uniform))


def projected(values: Float[Tensor, "row class"]) -> Float[Tensor, "row class"]:
    """The nearest point of the simplex, in the Euclidean sense, to each row (Duchi et al., ICML 2008)."""
    ranked = values.sort(-1, descending=True).values
    excess = ranked.cumsum(-1) - 1
    number = torch.arange(1, values.shape[-1] + 1, dtype=values.dtype)
    largest = (ranked * number > excess).sum(-1, keepdim=True)
    return (values - excess.gather(-1, largest - 1) / largest).clamp(min=0)
