// Squared distances of one query and single items.
#pragma once

#include <cstdint>

namespace puma {

// Items whose distances are found together.
constexpr int PAIRS = 16;

// distances[j] is (own + squared[j]) - 2 * product with items[j] in float32, at least 0; own and squared are the rows'
// squared lengths. Products are summed in the same order whatever else is asked, so that equal rows are equally far.
void pair_distances(
    float* distances, const float* query, const float* const* items, int count, float own, const float* squared,
    int64_t width);

}  // namespace puma
