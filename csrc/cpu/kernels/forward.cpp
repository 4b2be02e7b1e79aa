// (q, k, v) -> (o, lse, residual) with an online softmax.
//
// Task: a few tiles of queries of one head. Loop: over the tiles of keys that the window shows to
// them, then the tiles of queries, so that keys and values come from memory, and 16-bit ones are
// converted, once for all tiles of the task. Reads q once and k, v once per task; writes o and lse
// once; nothing of size N x M exists.
#include "cpu/kernels/entry_points.h"
#include "cpu/kernels/few_queries/few_queries.h"
#include "cpu/kernels/softmax/online_softmax.h"
#include "cpu/kernels/tile/dropout.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

template <class E>
class ForwardTask {
 public:
  ForwardTask(const ForwardProblem& p, const Cut& cut, void* memory)
      : p_(p), cut_(cut), rule_(p), x_(p, cut, memory) {}

  // All tiles of `block`: its queries are those of several.
  void run(const TileRange& block) {
    const int64_t tiles = divide_up(block.queries, cut_.tile_queries);
    for (int64_t i = 0; i < tiles; ++i) start(tile(block, i), scratch(i, tile(block, i)));
    const KeyRange range = visible_keys(p_, block.query, block.queries);
    for (int64_t key = range.begin / cut_.tile_keys * cut_.tile_keys; key < range.end;
         key += cut_.tile_keys) {
      const int64_t keys = smaller(cut_.tile_keys, range.end - key);
      is_loaded_ = false;
      ahead_.clear();
      if (key + keys < range.end) will_read_keys(block.head, key + keys, range.end);
      for (int64_t i = 0; i < tiles; ++i) {
        TileRange t = tile(block, i);
        const KeyRange seen = visible_keys(p_, t.query, t.queries);
        if (seen.end <= key || key + keys <= seen.begin) continue;
        // Whole elements: the other half of a pair may be a key that other tiles see.
        t.key = key;
        t.keys = smaller(keys, round_up(seen.end - key, kTerms<E>));
        will_read_next_additive(block, i, t, range.end);
        add_keys(t, scratch(i, t), keys, seen.end <= key + keys);
      }
    }
    for (int64_t i = 0; i < tiles; ++i) {
      const TileRange t = tile(block, i);
      const ForwardScratch<E> x = scratch(i, t);
      if (!*x.is_written) finish_output(p_, x, t);
      write_logsumexp(p_, t.head, t.query, t.queries, x.row_max, x.row_sum);
    }
  }

 private:
  using T = SumOf<E>;
  using V = Vec<T>;

  TileRange tile(const TileRange& block, int64_t index) const {
    TileRange t = block;
    t.query += index * cut_.tile_queries;
    t.queries = smaller(cut_.tile_queries, block.query + block.queries - t.query);
    t.width = round_up(t.queries, V::kSize);
    return t;
  }
  ForwardScratch<E> scratch(int64_t index, const TileRange& t) const {
    return x_.tile(index, t.width);
  }

  // The tile of keys from `key` on.
  void will_read_keys(int64_t head, int64_t key, int64_t end) {
    const int64_t keys = smaller(cut_.tile_keys, end - key);
    ahead_.will_read(p_.key, head_offset(p_, p_.key, head, p_.group), key, keys, p_.head_size);
    ahead_.will_read(p_.value, head_offset(p_, p_.value, head, p_.group), key, keys,
                     p_.value_head_size);
  }
  // What is added to the scores of the tile after `t`, which is number `index` of the block.
  void will_read_next_additive(const TileRange& block, int64_t index, const TileRange& t,
                               int64_t end) {
    if (!p_.bias && !p_.mask) return;
    const bool is_last = block.query + block.queries == t.query + t.queries;
    TileRange next = tile(block, is_last ? 0 : index + 1);
    next.key = is_last ? t.key + cut_.tile_keys : t.key;
    next.keys = smaller(cut_.tile_keys, end - next.key);
    if (next.keys > 0) will_read_additive(p_, next, ahead_);
  }

  void start(const TileRange& t, const ForwardScratch<E>& x) const {
    const int64_t offset = head_offset(p_, p_.query, t.head);
    if (!has_few_keys()) {
      read_ahead(p_.query, offset, t.query, t.queries, p_.head_size);
      pack_transposed<E>(p_.query, offset, t.query, t.queries, p_.head_size, x.q, x.width);
    }
    const SoftmaxStart<T> first = softmax_start<T>(p_, t.head);
    for (int64_t i = 0; i < x.width; i += V::kSize) {
      V::fill(first.max).store(x.row_max + i);
      V::fill(first.sum).store(x.row_sum + i);
    }
    *x.is_started = *x.is_written = false;
  }

  // k and v of a tile of keys, for the first tile of queries that sees some of it.
  void load_keys(const TileRange& t, int64_t keys) {
    if (is_loaded_) return;
    is_loaded_ = true;
    const int64_t offset = head_offset(p_, p_.key, t.head, p_.group);
    if (has_few_keys()) {
      const auto k = pack_right<E>(p_.key, offset, t.key, keys, p_.head_size, x_.k);
      k_ = {k.data, k.stride, 1};
    } else {
      k_ = pack_left<E>(p_.key, offset, t.key, keys, p_.head_size, x_.k);
    }
    v_ = pack_right<E>(p_.value, head_offset(p_, p_.value, t.head, p_.group), t.key, keys,
                       p_.value_head_size, x_.v);
  }

