// The stream of chunks that a task consumes: a ring of slots in shared memory, filled ahead by
// asynchronous copies.
//
// A task owns a tile of one side (queries, say) and walks over tiles of the other (keys). For every
// tile it consumes the same passes in the same order: products of an own matrix and another one
// (q k^T), then the right factors of outputs (v). A pass streams the chunks of its other matrix;
// those of the own matrix stay in shared memory for the whole task or, where they do not fit,
// stream beside them.
#pragma once

#include "cuda/tile/chunk.h"

namespace torch_ext::cuda {

struct Pass {
  int8_t own;     // index of the own matrix; -1: a right factor
  int8_t other;   // index of the other matrix
  int16_t place;  // among the products, or among the factors: whoever consumes them says which
  int16_t first_chunk, chunks;
};

// Tiles of the other side: those of [begin, end) for every head of the group in turn.
struct TileWalk {
  int begin = 0, end = 0, heads = 1;

  TORCH_EXT_DEVICE bool is_empty() const { return begin >= end || heads <= 0; }
};

// What a task reads, in shared memory: the same for all threads, indexed at run time.
template <class E>
struct alignas(kChunkBytes) TaskMatrices {
  static constexpr int kMatrices = 4, kPasses = 10;
  Matrix<E> own[kMatrices], other[kMatrices];
  Pass passes[kPasses];
  int pass_count;
  int product_chunks, factor_chunks;  // of all passes, for one tile

  // The product number `place`: own matrix times other, transposed.
  TORCH_EXT_DEVICE void add_product(int place, int own_index, int other_index) {
    const int chunks = chunks_of<E>(other[other_index].columns);
    if (!own[own_index] || !other[other_index] || chunks == 0) return;
    product_chunks += chunks;
    passes[pass_count++] = {static_cast<int8_t>(own_index), static_cast<int8_t>(other_index),
                            static_cast<int16_t>(place), 0, static_cast<int16_t>(chunks)};
  }
  // The right factor number `place`: some chunks of an other matrix.
  TORCH_EXT_DEVICE void add_factor(int place, int other_index, int first_chunk, int chunks) {
    if (!other[other_index] || chunks <= 0) return;
    factor_chunks += chunks;
    passes[pass_count++] = {-1, static_cast<int8_t>(other_index), static_cast<int16_t>(place),
                            static_cast<int16_t>(first_chunk), static_cast<int16_t>(chunks)};
  }
};

template <class E, int kOwn, int kOther, int kThreads>
class Pipeline {
 public:
  static constexpr int kSlots = 4;
  static constexpr int kOwnBytes = kOwn * kChunkBytes, kOtherBytes = kOther * kChunkBytes;

  struct Chunks {
    const unsigned char *own, *other;  // own: nullptr in the passes of right factors
    int columns;                       // of the chunk that the matrices have
    int place, index;                  // of the pass, and of the chunk in it
  };

  // Shared memory for `own_chunks` chunks of all own matrices together.
  static TORCH_EXT_INLINE int64_t shared_bytes(int64_t own_chunks, bool keeps_own) {
    const int64_t slots = kSlots * (kOtherBytes + (keeps_own ? 0 : kOwnBytes));
    return sizeof(TaskMatrices<E>) + slots + (keeps_own ? own_chunks * kOwnBytes : 0);
  }

  TORCH_EXT_DEVICE Pipeline(unsigned char* memory, bool keeps_own)
      : task_(reinterpret_cast<TaskMatrices<E>*>(memory)),
        slots_(memory + sizeof(TaskMatrices<E>)),
        keeps_own_(keeps_own) {}

  // One thread fills it in before start().
  TORCH_EXT_DEVICE TaskMatrices<E>& task() { return *task_; }

  // What tasks may use between finish() and start(): at least kSlots * kOtherBytes.
  TORCH_EXT_DEVICE unsigned char* spare_memory() { return slots_; }

