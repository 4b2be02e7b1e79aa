#include "cpu/choices.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>

namespace torch_ext::cpu {
namespace {

// What each number may be: memory is sized by the same numbers, so any of these is safe.
struct Rule {
  std::string_view name;
  int64_t Choices::* number;
  int64_t least, most, multiple;
};
constexpr Rule kRules[] = {
    // Whole vectors of any level.
    {"tile_queries", &Choices::tile_queries, 16, 1024, 16},
    // Tiles start at whole pairs, and at whole counters of dropout.
    {"tile_keys", &Choices::tile_keys, 8, 1024, 8},
    {"task_tiles", &Choices::task_tiles, 1, 64, 1},
    {"chunk_keys", &Choices::chunk_keys, 8, 1 << 20, 1},
    {"chunk_queries", &Choices::chunk_queries, 8, 1 << 20, 1},
    {"most_chunks", &Choices::most_chunks, 1, 64, 1},
    {"kept_keys", &Choices::kept_keys, 0, 1 << 20, 1},
    {"partial_mib", &Choices::partial_mib, 1, 1024, 1},
    {"private_slice", &Choices::private_slice, 0, 1 << 24, 1},
    {"few_queries", &Choices::few_queries, 0, 64, 1},
    {"few_keys", &Choices::few_keys, 0, 64, 1},
    {"task_rows", &Choices::task_rows, 1, 256, 1},
    // Whole blocks of row_products.h.
    {"row_keys", &Choices::row_keys, 16, 4096, 16},
    {"row_chunk_numbers", &Choices::row_chunk_numbers, 1, 1 << 30, 1},
    {"most_row_chunks", &Choices::most_row_chunks, 1, 1024, 1},
    {"one_thread", &Choices::one_thread, 0, 1 << 30, 1},
    {"head_cost", &Choices::head_cost, 0, 1 << 20, 1},
    {"stream_mib", &Choices::stream_mib, 0, 1 << 20, 1},
};

[[noreturn]] void fail(const std::string& expected, std::string_view got) {
  throw std::runtime_error("torch_ext: expected " + expected + ", but got '" + std::string(got) +
                           "'");
}

const Rule& rule_of(std::string_view name, std::string_view entry) {
  std::string names;
  for (const Rule& rule : kRules) {
    if (rule.name == name) return rule;
    names += (names.empty() ? "" : ", ") + std::string(rule.name);
  }
  fail("TORCH_EXT_CHOICES to be a list like tile_keys=96,few_queries=8 of " + names, entry);
}

int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1) / by; }
int64_t round_up(int64_t n, int64_t multiple) { return divide_up(n, multiple) * multiple; }

// Chunks about `wanted` long.
Chunks cut(int64_t length, int64_t wanted, int64_t tile, int64_t most) {
  length = std::max<int64_t>(1, length);
  const int64_t tiles = divide_up(length, tile);
  const int64_t count = std::min({most, tiles, divide_up(length, wanted)});
  const int64_t size = divide_up(tiles, count) * tile;
  return {size, count, tiles - (size / tile - 1) * count, tile};
}

// For 65 queries 48 and 17 rather than 64 and 1, which would be little for a task or a vector; as
// even as whole vectors let tiles be.
int64_t even_tile(int64_t length, int64_t most) {
  constexpr int64_t kLanes = 16;  // of the widest vector
  length = std::max<int64_t>(1, length);
  return round_up(divide_up(length, divide_up(length, most)), kLanes);
}

bool fills_lanes(const Sizes& s) { return s.head_size >= s.lanes / 4; }

}  // namespace

