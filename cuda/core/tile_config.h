// The tile shapes of the forward kernels, and which of them a call gets: small printable values, chosen in host code
// and instantiated by the kernels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "core/block_range.h"
#include "core/macros.h"
#include "core/mask.h"
#include "core/tile_scheduler.h"

namespace flash3::core {

struct TileConfig {
  // Columns of Q and K, and of V, that the kernel is instantiated for; smaller head dims run in it with zero-filled
  // columns.
  int32_t head_dim, head_dim_v;
  int32_t block_m;  // query rows of a tile, 64 per consumer warpgroup
  int32_t block_n;  // keys of a block
  int32_t stages;   // K and V blocks in flight, each
  // Steps of 16 columns of Q that consumers keep in registers, as many as are left over: what the products do not read
  // of shared memory is there for what is loaded.
  int32_t kept_steps;
  int32_t q_stages;  // 2: Q of the next tile is loaded, and its first scores computed, while this tile ends
  // Tiles that a multiprocessor works on side by side: `streams` in one thread block of the warp-specialised kernel or
  // of the one for few keys, or one in each of `blocks_per_sm` thread blocks of the kernel for short sequences.
  int32_t streams;
  int32_t blocks_per_sm;
  // The softmax looks for the maxima of every block, and follows the running maximum where it has grown by much; see
  // OnlineSoftmax, also for the other way.
  bool exact_max;
  // The costs that decide between the configs of a head dim, as measured on an H200: clocks of a multiprocessor for a
  // tile, and for each of its key blocks in addition.
  int32_t tile_clocks, block_clocks;
  int32_t most_rows;  // longest query sequence that it is made for; 0: any
  bool pairs;         // there is also a kernel in which two neighbouring tiles share what is loaded of K and V
  int32_t most_keys;  // 0: any; else the kernel in which all keys of a sequence stay in shared memory