  // Begins a task: rows from `own_row` against the tiles of `walk`. Every thread has arrived.
  TORCH_EXT_DEVICE void start(int64_t own_row, const TileWalk& walk) {
    own_row_ = own_row;
    walk_ = walk;
    head_ = walk.is_empty() ? walk.heads : 0;
    tile_ = walk.begin;
    filling_ = reading_ = {};
    if (keeps_own_ && !walk.is_empty()) copy_own();
    TORCH_EXT_KEEP_LOOP
    for (slot_ = 0; slot_ < kSlots - 1; ++slot_) fill(slot_);
    slot_ = 0;
  }

  // The next chunks, in the order of tiles, passes and chunks. What was returned before is gone.
  TORCH_EXT_DEVICE Chunks next() {
    wait_for_copies<kSlots - 2>();
    block_barrier();
    fill((slot_ + kSlots - 1) % kSlots);  // that which was read last
    const Pass pass = task_->passes[reading_.pass];
    const unsigned char* slot = slots_ + slot_ * slot_bytes();
    slot_ = (slot_ + 1) % kSlots;
    const int index = reading_.chunk, chunk = pass.first_chunk + index;
    const unsigned char* own = nullptr;
    if (pass.own >= 0)
      own = keeps_own_ ? own_chunk(pass.own) + chunk * kOwnBytes : slot + kOtherBytes;
    const int64_t columns =
        task_->other[pass.other].columns - static_cast<int64_t>(chunk) * kChunkColumns<E>;
    advance(reading_);
    return {own, slot, columns < kChunkColumns<E> ? static_cast<int>(columns) : kChunkColumns<E>,
            pass.place, index};
  }

  // Ends a task: its memory may be used for another one.
  TORCH_EXT_DEVICE void finish() {
    wait_for_copies<0>();
    block_barrier();
  }

 private:
  struct Position {  // in the passes of a tile
    int pass = 0, chunk = 0;
  };

  TORCH_EXT_DEVICE int slot_bytes() const { return kOtherBytes + (keeps_own_ ? 0 : kOwnBytes); }
  // Own matrices lie behind the slots, one after another.
  TORCH_EXT_DEVICE unsigned char* own_chunk(int index) const {
    unsigned char* at = slots_ + kSlots * slot_bytes();
    for (int n = 0; n < index; ++n)
      if (task_->own[n]) at += chunks_of<E>(task_->own[n].columns) * kOwnBytes;
    return at;
  }
  TORCH_EXT_DEVICE void copy_own() {
    for (int n = 0; n < TaskMatrices<E>::kMatrices; ++n) {
      const Matrix<E>& x = task_->own[n];
      if (!x) continue;
      for (int chunk = 0; chunk < chunks_of<E>(x.columns); ++chunk)
        copy_chunk<E, kOwn, kThreads>(own_chunk(n) + chunk * kOwnBytes, x, 0, own_row_, chunk);
    }
  }
  // Returns whether the tile ended.
  TORCH_EXT_DEVICE bool advance(Position& at) const {
    if (++at.chunk < task_->passes[at.pass].chunks) return false;
    at.chunk = 0;
    if (++at.pass < task_->pass_count) return false;
    at.pass = 0;
    return true;
  }
  // Starts copying the next chunk. An empty group keeps the count.
  TORCH_EXT_DEVICE void fill(int slot_index) {
    if (task_->pass_count > 0 && head_ < walk_.heads) {
      const Pass pass = task_->passes[filling_.pass];
      const int chunk = pass.first_chunk + filling_.chunk;
      unsigned char* slot = slots_ + slot_index * slot_bytes();
      copy_chunk<E, kOther, kThreads>(slot, task_->other[pass.other], head_,
                                      static_cast<int64_t>(tile_) * kOther, chunk);
      if (pass.own >= 0 && !keeps_own_)
        copy_chunk<E, kOwn, kThreads>(slot + kOtherBytes, task_->own[pass.own], 0, own_row_, chunk);
      if (advance(filling_) && ++tile_ == walk_.end) {
        tile_ = walk_.begin;
        ++head_;
      }
    }
    commit_copies();
  }

  TaskMatrices<E>* task_;
  unsigned char* slots_;
  bool keeps_own_;
  int64_t own_row_ = 0;
  TileWalk walk_;
  int head_ = 0, tile_ = 0;  // being filled; head_ = walk_.heads at the end
  Position filling_, reading_;
  int slot_ = 0;  // to be read next
};

}  // namespace torch_ext::cuda
