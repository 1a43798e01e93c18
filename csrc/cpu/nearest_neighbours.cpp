// Exact nearest neighbours by squared L2 distance. Of each query only what is nearer than its k-th neighbour so far is
// kept, and few items need to be looked at closely: the others are left out by a bound of their distance. No gradient.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "candidates.h"
#include "gallery_panels.h"
#include "gemm.h"
#include "pair_distances.h"

namespace puma {
namespace {

// Queries that share a pass over the gallery, at most.
constexpr int64_t kBlockQueries = 128;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

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

// The k smallest keys of all that are added. Few are kept in order; of many the larger part is thrown away now and
// then.
class Smallest {
 public:
  explicit Smallest(int64_t k)
      : k_(k), ordered_(k <= kMostOrdered), room_(ordered_ ? k : k + k / 2), keys_(new Key[room_]) {}

  // Forgets all keys; those of the limit's distance or more will not be kept.
  void restart(float limit) {
    count_ = 0;
    limit_ = make_key(limit, 0);
  }

  // Keys of a larger distance are not kept; of this distance only those of an earlier position than one that is held.
  float limit() const { return distance_of(limit_); }

  void add(Key key) {
    if (key >= limit_) return;
    if (ordered_) {
      int64_t place = count_ < k_ ? count_++ : k_ - 1;
      for (; place > 0 && keys_[place - 1] > key; --place) keys_[place] = keys_[place - 1];
      keys_[place] = key;
      if (count_ == k_) limit_ = keys_[k_ - 1];
    } else {
      keys_[count_++] = key;
      if (count_ == room_) shrink();
    }
  }

  // The keys in ascending order; at most k.
  const Key* sorted(int64_t& count) {
    if (count_ > k_) shrink();
    if (!ordered_) std::sort(keys_.get(), keys_.get() + count_);
    count = count_;
    return keys_.get();
  }

 private:
  static constexpr int64_t kMostOrdered = 64;

  void shrink() {
    std::nth_element(keys_.get(), keys_.get() + k_ - 1, keys_.get() + count_);
    count_ = k_;
    limit_ = keys_[k_ - 1];
  }

  int64_t k_;
  bool ordered_;
  int64_t room_, count_ = 0;
  Key limit_ = 0;
  std::unique_ptr<Key[]> keys_;
};

// What is searched: items from `begin` to `end`, or all others.
struct Gallery {
  PackedGallery layout;
  const uint8_t* packed;
  const float* rows;
  const int64_t* ids;     // or none
  const int64_t* places;  // or none: an item's place is its position
  int64_t begin, end;
  bool outside;

  // Bit j: item j of the panel belongs to what is searched.
  uint64_t searched(int64_t panel) const {
    constexpr uint64_t all = (uint64_t{1} << PANEL) - 1;
    const int64_t first = panel * PANEL;
    const auto below = [=](int64_t position) {
      return (uint64_t{1} << std::clamp<int64_t>(position - first, 0, PANEL)) - 1;
    };
    const uint64_t inside = below(end) & ~below(begin);
    return outside ? all & ~inside : inside;
  }
};

// A query, its nearest items so far and candidates that were not looked at closely yet.
class Asking {
 public:
  explicit Asking(int64_t depth) : nearest_(depth) {}

  void restart(const float* row, int64_t width, int64_t id, float limit) {
    row_ = row;
    own_ = squared_length(row, width);
    id_ = id;
    waiting_ = 0;
    nearest_.restart(limit);
  }

  float limit() const { return nearest_.limit(); }

  // Bit j of the candidates is item j of the panel.
  void add(uint64_t candidates, const Gallery& gallery, int64_t panel) {
    const int64_t first = panel * PANEL;
    const float* const squared = gallery.layout.facts(gallery.packed, panel).squared;
    for (; candidates != 0; candidates &= candidates - 1) {
      const int64_t j = __builtin_ctzll(candidates);
      if (gallery.ids != nullptr && gallery.ids[first + j] == id_) continue;
      places_[waiting_] = gallery.places == nullptr ? first + j : gallery.places[first + j];
      items_[waiting_] = gallery.rows + (first + j) * gallery.layout.width();
      squared_[waiting_++] = squared[j];
      if (waiting_ == PAIRS) look_closely(gallery.layout.width());
    }
  }

  // The keys in ascending order; at most k.
  const Key* sorted(int64_t width, int64_t& count) {
    look_closely(width);
    return nearest_.sorted(count);
  }

 private:
  void look_closely(int64_t width) {
    float distances[PAIRS];
    pair_distances(distances, row_, items_, waiting_, own_, squared_, width);
    for (int i = 0; i < waiting_; ++i) nearest_.add(make_key(distances[i], places_[i]));
    waiting_ = 0;
  }

