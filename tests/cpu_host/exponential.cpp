// exp of vectors, at every thousandth float or so from -0 down and from 0 up to 88. Prints the largest relative errors,
// then what special values give.
#include "exponential.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>

namespace {

using V = puma::Vector<float, 16>::type;

float one(float x) { return puma::exponential(V{x, x, x, x})[0]; }

double largest_error(float from, float to) {
  double largest = 0;
  uint32_t first, last;
  std::memcpy(&first, &from, sizeof first);
  std::memcpy(&last, &to, sizeof last);
  for (uint32_t bits = first; bits <= last; bits += 1021) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    const double expected = std::exp(static_cast<double>(x)), error = std::abs(one(x) - expected) / expected;
    largest = std::isnan(error) ? INFINITY : std::max(largest, error);
  }
  return largest;
}

}  // namespace

int main() {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::printf("%.3e %.3e\n", largest_error(-0.0F, -87.3F), largest_error(0.0F, 88.0F));
  for (const float x : {0.0F, -0.0F, -87.31F, -1e4F, -3e38F, -kInfinity}) std::printf("%g ", one(x));
  uint32_t bits = 0x7f800001;  // a NaN whose payload would be lost in arithmetic on bits
  float nan;
  std::memcpy(&nan, &bits, sizeof nan);
  std::printf("%d %d\n", std::isnan(one(nan)), std::isnan(one(-std::numeric_limits<float>::quiet_NaN())));
}
