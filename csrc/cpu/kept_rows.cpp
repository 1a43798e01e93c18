#include "kept_rows.h"

namespace puma {

void add_run(std::vector<Block>& blocks, int64_t row, int64_t rows, int64_t packed, int64_t block_rows) {
  const int64_t count = (rows + block_rows - 1) / block_rows;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t begin = rows * i / count, end = rows * (i + 1) / count;
    blocks.push_back({packed + begin, end - begin, row + begin, false});
  }
}

void add_samples(Plan& plan, int64_t block_rows) {
  const int64_t tokens = plan.tokens_per_sample, all = static_cast<int64_t>(plan.kept_samples.size());
  int64_t most = 1;
  while (2 * most * tokens <= block_rows) most *= 2;
  for (int64_t first = 0; first < all;) {
    int64_t count = most;
    while (count > all - first) count /= 2;
    const int64_t from = plan.kept_samples[first], to = plan.kept_samples[first + count - 1];
    if (to - from == count - 1) {
      add_run(plan.kept, from * tokens, count * tokens, first * tokens, block_rows);
    } else {
      plan.kept.push_back({first * tokens, count * tokens, from * tokens, true});
    }
    first += count;
  }
}

int64_t first_block(const Plan& plan, int64_t part, int64_t parts) {
  if (plan.kept.empty()) return 0;
  const int64_t bound = (plan.kept.back().packed + plan.kept.back().rows) * part / parts;
  const auto found = std::partition_point(
      plan.kept.begin(), plan.kept.end(), [=](const Block& block) { return block.packed + block.rows / 2 < bound; });
  return found - plan.kept.begin();
}

int64_t most_rows(const std::vector<Block>& blocks) {
  int64_t rows = 0;
  for (const Block& block : blocks) rows = std::max(rows, block.rows);
  return rows;
}

int64_t most_scattered_rows(const std::vector<Block>& blocks) {
  int64_t rows = 0;
  for (const Block& block : blocks) rows = std::max(rows, block.scattered ? block.rows : 0);
  return rows;
}

}  // namespace puma