  constexpr bool is_of_class(const TileConfig &other) const {
    return head_dim == other.head_dim && head_dim_v == other.head_dim_v;
  }
  constexpr bool is_short() const { return blocks_per_sm > 1; }
  constexpr bool is_resident() const { return most_keys > 0; }
  // Each of the two warpgroups of a tile leaves out blocks at the end of it that none of its rows sees. Under a causal
  // mask there are some where a tile has more rows than a block keys. (Three or four have no registers for it: the loop
  // of 192 x 128 loses 1 % by it.)
  constexpr bool trims() const { return block_m == 128 && block_n < block_m && !is_wide(); }
  constexpr int32_t most_hidden() const { return trims() ? stages - 1 : 0; }  // the next one must have been loaded
  // Whether scores that go through softcap or ALiBi may do so in one step with the exponential, no maximum being looked
  // for. It takes more registers than four warpgroups leave.
  constexpr bool takes_modified_scores_directly() const { return !exact_max && streams * block_m <= 192; }
  // Whether there is also a kernel for nothing but a softcap. (At d 64 it gains nothing.)
  constexpr bool has_capped_kernel() const {
    return takes_modified_scores_directly() && block_m >= 128 && head_dim > 64;
  }
  // With the costs of a call with softcap or ALiBi, as measured at d 64 and 96. `masked`: tiles begin with a mask.
  constexpr TileConfig for_modified_scores(bool masked) const {
    TileConfig costs = *this;
    const bool three = block_m == 192;
    if (takes_modified_scores_directly()) {
      costs.tile_clocks += !three ? 1700 : masked ? 6000 : 3000;
      costs.block_clocks += costs.block_clocks * (three ? 10 : 9) / 100;
    } else {
      costs.block_clocks += costs.block_clocks * (is_short() || is_resident() ? 30 : 42) / 100;
    }
    return costs;
  }
  // The kernel for wide heads, in which two multiprocessors share the columns of a tile.
  constexpr bool is_wide() const { return head_dim > 256; }
};

// Wide heads are bound by the tensor cores: looking for the maximum costs them no time, and the way around it
// registers.
// clang-format off
inline constexpr TileConfig kTileConfigs[] = {
    // head_dim, head_dim_v, block_m, block_n, stages, kept_steps, q_stages, streams, blocks_per_sm, exact_max, tile_clocks, block_clocks, most_rows, pairs, most_keys
    {64, 64, 192, 128, 4, 0, 2, 1, 1, false, 5600, 2272, 0, false, 0},
    {64, 64, 256, 64, 4, 0, 2, 1, 1, false, 7000, 1555, 0, false, 0},
    {64, 64, 128, 64, 4, 0, 2, 2, 1, false, 3500, 797, 0, false, 0},
    {64, 64, 64, 128, 4, 0, 2, 1, 1, false, 3600, 1100, 0, false, 0},
    {64, 64, 64, 64, 1, 0, 1, 1, 4, true, 700, 1300, 256, false, 0},
    {64, 64, 64, 64, 8, 0, 1, 3, 1, true, 1300, 425, 0, false, 128},
    {96, 96, 128, 128, 2, 0, 2, 1, 1, false, 2800, 2300, 0, false, 0},
    {96, 96, 192, 96, 2, 0, 2, 1, 1, false, 5000, 2340, 0, false, 0},
    {96, 96, 64, 64, 1, 0, 1, 1, 3, true, 750, 1600, 256, false, 0},
    {96, 96, 64, 64, 4, 0, 1, 3, 1, true, 1450, 460, 0, false, 128},
    {128, 128, 128, 128, 2, 4, 2, 1, 1, false, 2800, 2600, 0, true, 0},
    {128, 128, 64, 128, 2, 0, 2, 1, 1, false, 3200, 1850, 0, false, 0},
    {128, 128, 64, 64, 1, 0, 1, 1, 3, true, 1400, 1850, 256, false, 0},
    {128, 128, 64, 64, 4, 0, 1, 3, 1, true, 1600, 500, 0, false, 128},
    {192, 128, 128, 128, 2, 4, 1, 1, 1, false, 0, 0, 0, true, 0},
    {192, 192, 128, 96, 2, 6, 1, 1, 1, true, 0, 0, 0, true, 0},
    {256, 256, 128, 80, 2, 4, 1, 1, 1, true, 7500, 2750, 0, true, 0},
    {256, 256, 64, 80, 2, 0, 1, 1, 1, true, 5100, 1960, 0, false, 0},
    {512, 512, 128, 64, 2, 0, 1, 1, 1, true, 0, 0, 0, false, 0},
};
// clang-format on

// The tiles of the kernels for caches, one for each class of head dims. Their producer needs more registers: two
// consumer warpgroups leave enough of them, three would not.
// clang-format off
inline constexpr TileConfig kCacheConfigs[] = {
    // as above
    {64, 64, 128, 128, 4, 0, 2, 1, 1, false, 2800, 1850, 0, false, 0},
    {96, 96, 128, 128, 2, 0, 2, 1, 1, false, 2800, 2050, 0, false, 0},
    {128, 128, 128, 128, 2, 2, 2, 1, 1, false, 2800, 2450, 0, false, 0},
    {192, 192, 128, 96, 2, 6, 1, 1, 1, true, 6000, 2650, 0, false, 0},
    {256, 256, 128, 80, 2, 0, 1, 1, 1, true, 9000, 2920, 0, false, 0},
};
// clang-format on

inline constexpr int32_t kNumCacheConfigs = sizeof(kCacheConfigs) / sizeof(kCacheConfigs[0]);
inline constexpr int32_t kNumTileConfigs = sizeof(kTileConfigs) / sizeof(kTileConfigs[0]);

// The smallest class of head dims that holds d_qk and d_v, by its first config; NULL when none does.
constexpr const TileConfig *tile_config(int32_t head_dim, int32_t head_dim_v) {
  for (const TileConfig &config : kTileConfigs) {
    if (head_dim <= config.head_dim && head_dim_v <= config.head_dim_v) return &config;
  }
  return nullptr;
}

// The same for calls with a cache.
constexpr const TileConfig *cache_config(int32_t head_dim, int32_t head_dim_v) {
  const int32_t wider = head_dim > head_dim_v ? head_dim : head_dim_v;
  for (const TileConfig &config : kCacheConfigs) {
    if (wider <= config.head_dim) return &config;
  }
  return nullptr;
}

// What one head of one sequence costs, roughly. Long sequences are not counted tile by tile but taken as without mask,
// which makes less and less of a difference.
inline int64_t estimated_clocks(const TileConfig &config, const Mask &mask) {
  constexpr int32_t kMostCounted = 8192;
  if (mask.seqlen_q > kMostCounted) {
    const int64_t tiles = ceil_div(mask.seqlen_q, config.block_m);
    const int64_t blocks = ceil_div(mask.seqlen_k, config.block_n);
    return tiles * (config.tile_clocks + blocks * config.block_clocks);
  }
  int64_t clocks = 0;
  for (int64_t first = 0; first < mask.seqlen_q; first += config.block_m) {
    const int64_t end = first + config.block_m < mask.seqlen_q ? first + config.block_m : mask.seqlen_q;
    const BlockRange range = block_range(mask, static_cast<int32_t>(first), static_cast<int32_t>(end), config.block_n);
    // Where the tile's first warpgroup leaves blocks out, the other one takes half the time for them.
    const int32_t seen_end = mask.key_end(static_cast<int32_t>(first) + 63) - (range.end - 1) * config.block_n;
    const int32_t hidden = hidden_blocks(range, seen_end, config.block_n, config.most_hidden());
    clocks += config.tile_clocks + int64_t{2 * range.count() - hidden} * config.block_clocks / 2;
  }
  return clocks;
}

// Whether the tiles of a dense call, `rows` queries a sequence, are computed in pairs: all see the same keys then, and
// few enough are computed twice, since the last one of an odd number is.
constexpr bool takes_pairs(const TileConfig &config, const Window &window, int64_t rows) {
  constexpr int64_t kManyTiles = 16;
  const int64_t tiles = rows / config.block_m + (rows % config.block_m != 0);
  return config.pairs && !window.limited() && (tiles % 2 == 0 || tiles > kManyTiles);
}

// The lengths of a call as far as the host knows them: those of every sequence, or only what they are on average.
struct Workload {
  Mask mask;                     // with the mean lengths
  bool q_vary, k_vary;           // sequences have different lengths
  int64_t longest_q, longest_k;  // as the caller says, where they vary; else as all are
  int64_t sequences;
  int64_t columns, kv_columns;  // query heads and KV heads of all sequences
  int32_t multiprocessors;
  bool packed_q;         // their places are in device memory
  bool device_lengths;   // lengths are
  bool modifies_scores;  // by softcap or ALiBi