Choices parse_choices(const char* list) {
  Choices numbers;
  for (std::string_view rest(list); !rest.empty();) {
    const std::string_view entry = rest.substr(0, rest.find(','));
    rest.remove_prefix(std::min(rest.size(), entry.size() + 1));
    const size_t equals = std::min(entry.find('='), entry.size());
    const Rule& rule = rule_of(entry.substr(0, equals), entry);
    const std::string_view digits = entry.substr(std::min(entry.size(), equals + 1));
    int64_t number = 0;
    const auto [end, error] = std::from_chars(digits.begin(), digits.end(), number);
    const bool is_number = error == std::errc() && end == digits.end();
    if (!is_number || number < rule.least || number > rule.most || number % rule.multiple != 0)
      fail(std::string(rule.name) + " in TORCH_EXT_CHOICES to be a " +
               (rule.multiple == 1 ? "number" : "multiple of " + std::to_string(rule.multiple)) +
               " from " + std::to_string(rule.least) + " to " + std::to_string(rule.most),
           digits);
    numbers.*rule.number = number;
  }
  return numbers;
}

const Choices& choices() {
  static const Choices numbers = [] {
    const char* list = std::getenv("TORCH_EXT_CHOICES");
    return list ? parse_choices(list) : Choices();
  }();
  return numbers;
}

bool has_few_queries(const Sizes& s, const Choices& numbers) {
  const int64_t most = s.terms > 1 ? numbers.few_queries * 3 / 5 : numbers.few_queries;
  return fills_lanes(s) && s.queries > 0 && s.queries <= most;
}

bool can_keep_rows(const Sizes& s, const Choices& numbers) { return s.keys <= numbers.kept_keys; }

Cut choose(const Sizes& s, const Choices& c) {
  Cut result{};
  result.few_queries = has_few_queries(s, c);
  result.few_keys =
      !result.few_queries && fills_lanes(s) && s.keys <= std::min(c.few_keys, c.tile_keys);
  result.tile_queries = even_tile(s.queries, c.tile_queries);
  result.tile_width = round_up(std::min(s.queries, result.tile_queries), s.lanes);
  result.tile_keys = c.tile_keys;
  // Eight tasks of a head or more, for its balance; what is short stays in the caches anyway.
  result.task_tiles = std::clamp<int64_t>(s.queries / c.tile_queries / 8, 1, c.task_tiles);
  result.key_chunks = cut(s.keys, c.chunk_keys, c.tile_keys, s.keeps_rows ? 1 : c.most_chunks);
  // Few keys and many queries, or whole rows: cut the queries instead, and the heads.
  const int64_t most_cuts = result.key_chunks.count > 1 ? 1 : c.most_chunks;
  result.query_chunks = cut(s.queries, c.chunk_queries, result.tile_queries, most_cuts);
  result.head_chunks = cut(s.group, divide_up(c.chunk_queries, std::max<int64_t>(1, s.queries)), 1,
                           most_cuts / result.query_chunks.count);
  if (!result.few_queries) return result;
  const int64_t columns = std::max<int64_t>(1, s.head_size + s.value_head_size);
  result.row_keys = c.row_keys;
  result.row_heads = std::min(s.group, std::max<int64_t>(1, c.task_rows / s.queries));
  result.row_chunks = cut(s.keys, std::max(c.row_keys, c.row_chunk_numbers / columns), c.row_keys,
                          c.most_row_chunks);
  return result;
}

int64_t Chunks::begin(int64_t i) const {
  return i * size - std::max<int64_t>(0, i - longest) * tile;
}

Cut choose(const Sizes& sizes) { return choose(sizes, choices()); }

int64_t most_threads(int64_t heads, const Sizes& s, const Choices& numbers) {
  // Lengths may be so large that their product has no int64_t.
  const double pairs = 1.0 * std::max<int64_t>(1, s.queries) * std::max<int64_t>(1, s.keys);
  const double of_head = numbers.head_cost + pairs * std::max(s.head_size, s.value_head_size);
  const bool is_small = heads * of_head <= numbers.one_thread;
  return is_small ? 1 : std::numeric_limits<int64_t>::max();
}

bool streams_results(int64_t bytes) { return bytes >> 20 >= choices().stream_mib; }

int64_t heads_at_once(int64_t heads, int64_t bytes) {
  heads = std::max<int64_t>(1, heads);
  const int64_t room = bytes == 0 ? heads : (choices().partial_mib << 20) / bytes;
  const int64_t most = std::clamp<int64_t>(room, 1, heads);
  return divide_up(heads, divide_up(heads, most));
}

}  // namespace torch_ext::cpu
