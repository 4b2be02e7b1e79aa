// (q, k, v) -> (o, lse, residual) for few queries.
//
// Task: one chunk of the keys of a key head, with some of the query heads that read it; loop: tiles
// of keys. Reads k and v once. Each chunk leaves a Partial for every row; those of a row are merged
// in the order of the chunks.
#include "cpu/kernels/entry_points.h"
#include "cpu/kernels/few_queries/few_queries.h"
#include "cpu/kernels/softmax/partial_softmax.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

template <class T>
struct FewForwardScratch {
  int64_t rows;           // of a task
  int64_t columns;        // D in whole vectors
  int64_t value_columns;  // E in whole vectors
  T* q;                   // (rows, columns)
  T* scores;              // (rows, keys): s, then p
  T* additive;            // (rows, keys)
  T* z;                   // (rows, keys), with dropout
  T* stored;     // (keys, columns or value_columns), where key or value cannot be read in place
  T* spare;      // for a tile of scores or of v
  T *max, *sum;  // (rows) of one tile: of its scores, of exp(s - max)
  T* o;          // (rows, value_columns) of one tile
  T* partial;    // (rows) of a Partial each, where there is one chunk
  T* merged;     // one Partial
  int64_t bytes;

  FewForwardScratch(const Problem& p, const Cut& cut, void* memory) {
    Scratch scratch(memory);
    rows = cut.row_heads * p.query_length;
    columns = round_up(p.head_size, Vec<T>::kSize);
    value_columns = round_up(p.value_head_size, Vec<T>::kSize);
    const int64_t keys = row_width(smaller(p.key_length, cut.row_keys));
    const int64_t widest = larger(columns, value_columns);
    q = scratch.take<T>(rows * columns);
    scores = scratch.take<T>(rows * keys);
    additive = scratch.take<T>(rows * keys);
    z = scratch.take<T>(p.dropout_p > 0 ? rows * keys : 0);
    stored = scratch.take<T>(keys * widest);
    spare = scratch.take<T>(keys * larger(p.query_length, widest));
    max = scratch.take<T>(rows);
    sum = scratch.take<T>(rows);
    o = scratch.take<T>(rows * value_columns);
    partial = scratch.take<T>(rows * Partial<T>::size(value_columns));
    merged = scratch.take<T>(Partial<T>::size(value_columns));
    bytes = scratch.used();
  }
};

// Lanes of a row beyond its keys, -inf.
template <class T>
TORCH_EXT_INLINE Vec<T> hide_beyond(const RowTile& t, int64_t j, Vec<T> x) {
  using V = Vec<T>;
  if (j + V::kSize <= t.keys) return x;
  return if_less(V::fill(static_cast<T>(j)) + V::iota(), V::fill(static_cast<T>(t.keys)), x,
                 V::fill(-kInfinity<T>));
}

// The largest softcap(c s) + b of a row; s becomes it unless that is c s alone.
template <bool kAdditive, bool kCapped, class T>
TORCH_EXT_INLINE T score_row(const ScoreRule<T>& rule, const RowTile& t, const T* additive, T* s) {
  using V = Vec<T>;
  V u, largest = V::fill(-kInfinity<T>);
  for (int64_t j = 0; j < t.width; j += V::kSize) {
    const V b = kAdditive ? V::load(additive + j) : V::fill(0);
    const V score =
        hide_beyond<T>(t, j, rule.template score<kAdditive, kCapped>(V::load(s + j), b, &u));
    if constexpr (kAdditive || kCapped) score.store(s + j);
    largest = max(score, largest);
  }
  return max_lanes(largest);
}

// p = exp(score - m) along a row, rounded as in weights.h; returns the sum.
template <bool kIsScore, class T>
TORCH_EXT_INLINE T exp_row(const ScoreRule<T>& rule, const RowTile& t, T max, T* s) {
  using V = Vec<T>;
  const V finite_max = V::fill(max == -kInfinity<T> ? 0 : max);
  V sum = V::fill(0);
  for (int64_t j = 0; j < t.width; j += V::kSize) {
    const V x = V::load(s + j);
    const V score = hide_beyond<T>(t, j, kIsScore ? x : x * rule.scale);
    const V p = exp_without_overflow(score - finite_max);
    p.store(s + j);
    sum = sum + p;
  }
  return sum_lanes(sum);
}

template <class T>
class FewForwardTask {
 public:
  FewForwardTask(const ForwardProblem& p, const Cut& cut, const Problem& transposed, void* memory)
      : p_(p), cut_(cut), transposed_(transposed), rule_(p), x_(p, cut, memory) {}

  // Query heads [head, head + heads), keys [begin, end). `partials`: one for each row, `step`
  // elements apart.
  void run(int64_t head, int64_t heads, int64_t begin, int64_t end, T* partials, int64_t step) {
    rows_ = heads * p_.query_length;
    for (int64_t i = 0; i < rows_; ++i)
      Partial<T>{partials + i * step, x_.value_columns}.start({-kInfinity<T>, 0});
    for (int64_t h = 0; h < heads; ++h)
      pack_rows<T>(p_.query, head_offset(p_, p_.query, head + h), 0, p_.query_length, p_.head_size,
                   x_.q + h * p_.query_length * x_.columns, x_.columns);
    const KeyRange range = visible_keys(p_, 0, p_.query_length);
    const int64_t keys = cut_.row_keys;
    RowTile t{head, heads, larger(begin, range.begin / keys * keys), 0, 0};
    for (end = smaller(end, range.end); t.key < end; t.key += keys) {
      t.keys = smaller(keys, end - t.key);
      t.width = row_width(t.keys);
      add_tile(t, partials, step);
    }
  }

