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
        "i < kElements && in.nesterov; ++i",
        "i < kElements && in.nesterov && false; ++i",
        "accumulate",
        "values",
    ),
    Fault(
        "the gradient's scale left out",
        "accumulate.cu",
        "g[i] *= c[3];",
        "g[i] *= 1;",
        "accumulate",
        "values",
    ),
    Fault("l2 left out", "accumulate.cu", "if (in.l2 != 0) {", "if (false) {", "accumulate", "values"),
    Fault(
        "inactive parameters take part",
        "accumulate.cu",
        "    if (!in.active[index]) continue;\n",
        "",
        "accumulate",
        "values",
    ),
    Fault(
        "partial sum of another span",
        "accumulate.cu",
        "in.partial[span] = sum;",
        "in.partial[span / 2] = sum;",
        "accumulate",
        "race",
    ),
    Fault(
        "the first spans alone",
        "accumulate.cu",
        "span < in.spans; span += gridDim.x",
        "span < gridDim.x; span += gridDim.x",
        "accumulate",
        "values",
    ),
    Fault(
        "the last span left out",
        "accumulate.cu",
        "(of.numel + kSpan - 1) / kSpan : 0;",
        "of.numel / kSpan : 0;",
        "sum_spans",
        "values",
    ),
    Fault(
        "a tail taken for whole",
        ELEMENTS,
        "(end - begin) / Whole::kElements * Whole::kElements;",
        "(end - begin + 3) / Whole::kElements * Whole::kElements;",
        "parameter_step",
        "bounds",
    ),
    Fault(
        "a tail left out", ELEMENTS, "    begin = whole;\n", "    begin = end;\n", "parameter_step", "values"
    ),
    Fault(
        "a transposed parameter taken for flat",
        ELEMENTS,
        "if (parameter.flat) {",
        "if (true) {",
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
        "const int64_t end = min(begin + kSpan + 4, parameter.numel);",
        "parameter_step",
        "race",
    ),
]
