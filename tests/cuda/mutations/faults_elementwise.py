"""Faults in the kernels that work element by element."""

from __future__ import annotations

from .source_faults import Fault

ELEMENTS = "elementwise.cuh"

FAULTS = [
    Fault(
        "no barrier before the warps' sums are read",
        "reduce.cuh",
        "= value;\n  __syncthreads();\n",
        "= value;\n",
        "accumulate",
        "race",
    ),
    Fault(
        "no barrier after the parameter's entry was copied",
        ELEMENTS,
        "reinterpret_cast<const int*>(&parameter)[i];\n  }\n  __syncthreads();\n",
        "reinterpret_cast<const int*>(&parameter)[i];\n  }\n",
        "parameter_step",
        "race",
    ),
    Fault(
        "nesterov's second term missing",
        "accumulate.cu",
        "i < kVector && in.nesterov; ++i",
        "i < kVector && in.nesterov && false; ++i",
        "accumulate",
        "values",
    ),
    Fault("l2 left out", "accumulate.cu", "if (in.l2 != 0) {", "if (false) {", "accumulate", "values"),
    Fault(
        "inactive parameters take part",
        "accumulate.cu",
        "  if (!in.active[index]) return;\n",
        "",
        "accumulate",
        "values",
    ),
    Fault(
        "partial sum of another span",
        "accumulate.cu",
        "in.partial[blockIdx.x] = sum;",
        "in.partial[blockIdx.x / 2] = sum;",
        "accumulate",
        "race",
    ),
    Fault(
        "the last span left out",
        "accumulate.cu",
        "(of.numel + kSpan - 1) / kSpan : 0;",
        "of.numel / kSpan : 0;",
        "sum_spans",
        "values",
    ),
    Fault("tail written whole", ELEMENTS, "    if (i >= at.count) break;\n", "", "parameter_step", "bounds"),
    Fault("tail read whole", ELEMENTS, "if (i >= at.count) {", "if (false) {", "parameter_step", "bounds"),
    Fault(
        "a ragged quadruple taken for whole",
        ELEMENTS,
        "if (parameter.flat && count == kVector) {",
        "if (parameter.flat) {",
        "parameter_step",
        "bounds",
    ),
    Fault(
        "a transposed parameter taken for flat",
        ELEMENTS,
        "if (parameter.flat && count == kVector) {",
        "if (count == kVector) {",
        "parameter_step",
        "values",
    ),
    Fault(
        "inactive parameters take part",
        "parameter_step.cu",
        "  if (!in.active[index]) return;\n",
        "",
        "parameter_step",
        "values",
    ),
    Fault(
        "an update with a scale that is not finite",
        "parameter_step.cu",
        "of.update.data && isfinite(c[3])",
        "of.update.data",
        "parameter_step",
        "values",
    ),
    Fault(
        "nesterov's term missing",
        "parameter_step.cu",
        "in.nesterov ? u[i] + in.momentum * b[i] : b[i]",
        "b[i]",
        "parameter_step",
        "values",
    ),
    Fault(
        "weight decay missing",
        "parameter_step.cu",
        "(1 - lr * in.decay) * p[i]",
        "p[i]",
        "parameter_step",
        "values",
    ),
    Fault(
        "spans of different blocks overlap",
        ELEMENTS,
        "const int64_t end = min(begin + kSpan, parameter.numel);",
        "const int64_t end = min(begin + kSpan + kVector, parameter.numel);",
        "parameter_step",
        "race",
    ),
]