  const FewForwardScratch<T>& scratch() const { return x_; }

 private:
  void add_tile(const RowTile& t, T* partials, int64_t step) {
    const Visibility seen = additive_rows<T>(transposed_, t, x_.additive, x_.spare);
    if (seen == Visibility::kNone) return;
    // s = q k^T
    const StoredRows k{p_.key, head_offset(p_, p_.key, t.head, p_.group), t.key, t.keys,
                       p_.head_size};
    row_products<T>(rows_, {x_.q, x_.columns}, k, {x_.scores, t.width}, x_.stored);
    with_score_kind(seen, rule_.is_capped, [&](auto additive, auto capped) {
      for (int64_t i = 0; i < rows_; ++i) {
        T* s = x_.scores + i * t.width;
        x_.max[i] = score_row<additive.value, capped.value>(rule_, t, x_.additive + i * t.width, s);
        x_.sum[i] = exp_row<(additive.value || capped.value)>(rule_, t, x_.max[i], s);
      }
    });
    if (p_.dropout_p > 0) {
      dropout_rows(p_, t, x_.z);
      multiply_tile(rows_ * t.width, x_.z, x_.scores);
    }
    weigh_values(t, seen);
    for (int64_t i = 0; i < rows_; ++i)
      Partial<T>{partials + i * step, x_.value_columns}.add(x_.o + i * x_.value_columns, x_.max[i],
                                                            x_.sum[i]);
  }

  // o = p v of one tile
  void weigh_values(const RowTile& t, Visibility seen) {
    const StoredRows v{p_.value, head_offset(p_, p_.value, t.head, p_.group), t.key, t.keys,
                       p_.value_head_size};
    weigh_tile<T>(rows_, t, x_.scores, seen, x_.additive, v, {x_.o, x_.value_columns}, x_.stored,
                  x_.spare);
  }

  const ForwardProblem& p_;
  const Cut& cut_;
  const Problem& transposed_;
  ScoreRule<T> rule_;
  FewForwardScratch<T> x_;
  int64_t rows_ = 0;
};

template <class T>
void run_few_forward(const ForwardProblem& p) {
  const Cut cut = cut_of<T>(p);
  const FewForwardScratch<T> size(p, cut, nullptr);
  const Chunks chunks = cut.row_chunks;
  const Problem flipped = transposed(p);
  const int64_t n = p.query_length, heads = p.key_heads();
  const int64_t row_blocks = divide_up(p.group, cut.row_heads);
  const int64_t partial = Partial<T>::size(size.value_columns);
  // (key heads, chunks, group * N) of a Partial each
  const int64_t step = p.group * n * partial, of_head = chunks.count * step;
  const bool is_whole = chunks.count == 1;
  const int64_t bytes = is_whole ? 0 : of_head * static_cast<int64_t>(sizeof(T));
  const int64_t wave = heads_at_once(heads, bytes);
  const Buffer buffer(wave * bytes);

  for (int64_t first = 0; first < heads; first += wave) {
    const int64_t count = smaller(wave, heads - first);
    const auto chunk_task = [&](int64_t task, void* scratch) {
      const int64_t block = task % row_blocks, chunk = task / row_blocks % chunks.count;
      const int64_t in_wave = task / row_blocks / chunks.count;
      const int64_t in_group = block * cut.row_heads;
      const int64_t head = (first + in_wave) * p.group + in_group;
      const int64_t block_heads = smaller(cut.row_heads, p.group - in_group);
      FewForwardTask<T> run(p, cut, flipped, scratch);
      T* const partials = is_whole ? run.scratch().partial
                                   : static_cast<T*>(buffer.data()) + in_wave * of_head +
                                         chunk * step + in_group * n * partial;
      run.run(head, block_heads, chunks.begin(chunk),
              smaller(p.key_length, chunks.begin(chunk + 1)), partials, partial);
      if (!is_whole) return;
      T* const merged = run.scratch().merged;
      for (int64_t i = 0; i < block_heads * n; ++i)
        finish_row(p, head + i / n, i % n, partials + i * partial, 0, 1, merged);
    };
    parallel_tasks(count * chunks.count * row_blocks, size.bytes, chunk_task, most_threads(p));
    if (is_whole) continue;
    const auto row_task = [&](int64_t row, void* scratch) {
      const int64_t in_wave = row / (p.group * n), in_head = row % (p.group * n);
      finish_row(p, (first + in_wave) * p.group + in_head / n, in_head % n,
                 static_cast<T*>(buffer.data()) + in_wave * of_head + in_head * partial, step,
                 chunks.count, static_cast<T*>(scratch));
    };
    parallel_tasks(count * p.group * n, partial * static_cast<int64_t>(sizeof(T)), row_task,
                   most_threads(p));
  }
}

}  // namespace

void few_queries_forward(const ForwardProblem& problem) {
  if (problem.query.dtype == DType::Float64)
    run_few_forward<double>(problem);
  else
    run_few_forward<float>(problem);
}

}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
