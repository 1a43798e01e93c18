// Exact nearest neighbours by squared L2 distance. A block of the distance matrix stays in the cache, and of each row
// only what is nearer than its k-th neighbour so far is kept. No gradient.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "distance_tiles.h"
#include "gemm.h"

namespace puma {
namespace {

// Queries that share a pass over the gallery, at most.
constexpr int64_t kBlockQueries = 128;

// Distance and position in one number: distances are not negative, so their bits are ordered as they are, and equal
// distances are ordered by position.
using Key = uint64_t;

Key make_key(float distance, int64_t position) {
  uint32_t bits;
  std::memcpy(&bits, &distance, sizeof bits);
  return static_cast<Key>(bits) << 32 | static_cast<Key>(position);
}

float distance_of(Key key) {
  const uint32_t bits = static_cast<uint32_t>(key >> 32);
  float distance;
  std::memcpy(&distance, &bits, sizeof distance);
  return distance;
}

int64_t position_of(Key key) { return static_cast<int64_t>(key & 0xffffffffu); }

// The k smallest keys of all that are added, in twice their room: when it is full, the larger half is thrown away.
class Smallest {
 public:
  explicit Smallest(int64_t k) : k_(k), room_(2 * k + 64), keys_(new Key[room_]) {}

  // Forgets all keys; those of the limit's distance or more will not be kept.
  void restart(float limit) {
    count_ = 0;
    limit_ = make_key(limit, 0);
  }

  // Keys of this distance or more need not be added: they come at a later position than those that are held.
  float limit() const { return distance_of(limit_); }

  void add(Key key) {
    if (key >= limit_) return;
    keys_[count_++] = key;
    if (count_ == room_) shrink();
  }

  // The keys in ascending order; at most k.
  const Key* sorted(int64_t& count) {
    if (count_ > k_) shrink();
    std::sort(keys_.get(), keys_.get() + count_);
    count = count_;
    return keys_.get();
  }

 private:
  void shrink() {
    std::nth_element(keys_.get(), keys_.get() + k_ - 1, keys_.get() + count_);
    count_ = k_;
    limit_ = keys_[k_ - 1];
  }

