#include <algorithm>

#include "decode.h"

namespace ptx {

namespace {

using Words = std::vector<std::string_view>;

Words split(std::string_view spelling) {
  Words words;
  for (size_t at = 0; at <= spelling.size();) {
    const size_t dot = std::min(spelling.find('.', at), spelling.size());
    words.push_back(spelling.substr(at, dot - at));
    at = dot + 1;
  }
  return words;
}

// Cache hints, memory order and scope: the executor performs every access at once and in program order.
const Words kMemoryHints = {"weak",
                            "volatile",
                            "relaxed",
                            "acquire",
                            "release",
                            "acq_rel",
                            "cta",
                            "gpu",
                            "sys",
                            "ca",
                            "cg",
                            "cs",
                            "lu",
                            "cv",
                            "noftz",
                            "nc",
                            "wb",
                            "wt",
                            "v2",
                            "v4",
                            "v8",
                            "L1::no_allocate",
                            "L1::evict_first",
                            "L1::evict_last",
                            "L1::evict_normal",
                            "L1::evict_unchanged",
                            "L2::evict_first",
                            "L2::evict_last",
                            "L2::64B",
                            "L2::128B",
                            "L2::256B"};
// Rounding to nearest is the only rounding of these; approximations are computed correctly rounded.
const Words kFloatHints = {"ftz", "rn"}, kApproximations = {"ftz", "rn", "approx", "full"};
const Words kSync = {"sync", "aligned", "shared", "shared::cta"};

const Words kNothing = {}, kUniform = {"uni"}, kAligned = {"aligned", "cta"}, kFtz = {"ftz"};
const Words kFence = {"acq_rel",           "sc",          "cta",   "gpu",   "sys",
                      "cluster",           "gl",          "proxy", "async", "async::generic",
                      "async.shared::cta", "shared::cta", "alias"};
const Words kCopy = {"ca", "cg", "L2::64B", "L2::128B", "L2::256B"};

bool is_one_of(std::string_view word, const Words& words) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

const Words& ignored_qualifiers(std::string_view base) {
  if (is_one_of(base, {"ld", "st", "atom", "red"})) return kMemoryHints;
  if (is_one_of(base, {"add", "sub", "mul", "fma", "mad"})) return kFloatHints;
  if (is_one_of(base, {"min", "max", "abs", "neg", "setp", "set", "slct", "cvt"})) return kFtz;
  if (is_one_of(base, {"div", "rcp", "sqrt", "rsqrt", "ex2", "lg2", "sin", "cos", "tanh"}))
    return kApproximations;
  if (is_one_of(base, {"bra", "ret", "exit", "brx"})) return kUniform;
  if (is_one_of(base, {"mma", "ldmatrix", "stmatrix", "movmatrix", "wgmma"})) return kSync;
  if (is_one_of(base, {"bar", "barrier"})) return kAligned;
  if (is_one_of(base, {"fence", "membar"})) return kFence;
  return base == "cp" ? kCopy : kNothing;
}

// True for opcodes to which only the width matters, so that f32, u32, s32 and b32 are the same.
bool merges_types(std::string_view base) {
  return base == "mov" || base == "selp" || base == "st" || base == "shl" || base == "not" || base == "and" ||
         base == "or" || base == "xor";
}

std::string_view merged(std::string_view base, std::string_view word) {
  if (word == "shared::cta") return "shared";
  if (word == "param::entry") return "param";
  const bool load = base == "ld";
  if (!load && !merges_types(base)) return word;
  if (load && (word == "s8" || word == "s16" || word == "s32")) return word;
  if (word == "u8" || word == "s8") return "b8";
  if (word == "u16" || word == "s16" || word == "f16" || word == "bf16") return "b16";
  if (word == "u32" || word == "s32" || word == "f32" || word == "bf16x2") return "b32";
  if (word == "u64" || word == "s64" || word == "f64") return "b64";
  return word;
}

// Returns a wgmma shape with N in place of its n, and any other word unchanged.
std::string without_n(std::string_view word) {
  const size_t k = word.rfind('k');
  if (word.substr(0, 4) != "m64n" || k == std::string_view::npos) return std::string(word);
  return "m64nN" + std::string(word.substr(k));
}

}  // namespace

std::string canonical(std::string_view spelling) {
  const Words words = split(spelling);
  const std::string_view base = words[0];
  const Words& ignored = ignored_qualifiers(base);
  std::string result(base == "barrier" ? "bar" : base);
  for (size_t i = 1; i < words.size(); ++i) {
    const std::string_view word = words[i];
    if (is_one_of(word, ignored)) continue;
    result += '.';
    result += base == "wgmma" ? without_n(word) : std::string(merged(base, word));
  }
  return result;
}

}  // namespace ptx