  bool has_few_keys() const { return kTerms<E> == 1 && cut_.few_keys; }

  // s^T = k q^T
  void score(const TileRange& t, const ForwardScratch<E>& x, bool finds_largest) {
    if constexpr (kTerms<E> == 1) {
      if (has_few_keys()) {
        const StoredRows q{p_.query, head_offset(p_, p_.query, t.head), t.query, t.queries,
                           p_.head_size};
        return row_products<T>(t.keys, {k_.data, k_.row}, q, {x.scores, x.width}, x.q);
      }
    }
    for (int64_t i = 0; finds_largest && i < x.width; i += V::kSize)
      V::fill(-kInfinity<T>).store(x.largest + i);
    product_of_seen<E, false>(p_, t, x.depth, k_, x.q, x.scores, &ahead_,
                              finds_largest ? x.largest : nullptr);
  }

  // `keys`: how many of the tile some tile of queries sees. `is_last`: these see none behind it.
  void add_keys(const TileRange& t, const ForwardScratch<E>& x, int64_t keys, bool is_last) {
    const Visibility seen = additive_edge<T>(p_, t, x.additive, x.spare);
    if (seen == Visibility::kNone) return;
    load_keys(t, keys);
    // Then the largest score is the largest product times the scale.
    const bool finds_largest =
        seen == Visibility::kAll && !rule_.is_capped && p_.scale >= 0 && !has_few_keys();
    score(t, x, finds_largest);
    with_cap(rule_.is_capped, [&](auto capped) {
      for_each_column<T>(p_, t, seen, [&](int64_t i, int64_t plain, int64_t end) {
        softmax_column<capped.value>(x, i, plain, end, rule_, finds_largest);
      });
    });
    if (p_.dropout_p > 0) {
      dropout_tile(p_, t, x.z);
      multiply_tile(t.keys * x.width, x.z, x.scores);
    }
    // o += p v
    const auto weights = factor_over_keys<E>(x.scores, t.keys, x.width, x.weights);
    if (is_last && write_output(t, x, weights, {seen, x.additive})) return;
    const auto add = [&](auto accumulate) {
      sum_over_keys<E, accumulate.value>(p_, t, weights, {seen, x.additive}, v_, {x.o, x.columns},
                                         x.spare_v, &ahead_);
    };
    if (*x.is_started) {
      rescale_output(x, t.queries);
      add(Bool<true>());
    } else {
      *x.is_started = true;
      add(Bool<false>());
    }
  }

  // o = p v / l where it belongs, if no tile of keys came before and p hides no inf or NaN of v.
  bool write_output(const TileRange& t, const ForwardScratch<E>& x, Broadcast<E> weights,
                    Hidden<T> hidden) {
    if (*x.is_started || !is_readable_in_place<T>(p_.output, p_.value_head_size, true) ||
        seen_by<E>(p_, t, hidden, v_, t.keys, x.columns) != Visibility::kAll)
      return false;
    invert_sums(x);
    const Rows<T> o{static_cast<T*>(p_.output.data) + head_offset(p_, p_.output, t.head) +
                        t.query * p_.output.row_stride,
                    p_.output.row_stride};
    for_each_step_of_queries(p_, t, [&](int64_t i, int64_t width, int64_t keys) {
      tile_product<E, false>(smaller(width, t.queries - i), x.columns, elements<E>(keys),
                             {weights.data + i * weights.row, weights.row, weights.depth}, v_,
                             {o.data + i * o.stride, o.stride}, &ahead_, {x.rescale + i});
    });
    clear_unweighted(x, t, o);
    return *x.is_written = true;
  }

  const ForwardProblem& p_;
  const Cut& cut_;
  ScoreRule<T> rule_;
  ForwardScratch<E> x_;
  Ahead ahead_;
  bool is_loaded_ = false;
  Broadcast<E> k_{};
  Rows<const E> v_{};
};

template <class E>
void run_forward(const ForwardProblem& p) {
  const Cut cut = cut_of<SumOf<E>>(p);
  const ForwardScratch<E> size(p, cut, nullptr);
  for_each_query_block(
      p, cut, cut.task_tiles, size.bytes,
      [&](const TileRange& block, void* scratch) { ForwardTask<E>(p, cut, scratch).run(block); });
}

}  // namespace

void forward(const ForwardProblem& problem) {
#ifdef __AVX512BF16__
  // Few queries wait for memory, not for products.
  if (has_few_queries(problem)) return avx512::forward(problem);
  run_forward<Pair>(problem);
#else
  if (has_few_queries(problem)) return few_queries_forward(problem);
  if (problem.query.dtype == DType::Float64)
    run_forward<double>(problem);
  else
    run_forward<float>(problem);
#endif
}

}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
