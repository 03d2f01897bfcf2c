"""Faults in the kernels that work on the scalars of matrices."""

from __future__ import annotations

from .source_faults import Fault

RULES, GUARD, SCALE = "scalar_rules.h", "guard_gradients", "scale_updates"


def _guard(name: str, old: str, new: str, layer: str = "values", file: str = RULES) -> Fault:
    return Fault(name, file, old, new, GUARD, layer)


def _scale(name: str, old: str, new: str) -> Fault:
    return Fault(name, RULES, old, new, SCALE, "values")


FAULTS = [
    _guard("the third spike is not accepted either", "s.in_a_row < kMostSpikes", "s.in_a_row <= kMostSpikes"),
    _guard("spikes are counted for ever", "is_spike ? s.in_a_row + 1 : T(0)", "s.in_a_row + is_spike"),
    _guard("a gradient of zero is a usual one", "if (rms > 0) {", "{"),
    _guard("a spike enters the usual size whole", "rms < largest ? rms : largest;", "rms;"),
    _guard("factors stay after a new scale", "restarts = is_large && !is_spike;", "restarts = false;"),
    _guard("the usual size stays after a new scale", "is_known && !restarts;", "is_known;"),
    _guard("a spike is used at its size", "is_spike ? usual / unit / rms : 1 / unit", "1 / unit"),
    _guard("moments keep the old unit", "s.mean_square *= shift * shift;", ""),
    _guard("units never change", "shift < kApart && shift > 1 / kApart", "true"),
    _guard("units may grow for ever", " && shift > 1 / kApart", ""),
    _guard("the moment is forgotten in a unit", "std::sqrt(s.mean_square) * old", "0 * old"),
    _guard(
        "weight decay has no part in a unit",
        "rule.decayed == kGradientDecay && weight_decay",
        "false && weight_decay",
    ),
    _guard("shifts without a bound", "if (shift > kLargest) shift = kLargest;", ""),
    _guard("shifts without a bound below", "if (shift < 1 / kLargest) shift = 1 / kLargest;", ""),
    _guard("subnormal units", "exponent < kLeast ? kLeast : ", ""),
    _guard("infinity passes for a norm", "norm < INFINITY", "!isnan(norm)"),
    _guard("skipped gradients are not counted", "s.skipped += 1;", ""),
    _guard("absent ones are counted as skipped", "} else if (present) {", "} else {"),
    _guard("Nesterov's step ahead left out", "steps + rule.lead", "steps"),
    _guard("no eps", "rule.eps * std::sqrt", "0 * std::sqrt"),
    _guard("weight decay everywhere", "i == rule.decayed ? weight_decay : T(0)", "weight_decay"),
    _guard("rounding by chance that was not requested", "rule.by_chance ? s.steps : T(0)", "s.steps"),
    _guard("c4 and c3 exchanged", "c[3] = scale;\n  c[4] = shift;", "c[4] = scale;\n  c[3] = shift;"),
    _guard(
        "one matrix more",
        "if (i >= in.count) return;\n  guard",
        "if (i > in.count) return;\n  guard",
        file="scalars.cu",
    ),
    _scale(
        "bias corrected twice",
        "rule.length == Length::kWhitened ? corrected",
        "rule.length == Length::kWhitened ? corrected * corrected",
    ),
    _scale("the gradient's scale left out", "rule.averaged ? corrected : corrected * c[3]", "corrected"),
    _scale("a spent momentum has its whole length", "noise > 0 && !(rms / noise >= 1)", "false"),
    _scale("lengths per matrix, not per element", "std::sqrt(update / numel)", "std::sqrt(update)"),
    _scale("an update of infinite norm is used", "update < kInfinity && ", ""),
    _scale("an infinite length is used", " && scale < kInfinity;", ";"),
    _scale("matrices without blocks use an update", "preconditioned && update > 0", "update > 0"),
    _scale(
        "fallbacks without a graft are counted",
        "preconditioned && !sound && graft > 0",
        "preconditioned && !sound",
    ),
    _scale("the ratio of an update that was not used", "if (sound) s.ratio = scale;", "s.ratio = scale;"),
    _scale("the gradient's unit left out", "    scale *= unit;\n    graft", "    graft"),
    _scale("the graft's unit left out", "graft_scale *= unit;\n", ""),
    *(
        Fault(name, "scalars.cu", old, new, SCALE, layer)
        for name, layer, old, new in (
            (
                "two for one matrix",
                "race",
                "const int64_t i = blockIdx.x;",
                "const int64_t i = blockIdx.x / 2;",
            ),
            (
                "the first span left out",
                "values",
                "span = in.graft_offsets[i] +",
                "span = in.graft_offsets[i] + 1 +",
            ),
            (
                "the first block left out",
                "values",
                "at = in.update_offsets[i] +",
                "at = in.update_offsets[i] + 1 +",
            ),
            ("one span more", "values", "span < spans", "span <= spans"),
            ("one block more", "values", "at < blocks", "at <= blocks"),
            ("every thread adds all spans", "values", "span += kScalarThreads", "++span"),
            ("spans of one warp alone", "values", "graft += grafts[warp];", "graft = grafts[warp];"),
            ("blocks of one warp alone", "values", "update += updates[warp];", "update = updates[warp];"),
            ("blocks as they come", "values", "update_norms[in.update_order[at]]", "update_norms[at]"),
            ("every thread scales", "race", "  if (threadIdx.x != 0) return;\n", ""),
        )
    ),
]