  bool fits_resident(const TileConfig &config) const { return mask.seqlen_k > 0 && longest_k <= config.most_keys; }

  // Lengths that vary are taken as spread evenly around the mean, up to the longest and between none and twice the
  // mean.
  static constexpr int32_t kSamples = 8;

  Mask sample(int32_t i) const {
    const auto length = [=](int32_t mean, int64_t longest, bool varies) {
      if (!varies) return mean;
      const int64_t most = 2 * int64_t{mean};
      const int64_t spread = std::clamp(longest, int64_t{mean}, most) - mean;
      const int64_t part = mean - spread + spread * (2 * i + 1) / kSamples;
      return static_cast<int32_t>(std::clamp(part, int64_t{1}, int64_t{INT32_MAX}));
    };
    return {mask.window, length(mask.seqlen_q, longest_q, q_vary), length(mask.seqlen_k, longest_k, k_vary)};
  }
};

// The same of a call, which may have what kernels for pairs do not.
inline bool takes_pairs(const TileConfig &config, const Workload &work) {
  return !work.device_lengths && !work.modifies_scores && takes_pairs(config, work.mask.window, work.mask.seqlen_q);
}

// Whether the tiles of a call are all alike, so that multiprocessors are through with them at the same time.
inline bool comes_in_rounds(const TileConfig &config, const Workload &work) {
  const bool alike = !work.mask.window.limited() && !work.q_vary && !work.k_vary && work.mask.seqlen_q > 0;
  return alike && !config.is_short() && !config.is_resident();
}

// What they cost then, `of_column` being what those of one head of a sequence do. The last one of few rounds takes as
// long as the others, however few tiles it has; in many rounds multiprocessors drift apart, and it takes its share. A
// pair of tiles has two multiprocessors.
inline double clocks_of_rounds(const TileConfig &config, const Workload &work, int64_t of_column) {
  constexpr double kFewRounds = 5;  // of every stream; twice as many are many
  const int64_t tiles = ceil_div(work.mask.seqlen_q, config.block_m);
  const bool paired = takes_pairs(config, work);
  const double at_once = std::max(work.multiprocessors / (paired ? 2 : 1), 1);
  const double rounds = static_cast<double>(work.columns * (paired ? (tiles + 1) / 2 : tiles)) / at_once;
  const double few = std::clamp(2. - rounds / config.streams / kFewRounds, 0., 1.);
  return (rounds + few * (std::ceil(rounds) - rounds)) * static_cast<double>(of_column / tiles);
}

// Of a call: what all its tiles cost, shared out to the multiprocessors, or what its longest tile takes where there are
// few. Beside others a tile takes longer than it costs, alone less than beside others.
inline double estimated_clocks(const TileConfig &config, const Workload &work) {
  int64_t clocks = 0;
  if (!work.q_vary && !work.k_vary) {
    clocks = estimated_clocks(config, work.mask);
  } else {
    for (int32_t i = 0; i < Workload::kSamples; ++i) {
      clocks += estimated_clocks(config, work.sample(i)) / Workload::kSamples;
    }
  }
  // Under a causal mask the last one.
  const int32_t first_row = work.mask.seqlen_q > config.block_m ? work.mask.seqlen_q - config.block_m : 0;
  const int64_t most_blocks =
      work.mask.seqlen_q > 0 ? block_range(work.mask, first_row, work.mask.seqlen_q, config.block_n).count() : 0;
  double beside = static_cast<double>(int64_t{config.streams} * config.blocks_per_sm);
  if (config.is_short() || config.is_resident()) {
    // As many as there are. Of two streams all count: so those kernels were chosen that were measured as best.
    const double tiles = static_cast<double>(work.columns) * ceil_div(work.mask.seqlen_q, config.block_m);
    beside = std::max(1., std::min(beside, tiles / work.multiprocessors));
  }
  const double longest =
      static_cast<double>(config.tile_clocks + most_blocks * config.block_clocks) * (0.4 + 0.6 * beside);
  double shared = static_cast<double>(clocks) * static_cast<double>(work.columns) / work.multiprocessors;
  if (comes_in_rounds(config, work)) shared = clocks_of_rounds(config, work, clocks);
  // In the kernel for few keys the first KV head of a thread block is loaded at once, and its second one comes late.
  constexpr double kSecondHead = 1000;
  if (config.is_resident() && work.kv_columns > work.multiprocessors) shared += kSecondHead;
  // And it shares out whole heads, where lengths are in device memory.
  const bool many_rows = ceil_div(work.mask.seqlen_q, config.block_m) > config.streams;
  if (config.is_resident() && work.device_lengths && many_rows) {
    const int64_t most = (work.columns + work.multiprocessors - 1) / work.multiprocessors;
    shared = std::max(shared, static_cast<double>(clocks) * static_cast<double>(most));
  }
  return shared > longest ? shared : longest;
}

// Of so many packed sequences a kernel adds the lengths up itself; for more of them another one, ahead of it, prepares
// the order of tiles once for all.
inline constexpr int32_t kMostAddedUp = 256;

// What a packed call of many sequences waits for, before a kernel that needs the order of tiles prepared: as measured
// on an H200, where all tiles of 64 rows run at once. With more tiles the estimates are less exact than this is large,
// and decide alone. The kernels for short sequences and few keys have nothing prepared.
inline int64_t prepare_clocks(const TileConfig &config, const Workload &work) {
  constexpr int64_t kClocks = 6500;
  constexpr int32_t kTilesAtOnce = 3;  // a multiprocessor
  if (config.is_short() || config.is_resident() || !work.packed_q || work.sequences <= kMostAddedUp) return 0;
  const int64_t tiles = work.columns * ceil_div(work.mask.seqlen_q, 64);
  return tiles <= int64_t{kTilesAtOnce} * work.multiprocessors ? kClocks : 0;
}

// Among the configs of a class of head dims, that of `member`, the index of the one that costs least.
inline int32_t cheapest_config(const TileConfig &member, const Workload &work) {
  int32_t best = -1;
  double least = 0;
  const bool masked = work.mask.window.limited();
  for (int32_t i = 0; i < kNumTileConfigs; ++i) {
    const TileConfig config = work.modifies_scores ? kTileConfigs[i].for_modified_scores(masked) : kTileConfigs[i];
    if (!config.is_of_class(member)) continue;
    if (config.most_rows > 0 && work.longest_q > config.most_rows) continue;
    if (config.is_resident() && !work.fits_resident(config)) continue;
    const double clocks = estimated_clocks(config, work) + static_cast<double>(prepare_clocks(config, work));
    if (best >= 0 && clocks >= least) continue;
    best = i;
    least = clocks;
  }
  return best;
}

}  // namespace flash3::core
