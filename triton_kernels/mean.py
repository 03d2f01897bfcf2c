"""The running mean of tr(S) / d of a factor, and the unit in which Y = X A is held.

::

    mean <- decay mean + (1 - decay) s,   s = |A|_F^2 / d
    u = the power of two near (damping mean)^(-1/2), 1 without damping

Relative damping keeps X's largest eigenvalue near 1 / (damping mean), which is u^2. Y Y^T would overflow
where X (t - 1) does, Y Y^T / u^2 does where t does. Scaling by powers of two rounds nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .entry import ENERGIES, ENERGY, STATISTICS, D
from .multiply import total


@triton.jit
def statistics_of(entry, block, FIELD: tl.constexpr):
    """Pointer to a block's mean, and the count of its updates that fell back."""
    return tl.load(entry + FIELD).to(tl.pointer_type(tl.float32)) + 2 * block


@triton.jit
def unit_of(damped_mean):
    """u from damping mean; 1 where that is 0."""
    exponent = (damped_mean.to(tl.int32, bitcast=True) >> 23) - 127
    unit = ((127 - (tl.maximum(exponent, -120) >> 1)) << 23).to(tl.float32, bitcast=True)
    return tl.where(damped_mean > 0, unit, 1.0)


@triton.jit
def unit(entry, block, damping):
    """u of a block's side."""
    return unit_of(damping * tl.load(statistics_of(entry, block, STATISTICS)))


@triton.jit
def tracked_mean(entry, block, scratch, decay):
    """The mean after a gradient that is not the first."""
    s = total(entry, block, scratch, ENERGY, ENERGIES) / tl.load(entry + D).to(tl.float32)
    return decay * tl.load(statistics_of(entry, block, STATISTICS)) + (1 - decay) * s