  Smallest nearest_;
  const float* row_ = nullptr;
  float own_ = 0;
  int64_t id_ = 0;
  int waiting_ = 0;
  const float* items_[PAIRS];
  float squared_[PAIRS];
  int64_t places_[PAIRS];
};

Tensor pack_gallery(const Tensor& gallery) {
  STD_TORCH_CHECK(
      gallery.dim() == 2 && gallery.scalar_type() == ScalarType::Float && gallery.is_contiguous(),
      "puma::pack_gallery: a contiguous gallery of shape (G, C) in float32");
  const PackedGallery layout(gallery.size(0), gallery.size(1));
  const Tensor packed = empty({layout.bytes()}, ScalarType::Byte);
  layout.pack(mutable_data<uint8_t>(packed), const_data<float>(gallery));
  return packed;
}

// Whether there is no column, or one of this type with so many entries.
bool fits(const std::optional<Tensor>& column, ScalarType dtype, int64_t count) {
  return !column.has_value() || (column->scalar_type() == dtype && column->is_contiguous() && column->dim() == 1 &&
                                 column->size(0) == count);
}

bool all_in_32_bits(const int64_t* numbers, int64_t count) {
  int64_t bits = 0;
  for (int64_t i = 0; i < count; ++i) bits |= numbers[i];
  return bits >> 32 == 0;
}

std::tuple<Tensor, Tensor> nearest_neighbours(
    const Tensor& queries, const Tensor& gallery, const Tensor& packed, int64_t k,
    const std::optional<Tensor>& query_ids, const std::optional<Tensor>& gallery_ids,
    const std::optional<Tensor>& limits, const std::optional<Tensor>& places, int64_t begin, int64_t end,
    bool outside) {
  for (const Tensor& rows : {queries, gallery}) {
    STD_TORCH_CHECK(
        rows.dim() == 2 && rows.scalar_type() == ScalarType::Float && rows.is_contiguous(),
        "puma::nearest_neighbours: contiguous queries of shape (Q, C) and gallery of shape (G, C) in float32");
  }
  const int64_t count = queries.size(0), width = queries.size(1), items = gallery.size(0);
  const PackedGallery layout(items, width);
  STD_TORCH_CHECK(
      k >= 1 && gallery.size(1) == width && packed.scalar_type() == ScalarType::Byte && packed.is_contiguous() &&
          packed.numel() == layout.bytes() && items < (int64_t{1} << 32),
      "puma::nearest_neighbours: k >= 1 and a gallery of the queries' width and fewer than 2^32 items, packed by "
      "pack_gallery");
  STD_TORCH_CHECK(
      query_ids.has_value() == gallery_ids.has_value() && fits(query_ids, ScalarType::Long, count) &&
          fits(gallery_ids, ScalarType::Long, items) && fits(limits, ScalarType::Float, count) &&
          fits(places, ScalarType::Long, items),
      "puma::nearest_neighbours: an int64 id of each query and gallery item, or none of both; a float32 limit of each "
      "query, or none; an int64 place of each gallery item, or none");
  STD_TORCH_CHECK(
      !places.has_value() || all_in_32_bits(const_data<int64_t>(*places), items),
      "puma::nearest_neighbours: places of at least 0 and less than 2^32");
  STD_TORCH_CHECK(
      0 <= begin && begin <= end && end <= items, "puma::nearest_neighbours: 0 <= begin <= end <= gallery items");
  const Tensor distances = empty({count, k}, ScalarType::Float), positions = empty({count, k}, ScalarType::Long);
  const float* const query_data = const_data<float>(queries);
  const int64_t* const own_ids = query_ids.has_value() ? const_data<int64_t>(*query_ids) : nullptr;
  const int64_t* const ids = gallery_ids.has_value() ? const_data<int64_t>(*gallery_ids) : nullptr;
  const float* const limit_data = limits.has_value() ? const_data<float>(*limits) : nullptr;
  float* const distance_data = mutable_data<float>(distances);
  int64_t* const position_data = mutable_data<int64_t>(positions);
  const int64_t* const place_data = places.has_value() ? const_data<int64_t>(*places) : nullptr;
  const Gallery searched{
      layout, const_data<uint8_t>(packed), const_data<float>(gallery), ids, place_data, begin, end, outside};
  const int64_t depth = std::min(k, std::max<int64_t>(outside ? items - (end - begin) : end - begin, 1));
  const int64_t threads = torch::stable::get_num_threads();
  // Equal blocks, as many for each thread, but no shorter than a tile.
  const int64_t rounds = (count + kBlockQueries * threads - 1) / (kBlockQueries * threads);
  const int64_t blocks = std::min(rounds * threads, (count + TILE_QUERIES - 1) / TILE_QUERIES);

  torch::stable::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    std::vector<Asking> asking;
    Queries asked(layout, searched.packed, count / blocks + 1);
    std::vector<float> below(count / blocks + 1);
    uint64_t candidates[TILE_QUERIES];
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first_query = count * block / blocks, rows = count * (block + 1) / blocks - first_query;
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t query = first_query + i;
        below[i] = limit_data == nullptr ? kInfinity : limit_data[query];
        if (!(below[i] > 0)) below[i] = 0;  // nothing is nearer; keys know no negative distances and no NaN
        if (static_cast<int64_t>(asking.size()) == i) asking.emplace_back(depth);
        asking[i].restart(query_data + query * width, width, own_ids == nullptr ? 0 : own_ids[query], below[i]);
      }
      asked.take(query_data + first_query * width, below.data(), rows);
      for (int64_t panel = 0; panel < layout.panels(); ++panel) {
        const uint64_t belong = searched.searched(panel);
        if (belong == 0) continue;
        for (int64_t row = 0; row < rows; row += TILE_QUERIES) {
          find_candidates(candidates, asked, row, panel);
          for (int64_t i = row; i < std::min(rows, row + TILE_QUERIES); ++i) {
            const uint64_t nearer = candidates[i - row] & belong;
            if (nearer == 0) continue;
            asking[i].add(nearer, searched, panel);
            asked.set_limit(i, asking[i].limit());
          }
        }
      }
      for (int64_t i = 0; i < rows; ++i) {
        int64_t found = 0;
        const Key* const keys = asking[i].sorted(width, found);
        float* const distance = distance_data + (first_query + i) * k;
        int64_t* const position = position_data + (first_query + i) * k;
        for (int64_t j = 0; j < k; ++j) {
          distance[j] = j < found ? distance_of(keys[j]) : kInfinity;
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
