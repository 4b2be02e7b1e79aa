// From products of queries and keys to scores: scale, softcap, bias, slopes, and who sees whom.
//
//   S = softcap(scale q k^T) + bias - slope |j - i - offset|
#pragma once

#include "cuda/tile/fragment.h"

namespace torch_ext::cuda {

// Tiles [begin, end) of one side, each of `size` rows.
struct TileRange {
  int begin, end;
};

// Those tiles whose rows [first, last) lie within [0, length).
TORCH_EXT_INLINE TileRange tiles_between(int64_t first, int64_t last, int64_t length, int size) {
  first = first > 0 ? first : 0;
  last = last < length ? last : length;
  if (first >= last) return {0, 0};
  return {static_cast<int>(first / size), static_cast<int>((last + size - 1) / size)};
}

// The tiles of keys that the window shows to some query of [query, query + queries).
TORCH_EXT_INLINE TileRange visible_key_tiles(const Problem& p, int64_t query, int64_t queries,
                                             int size) {
  if (query + queries > p.query_length) queries = p.query_length - query;
  return tiles_between(query + p.offset - p.left, query + queries + p.offset + p.right,
                       p.key_length, size);
}

// The tiles of queries to which the window shows some key of [key, key + keys).
TORCH_EXT_INLINE TileRange visible_query_tiles(const Problem& p, int64_t key, int64_t keys,
                                               int size) {
  if (key + keys > p.key_length) keys = p.key_length - key;
  return tiles_between(key - p.offset - p.right, key + keys - p.offset + p.left, p.query_length,
                       size);
}

// What an entry of the scores is besides its product.
template <class T>
struct Score {
  bool is_visible = false;
  T value = 0;     // S
  T raw = 0;       // scale q k^T
  T cap = 0;       // tanh(raw / softcap) where there is one: its slope is (1 - cap) (1 + cap)
  T distance = 0;  // |j - i - offset| where there are slopes
};

// Whether scores take more than scale and window: then every entry runs through ScoreTile::score.
TORCH_EXT_INLINE bool has_score_options(const Problem& p) {
  return p.mask || p.bias || p.softcap > 0 || p.slopes;
}

// The scores of one tile of queries and one of keys. Rows and columns count from their first.
template <class T>
class ScoreTile {
 public:
  // The rows [query, query + queries) of `head` and the keys [key, key + keys).
  TORCH_EXT_DEVICE ScoreTile(const Problem& p, int64_t head, int64_t query, int queries,
                             int64_t key, int keys)
      : p_(p), scale_(static_cast<T>(p.scale)), diagonal_(key - query - p.offset) {
    first_ = within_int(-p.left - diagonal_);
    last_ = within_int(p.right - diagonal_);
    rows_ = smaller(queries, p.query_length - query);
    columns_ = smaller(keys, p.key_length - key);
    is_inside_ = rows_ == queries && columns_ == keys && first_ <= 1 - queries && last_ >= keys - 1;
    if (p.mask)
      mask_ = static_cast<const bool*>(p.mask.data) + head_offset(p, p.mask, head) +
              query * p.mask.row_stride + key * p.mask.col_stride;
    if (p.bias)
      bias_ = head_offset(p, p.bias, head) + query * p.bias.row_stride + key * p.bias.col_stride;
    if (p.slopes) slope_ = load<T>(p.slopes, head_offset(p, p.slopes, head));
  }

  // Whether the window, and the ends of the sequences, show every entry.
  TORCH_EXT_DEVICE bool is_inside() const { return is_inside_; }
  TORCH_EXT_DEVICE bool is_in_window(int row, int column) const {
    const int distance = column - row;
    return row < rows_ && column < columns_ && distance >= first_ && distance <= last_;
  }

  // With every option.
  TORCH_EXT_DEVICE Score<T> score(int row, int column, T product) const {
    Score<T> score;
    if (!is_in_window(row, column)) return score;
    if (p_.mask && !mask_[row * p_.mask.row_stride + column * p_.mask.col_stride]) return score;
    score.is_visible = true;
    score.raw = score.value = scale_ * product;
    if (p_.softcap > 0) {
      const T softcap = static_cast<T>(p_.softcap);
      score.cap = std::tanh(score.raw / softcap);
      score.value = softcap * score.cap;
    }
    if (p_.bias) {
      const T bias =
          load<T>(p_.bias, bias_ + row * p_.bias.row_stride + column * p_.bias.col_stride);
      score.value += bias;
      score.is_visible = bias != -kInfinity<T>;
    }
    if (p_.slopes) {
      score.distance = std::abs(static_cast<T>(diagonal_ + column - row));
      score.value -= slope_ * score.distance;
    }
    return score;
  }

 private:
  static TORCH_EXT_DEVICE int within_int(int64_t x) {
    constexpr int64_t kLarge = 1 << 30;
    return static_cast<int>(x < -kLarge ? -kLarge : x > kLarge ? kLarge : x);
  }
  static TORCH_EXT_DEVICE int smaller(int a, int64_t b) { return b < a ? static_cast<int>(b) : a; }

  const Problem& p_;
  T scale_, slope_ = 0;
  int64_t diagonal_;    // the distance of row 0 and column 0
  int first_, last_;    // visible: first <= column - row <= last
  int rows_, columns_;  // of the tile that exist
  bool is_inside_;
  const bool* mask_ = nullptr;
  int64_t bias_ = 0;
};

// exp(x). For 16-bit elements by the approximation of 2^x, whose error is far below their rounding.
template <class E, class T>
TORCH_EXT_DEVICE T exponential(T x) {
  if constexpr (sizeof(E) == 2)
    return exp2_fast(x * 1.44269504f);
  else
    return std::exp(x);
}

}  // namespace torch_ext::cuda