  int64_t k_, room_, count_ = 0;
  Key limit_ = 0;
  std::unique_ptr<Key[]> keys_;
};

// Adds what is nearer than the limit to a query's neighbours. `first` is the panel's first item.
void add_items(
    Smallest& nearest, const float* distances, const uint8_t* nearer, int64_t first, const int64_t* ids,
    int64_t own_id) {
  for (int64_t start = 0; start < PANEL; start += 8) {
    uint64_t flags = 0;
    for (int64_t j = 0; j < 8; ++j) flags |= static_cast<uint64_t>(nearer[start + j]) << (8 * j);
    for (; flags != 0; flags &= ~(uint64_t{0xff} << (__builtin_ctzll(flags) & ~7))) {
      const int64_t j = start + __builtin_ctzll(flags) / 8;
      if (ids == nullptr || ids[first + j] != own_id) nearest.add(make_key(distances[j], first + j));
    }
  }
}

std::tuple<Tensor, Tensor> pack_gallery(const Tensor& gallery) {
  STD_TORCH_CHECK(
      gallery.dim() == 2 && gallery.scalar_type() == ScalarType::Float,
      "puma::pack_gallery: a gallery of shape (G, C) in float32");
  const int64_t items = gallery.size(0), width = gallery.size(1), count = (items + PANEL - 1) / PANEL;
  const Tensor panels = empty<3>({count, width, PANEL}, ScalarType::Float);
  const Tensor lengths = empty<1>({count * PANEL}, ScalarType::Float);
  const Tensor rows = as_contiguous(gallery);
  pack_panels(mutable_data<float>(panels), mutable_data<float>(lengths), const_data<float>(rows), items, width);
  return {panels, lengths};
}

// Whether there is no column, or one of this type with so many entries.
bool fits(const std::optional<Tensor>& column, ScalarType dtype, int64_t least, int64_t most) {
  return !column.has_value() || (column->scalar_type() == dtype && column->is_contiguous() && column->dim() == 1 &&
                                 column->size(0) >= least && column->size(0) <= most);
}

std::tuple<Tensor, Tensor> nearest_neighbours(
    const Tensor& queries, const Tensor& panels, const Tensor& lengths, int64_t k,
    const std::optional<Tensor>& query_ids, const std::optional<Tensor>& gallery_ids,
    const std::optional<Tensor>& limits) {
  STD_TORCH_CHECK(
      queries.dim() == 2 && queries.scalar_type() == ScalarType::Float && queries.is_contiguous(),
      "puma::nearest_neighbours: contiguous queries of shape (Q, C) in float32");
  const int64_t count = queries.size(0), width = queries.size(1), places = lengths.size(0);
  STD_TORCH_CHECK(
      k >= 1 && panels.size(1) == width && panels.size(2) == PANEL && places == panels.size(0) * PANEL &&
          places < (int64_t{1} << 32),
      "puma::nearest_neighbours: k >= 1 and a gallery from pack_gallery of the queries' width and fewer than 2^32 items");
  STD_TORCH_CHECK(
      query_ids.has_value() == gallery_ids.has_value() && fits(query_ids, ScalarType::Long, count, count) &&
          fits(gallery_ids, ScalarType::Long, places - PANEL + 1, places) &&
          fits(limits, ScalarType::Float, count, count),
      "puma::nearest_neighbours: an int64 id of each query and gallery item, or none of both; a float32 limit of each "
      "query, or none");
  const Tensor distances = empty<2>({count, k}, ScalarType::Float), positions = empty<2>({count, k}, ScalarType::Long);
  const float* const query_data = const_data<float>(queries);
  const int64_t* const asking = query_ids.has_value() ? const_data<int64_t>(*query_ids) : nullptr;
  const int64_t* const ids = gallery_ids.has_value() ? const_data<int64_t>(*gallery_ids) : nullptr;
  const float* const limit_data = limits.has_value() ? const_data<float>(*limits) : nullptr;
  float* const distance_data = mutable_data<float>(distances);
  int64_t* const position_data = mutable_data<int64_t>(positions);
  const Panels packed{const_data<float>(panels), const_data<float>(lengths), panels.size(0), width};
  const int64_t depth = std::min(k, std::max<int64_t>(packed.count * PANEL, 1));
  const int64_t threads = torch::stable::get_num_threads();
  // Equal blocks, as many for each thread, but no shorter than a tile.
  const int64_t rounds = (count + kBlockQueries * threads - 1) / (kBlockQueries * threads);
  const int64_t blocks = std::min(rounds * threads, (count + TILE_QUERIES - 1) / TILE_QUERIES);

  torch::stable::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    DistanceTile tile;
    std::vector<Smallest> nearest;
    std::vector<float> own, below;
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first_query = count * block / blocks, rows = count * (block + 1) / blocks - first_query;
      const float* const block_queries = query_data + first_query * width;
      own.resize(rows);
      below.assign(rows, std::numeric_limits<float>::infinity());
      for (int64_t i = 0; i < rows; ++i) {
        own[i] = squared_length(block_queries + i * width, width);
        if (limit_data != nullptr) below[i] = limit_data[first_query + i];
        if (static_cast<int64_t>(nearest.size()) == i) nearest.emplace_back(depth);
        nearest[i].restart(below[i]);
      }
      for (int64_t panel = 0; panel < packed.count; ++panel) {
        for (int64_t row = 0; row < rows; row += TILE_QUERIES) {
          const int64_t tile_rows = std::min(TILE_QUERIES, rows - row);
          distance_tile(
              tile, packed, panel, block_queries + row * width, own.data() + row, below.data() + row, tile_rows);
          for (int64_t i = 0; i < tile_rows; ++i) {
            if (!tile.any[i]) continue;
            Smallest& mine = nearest[row + i];
            const int64_t own_id = ids == nullptr ? 0 : asking[first_query + row + i];
            add_items(mine, tile.distance[i], tile.nearer[i], panel * PANEL, ids, own_id);
            below[row + i] = mine.limit();
          }
        }
      }
      for (int64_t i = 0; i < rows; ++i) {
        int64_t found = 0;
        const Key* const keys = nearest[i].sorted(found);
        float* const distance = distance_data + (first_query + i) * k;
        int64_t* const position = position_data + (first_query + i) * k;
        for (int64_t j = 0; j < k; ++j) {
          distance[j] = j < found ? distance_of(keys[j]) : std::numeric_limits<float>::infinity();
          position[j] = j < found ? position_of(keys[j]) : -1;
        }
      }
    }
  });
  return {distances, positions};
}

}  // namespace
}  // namespace puma

STABLE_TORCH_LIBRARY_IMPL(puma, CPU, m) {
  m.impl("pack_gallery", TORCH_BOX(&puma::pack_gallery));
  m.impl("nearest_neighbours", TORCH_BOX(&puma::nearest_neighbours));
}
