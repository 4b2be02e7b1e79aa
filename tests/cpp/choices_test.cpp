// What is chosen for the sizes of a problem, and what TORCH_EXT_CHOICES may say.
#include "cpu/choices.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace torch_ext::cpu {
namespace {

Sizes sizes(int64_t n, int64_t m, int64_t d = 64, int64_t group = 1) {
  return {n, m, d, d, group, 16};
}

std::string error_of(const char* list) {
  try {
    parse_choices(list);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

TEST(ChoicesTest, FewQueriesUpToTheBreakEven) {
  const struct {
    int64_t n, lanes, terms;
    bool few;
  } table[] = {{0, 16, 1, false},  {1, 16, 1, true},        {9, 16, 1, true},  {10, 16, 1, true},
               {11, 16, 1, false}, {10, 8, 1, true},        {11, 8, 1, false}, {10, 4, 1, true},
               {11, 4, 1, false},  {1 << 30, 16, 1, false}, {1, 16, 2, true},  {6, 16, 2, true},
               {7, 16, 2, false}};
  for (const auto& [n, lanes, terms, few] : table)
    for (const int64_t m : {0, 1, 100000}) {
      Sizes s = sizes(n, m);
      s.lanes = lanes;
      s.terms = terms;
      EXPECT_EQ(choose(s).few_queries, few) << n << " " << lanes << " " << terms;
    }
  Sizes narrow = sizes(1, 4096);
  narrow.head_size = narrow.lanes / 4;
  EXPECT_TRUE(choose(narrow).few_queries);
  --narrow.head_size;
  EXPECT_FALSE(choose(narrow).few_queries);
  Choices never;
  never.few_queries = 0;
  EXPECT_FALSE(choose(sizes(1, 4096), never).few_queries);
}

TEST(ChoicesTest, FewKeysUnlessQueriesAreFewToo) {
  EXPECT_TRUE(choose(sizes(100, 1)).few_keys);
  EXPECT_TRUE(choose(sizes(100, Choices().few_keys)).few_keys);
  EXPECT_FALSE(choose(sizes(100, Choices().few_keys + 1)).few_keys);
  EXPECT_FALSE(choose(sizes(1, 1)).few_keys);
  EXPECT_FALSE(choose(sizes(100, 1, 3)).few_keys);
  EXPECT_FALSE(choose(sizes(100, 1), parse_choices("few_keys=0")).few_keys);
  EXPECT_FALSE(choose(sizes(100, 9), parse_choices("few_keys=64,tile_keys=8")).few_keys);
}

TEST(ChoicesTest, TilesAreNoWiderThanTheQueriesInWholeVectors) {
  const struct {
    int64_t n, lanes, width;
  } table[] = {{0, 16, 0},  {1, 16, 16}, {16, 16, 16},     {17, 8, 24},
               {63, 4, 64}, {64, 8, 64}, {1 << 30, 16, 64}};
  for (const auto& [n, lanes, width] : table) {
    Sizes s = sizes(n, 100);
    s.lanes = lanes;
    EXPECT_EQ(choose(s).tile_width, width) << n;
  }
}

TEST(ChoicesTest, TilesOfAHeadAreAsEvenAsMultiplesOf16) {
  const struct {
    int64_t n, queries;
  } table[] = {{0, 16},   {16, 16},  {17, 32},  {64, 64},   {65, 48},     {96, 48},
               {97, 64},  {128, 64}, {129, 48}, {144, 48},  {145, 64},    {192, 64},
               {193, 64}, {200, 64}, {257, 64}, {1000, 64}, {1 << 30, 64}};
  for (const auto& [n, queries] : table)
    EXPECT_EQ(choose(sizes(n, 100)).tile_queries, queries) << n;
  for (const int64_t most : {16, 64, 80, 1024}) {
    const Choices c = parse_choices(("tile_queries=" + std::to_string(most)).c_str());
    for (int64_t n = 1; n < 3000; ++n) {
      const int64_t tile = choose(sizes(n, 100), c).tile_queries;
      EXPECT_TRUE(tile > 0 && tile <= most && tile % 16 == 0) << n << " " << most;
      EXPECT_EQ((n + tile - 1) / tile, (n + most - 1) / most) << n << " " << most;
      EXPECT_LT(tile - 16, static_cast<double>(n) / ((n + most - 1) / most)) << n << " " << most;
    }
  }
}

TEST(ChoicesTest, LongHeadsAloneShareTilesInATask) {
  const struct {
    int64_t n, tiles;
  } table[] = {{0, 1}, {1, 1}, {1023, 1}, {1024, 2}, {2047, 3}, {2048, 4}, {1 << 30, 4}};
  for (const auto& [n, tiles] : table) EXPECT_EQ(choose(sizes(n, 100)).task_tiles, tiles) << n;
}

TEST(ChoicesTest, GradientsAreCutAlongTheKeysOrElseTheQueries) {
  const struct {
    int64_t n, m, key_size, keys, query_size, queries;
  } table[] = {
      {0, 0, 96, 1, 16, 1},          {1, 1, 96, 1, 16, 1},
      {64, 384, 384, 1, 64, 1},       // one task takes all of it
      {65, 384, 384, 1, 48, 2},       // few keys: the queries are cut
      {385, 384, 384, 1, 64, 7},      //
      {385, 385, 288, 2, 448, 1},     // else the keys
      {2048, 2048, 384, 6, 2048, 1},  //
      {1, 3072, 384, 8, 16, 1},       // from here on chunks grow, not their number
      {1, 100000, 12576, 8, 16, 1},   //
      {100000, 10, 96, 1, 12544, 8},  //
  };
  for (const auto& row : table) {
    const Cut cut = choose(sizes(row.n, row.m));
    EXPECT_EQ(cut.key_chunks.size, row.key_size) << row.n << " " << row.m;
    EXPECT_EQ(cut.key_chunks.count, row.keys) << row.n << " " << row.m;
    EXPECT_EQ(cut.query_chunks.size, row.query_size) << row.n << " " << row.m;
    EXPECT_EQ(cut.query_chunks.count, row.queries) << row.n << " " << row.m;
  }
}

TEST(ChoicesTest, HeadsThatReadTheSameFewKeysAreCutWhereQueriesLeaveRoom) {
  const struct {
    int64_t n, m, group, heads, size, queries;
  } table[] = {
      {33, 384, 1, 1, 1, 1},     {33, 384, 2, 1, 2, 1},  // about chunk_queries rows
      {33, 384, 3, 2, 2, 1},     {64, 384, 4, 4, 1, 1},  {64, 384, 40, 8, 5, 1},
      {0, 384, 40, 1, 40, 1},    {4, 384, 40, 3, 14, 1}, {180, 384, 40, 2, 20, 3},  // 6 of 8
      {4096, 384, 40, 1, 40, 8},  // queries take all of them
      {200, 385, 40, 1, 40, 1},   // keys are cut
  };
  for (const auto& row : table) {
    const Cut cut = choose(sizes(row.n, row.m, 64, row.group));
    EXPECT_EQ(cut.head_chunks.count, row.heads) << row.n << " " << row.group;
    EXPECT_EQ(cut.head_chunks.size, row.size) << row.n << " " << row.group;
    EXPECT_EQ(cut.query_chunks.count, row.queries) << row.n << " " << row.group;
  }
}

TEST(ChoicesTest, TasksOfFewQueriesReadAboutTheSameNumbers) {
  const struct {
    int64_t m, d, size, count;
  } table[] = {
      {0, 64, 256, 1},          {1, 64, 256, 1},    {512, 64, 512, 1},   {513, 64, 512, 2},
      {4096, 128, 256, 16},     {4096, 4, 4096, 1}, {600, 9999, 256, 3},  // a tile at least
      {1 << 20, 64, 16384, 64},  // and no more than so many chunks
  };
  for (const auto& [m, d, size, count] : table) {
    const Cut cut = choose(sizes(1, m, d));
    EXPECT_EQ(cut.row_chunks.size, size) << m << " " << d;
    EXPECT_EQ(cut.row_chunks.count, count) << m << " " << d;
  }
}

TEST(ChoicesTest, TasksOfFewQueriesTakeWholeHeads) {
  const struct {
    int64_t n, group, heads;
  } table[] = {{1, 1, 1}, {1, 8, 8}, {1, 40, 16}, {3, 40, 5}, {8, 40, 2}, {10, 40, 1}, {11, 40, 0}};
  for (const auto& [n, group, heads] : table)
    EXPECT_EQ(choose(sizes(n, 100, 64, group)).row_heads, heads) << n << " " << group;
  EXPECT_EQ(choose(sizes(64, 100, 64, 4), parse_choices("few_queries=64")).row_heads, 1);
}

// Chunks of whole tiles, of which the longest is one longer than the shortest, and comes first.
void expect_cover(const Chunks& chunks, int64_t length, int64_t tile, int64_t most) {
  EXPECT_GE(chunks.count, 1);
  EXPECT_LE(chunks.count, most);
  EXPECT_EQ(chunks.begin(0), 0);
  EXPECT_EQ(chunks.begin(chunks.count), std::max<int64_t>(1, (length + tile - 1) / tile) * tile);
  int64_t before = chunks.size;
  for (int64_t i = 0; i < chunks.count; ++i) {
    const int64_t size = chunks.begin(i + 1) - chunks.begin(i);
    EXPECT_GT(size, 0);
    EXPECT_EQ(size % tile, 0);
    EXPECT_TRUE(size == chunks.size || size == chunks.size - tile) << size << " " << chunks.size;
    EXPECT_LE(size, before);
    before = size;
  }
}

TEST(ChoicesTest, ChunksCoverEveryLengthOnce) {
  for (const char* list : {"", "tile_keys=72,tile_queries=48,row_keys=176,most_chunks=5",
                           "chunk_keys=9,chunk_queries=8,row_chunk_numbers=1,most_row_chunks=3"}) {
    const Choices c = parse_choices(list);
    for (int64_t length = 0; length < 5000; ++length) {
      const Cut long_keys = choose(sizes(5, length), c), few_keys = choose(sizes(length, 5), c);
      expect_cover(long_keys.key_chunks, length, c.tile_keys, c.most_chunks);
      expect_cover(few_keys.query_chunks, length, few_keys.tile_queries, c.most_chunks);
      expect_cover(long_keys.row_chunks, length, c.row_keys, c.most_row_chunks);
    }
  }
}

TEST(ChoicesTest, SmallProblemsWakeNoOtherThread) {
  const Choices c = parse_choices("one_thread=1000,head_cost=0");
  EXPECT_EQ(most_threads(1, sizes(10, 10, 10), c), 1);
  for (const Sizes& larger : {sizes(11, 10, 10), sizes(10, 11, 10), sizes(10, 10, 11),
                              sizes(int64_t{1} << 40, int64_t{1} << 40)})
    EXPECT_GT(most_threads(1, larger, c), 1 << 20);
  EXPECT_GT(most_threads(2, sizes(10, 10, 10), c), 1 << 20);
  Sizes values = sizes(10, 10, 1);
  EXPECT_EQ(most_threads(1, values, c), 1);
  values.value_head_size = 11;
  EXPECT_GT(most_threads(1, values, c), 1);
  // Many heads take long however small they are.
  const int64_t most = Choices().one_thread / (Choices().head_cost + 1);
  EXPECT_EQ(most_threads(most, sizes(1, 1, 1), Choices()), 1);
  EXPECT_GT(most_threads(most + 1, sizes(1, 1, 1), Choices()), 1);
}

TEST(ChoicesTest, KeptRowsAreNotCut) {
  EXPECT_TRUE(can_keep_rows(sizes(9999, Choices().kept_keys), Choices()));
  EXPECT_FALSE(can_keep_rows(sizes(9999, Choices().kept_keys + 1), Choices()));
  for (const int64_t n : {5, 5000})
    for (const int64_t m : {0, 1, 384, 385, 2000}) {
      Sizes kept = sizes(n, m);
      kept.keeps_rows = true;
      const Cut cut = choose(kept);
      EXPECT_EQ(cut.key_chunks.count, 1);
      EXPECT_GE(cut.key_chunks.size, m);
      EXPECT_EQ(cut.query_chunks.count, n == 5 ? 1 : Choices().most_chunks);
    }
}

TEST(ChoicesTest, HeadsAtOnceStayWithinTheirMemory) {
  const int64_t most = Choices().partial_mib << 20;
  EXPECT_EQ(heads_at_once(40, 0), 40);
  EXPECT_EQ(heads_at_once(40, most / 40), 40);
  EXPECT_EQ(heads_at_once(40, most / 10), 10);
  EXPECT_EQ(heads_at_once(40, most / 10 + 1), 8);  // 9 have room, but five times as many are even
  EXPECT_EQ(heads_at_once(40, 2 * most), 1);       // a single head may need more
  EXPECT_EQ(heads_at_once(0, 0), 1);
}

TEST(ChoicesTest, AListReplacesItsNumbersAlone) {
  const Choices c = parse_choices("tile_keys=48,few_queries=0");
  EXPECT_EQ(c.tile_keys, 48);
  EXPECT_EQ(c.few_queries, 0);
  EXPECT_EQ(c.tile_queries, Choices().tile_queries);
  EXPECT_EQ(choose(sizes(100, 100), c).tile_keys, 48);
  EXPECT_EQ(parse_choices("").tile_keys, Choices().tile_keys);
}

TEST(ChoicesTest, UnknownNamesAreRefused) {
  for (const char* list : {"tile_key=96", ",", "=", "96", "tile_keys =96", "Tile_keys=96"})
    EXPECT_NE(error_of(list).find("TORCH_EXT_CHOICES to be a list like tile_keys=96"),
              std::string::npos)
        << list << ": " << error_of(list);
  EXPECT_NE(error_of("tile_keys=96,tiles=3").find("but got 'tiles=3'"), std::string::npos);
}

TEST(ChoicesTest, NumbersThatWouldNotFitAreRefused) {
  for (const char* list : {"tile_keys=97",        "tile_keys=0",
                           "tile_keys=-96",       "tile_keys=100000000",
                           "tile_keys=",          "tile_keys",
                           "tile_keys=96x",       "tile_keys=9.6e1",
                           "tile_keys= 96",       "tile_queries=24",
                           "row_keys=8",          "most_chunks=0",
                           "most_row_chunks=0",   "partial_mib=0",
                           "chunk_keys=0",        "task_rows=0",
                           "few_queries=65",      "few_queries=-1",
                           "row_chunk_numbers=0", "private_slice=99999999999999999999"}) {
    const std::string text(list), name = text.substr(0, text.find('='));
    EXPECT_EQ(error_of(list).find("torch_ext: expected " + name + " in TORCH_EXT_CHOICES to be"),
              0u)
        << list << ": " << error_of(list);
  }
  EXPECT_EQ(error_of("tile_keys=97"),
            "torch_ext: expected tile_keys in TORCH_EXT_CHOICES to be a multiple of 8 from 8 to "
            "1024, but got '97'");
}

// In a process of its own: the variable is read once.
TEST(ChoicesDeathTest, TheVariableIsRead) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  setenv("TORCH_EXT_CHOICES", "tile_keys=40", 1);
  EXPECT_EXIT(
      {
        std::fprintf(stderr, "tile_keys %d", static_cast<int>(choose(sizes(1, 1)).tile_keys));
        std::exit(0);
      },
      testing::ExitedWithCode(0), "tile_keys 40");
  unsetenv("TORCH_EXT_CHOICES");
}

}  // namespace
}  // namespace torch_ext::cpu
