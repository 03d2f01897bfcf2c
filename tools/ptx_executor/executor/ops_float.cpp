// Floating-point arithmetic in single and double precision.
#include <cmath>
#include <limits>

#include "opcodes.h"

namespace ptx {

namespace {

// A NaN loses against a number; -0 is below +0.
template <class T>
T least(T a, T b) {
  if (a != a) return b;
  if (b != b) return a;
  if (a == b) return std::signbit(a) ? a : b;
  return a < b ? a : b;
}

template <class T>
T greatest(T a, T b) {
  return -least(-a, -b);
}

template <class T>
T nan_or(T a, T b, T value) {
  return a != a || b != b ? std::numeric_limits<T>::quiet_NaN() : value;
}

// Arithmetic returns one NaN for all NaN inputs.
template <class T>
T one_nan(T value) {
  return value != value ? std::numeric_limits<T>::quiet_NaN() : value;
}

template <class T>
void add_type(OpcodeTable& t) {
  const std::string s = "." + type_name<T>();
  t["add" + s] = lanewise([](T a, T b) -> T { return one_nan(a + b); });
  t["sub" + s] = lanewise([](T a, T b) -> T { return one_nan(a - b); });
  t["mul" + s] = lanewise([](T a, T b) -> T { return one_nan(a * b); });
  t["fma" + s] = lanewise([](T a, T b, T c) -> T { return one_nan(std::fma(a, b, c)); });
  t["mad" + s] = t["fma" + s];
  t["div" + s] = lanewise([](T a, T b) -> T { return a / b; });
  t["rcp" + s] = lanewise([](T a) -> T { return T{1} / a; });
  t["sqrt" + s] = lanewise([](T a) -> T { return std::sqrt(a); });
  t["rsqrt" + s] = lanewise([](T a) -> T { return T{1} / std::sqrt(static_cast<double>(a)); });
  t["min" + s] = lanewise([](T a, T b) -> T { return least(a, b); });
  t["max" + s] = lanewise([](T a, T b) -> T { return greatest(a, b); });
  t["abs" + s] = lanewise([](T a) -> T { return std::fabs(a); });
  t["neg" + s] = lanewise([](T a) -> T { return -a; });
  t["copysign" + s] = lanewise([](T a, T b) -> T { return std::copysign(b, a); });
}

// The exact product of two floats and the error of the double sum decide which neighbour is on the required
// side.
template <int kDirection>  // -1: down, 0: to zero, 1: up
float directed_fma(float a, float b, float c) {
  const double product = static_cast<double>(a) * b, sum = product + c, back = sum - product;
  const double error = (product - (sum - back)) + (c - back);
  const float nearest = static_cast<float>(sum);
  if (!std::isfinite(sum)) return nearest;
  if (sum == 0 && kDirection < 0 && std::signbit(product) != std::signbit(c)) return -0.f;
  const double rest = (sum - nearest) + error;
  const int direction = kDirection ? kDirection : (std::signbit(sum) ? 1 : -1);
  if (direction > 0 && rest > 0) return std::nextafter(nearest, std::numeric_limits<float>::infinity());
  if (direction < 0 && rest < 0) return std::nextafter(nearest, -std::numeric_limits<float>::infinity());
  return nearest;
}

template <int kDirection>
void add_directed(OpcodeTable& t, const std::string& how) {
  t["add." + how + ".f32"] =
      lanewise([](float a, float b) -> float { return directed_fma<kDirection>(a, 1, b); });
  t["sub." + how + ".f32"] =
      lanewise([](float a, float b) -> float { return directed_fma<kDirection>(b, -1, a); });
  t["mul." + how + ".f32"] = lanewise(
      [](float a, float b) -> float { return directed_fma<kDirection>(a, b, std::copysign(0.f, a * b)); });
  t["fma." + how + ".f32"] =
      lanewise([](float a, float b, float c) -> float { return directed_fma<kDirection>(a, b, c); });
}

template <class T, class F>
void run_test(Machine& m, const Instruction& i, Mask mask) {
  const T* a = m.lanes<T>(i.op[1]);
  Mask result = 0;
  for (int lane = 0; lane < kWarpSize; ++lane) result |= static_cast<Mask>(F()(a[lane])) << lane;
  m.set_predicate(i.op[0], result, mask);
}

template <class T, class F>
Handler test(F) {
  return run_test<T, F>;
}

template <class T>
void add_tests(OpcodeTable& t) {
  const std::string s = "." + type_name<T>(), letters = {'P', letter<T>(false)};
  t["testp.finite" + s] = {letters, test<T>([](T a) { return static_cast<bool>(std::isfinite(a)); })};
  t["testp.infinite" + s] = {letters, test<T>([](T a) { return static_cast<bool>(std::isinf(a)); })};
  t["testp.number" + s] = {letters, test<T>([](T a) { return a == a; })};
  t["testp.notanumber" + s] = {letters, test<T>([](T a) { return a != a; })};
  t["testp.normal" + s] = {letters, test<T>([](T a) { return static_cast<bool>(std::isnormal(a)); })};
  t["testp.subnormal" + s] = {letters, test<T>([](T a) { return std::fpclassify(a) == FP_SUBNORMAL; })};
}

}  // namespace

void add_float_opcodes(OpcodeTable& t) {
  add_type<float>(t);
  add_type<double>(t);
  add_tests<float>(t);
  add_tests<double>(t);
  add_directed<0>(t, "rz");
  add_directed<-1>(t, "rm");
  add_directed<1>(t, "rp");
  t["add.sat.f32"] =
      lanewise([](float a, float b) -> float { return std::fmin(std::fmax(a + b, 0.f), 1.f); });
  t["mul.sat.f32"] =
      lanewise([](float a, float b) -> float { return std::fmin(std::fmax(a * b, 0.f), 1.f); });
  t["fma.sat.f32"] = lanewise(
      [](float a, float b, float c) -> float { return std::fmin(std::fmax(std::fma(a, b, c), 0.f), 1.f); });
  t["min.NaN.f32"] = lanewise([](float a, float b) -> float { return nan_or(a, b, least(a, b)); });
  t["max.NaN.f32"] = lanewise([](float a, float b) -> float { return nan_or(a, b, greatest(a, b)); });
  t["ex2.f32"] = lanewise([](float a) -> float { return std::exp2(static_cast<double>(a)); });
  t["lg2.f32"] = lanewise([](float a) -> float { return std::log2(static_cast<double>(a)); });
  t["sin.f32"] = lanewise([](float a) -> float { return std::sin(static_cast<double>(a)); });
  t["cos.f32"] = lanewise([](float a) -> float { return std::cos(static_cast<double>(a)); });
  t["tanh.f32"] = lanewise([](float a) -> float { return std::tanh(static_cast<double>(a)); });
}

}  // namespace ptx
