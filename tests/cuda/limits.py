"""Limits of a CTA on a multiprocessor: shared memory and registers."""

from __future__ import annotations

from cuda.binaries import KB

CTA_SHARED = {"sm_80": 163 * KB, "sm_90": 227 * KB, "sm_100": 227 * KB}

MOST_REGISTERS = 255
