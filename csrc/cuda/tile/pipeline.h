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
  int8_t own;    // index of the own matrix; -1: a right factor
  int8_t other;  // index of the other matrix
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

  TORCH_EXT_DEVICE void add_pass(int own_index, int other_index, int first_chunk, int chunks) {
    if (chunks <= 0) return;
    passes[pass_count++] = {static_cast<int8_t>(own_index), static_cast<int8_t>(other_index),
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
    filling_ = reading_ = {walk.is_empty() ? walk.heads : 0, walk.begin, 0, 0, 0};
    if (keeps_own_ && !walk.is_empty()) copy_own();
    for (int n = 0; n < kSlots - 1; ++n) fill();
  }

  // The next chunks, in the order of tiles, passes and chunks. What was returned before is gone.
  TORCH_EXT_DEVICE Chunks next() {
    wait_for_copies<kSlots - 2>();
    block_barrier();
    fill();
    const Pass pass = task_->passes[reading_.pass];
    const unsigned char* slot = slots_ + reading_.slot * slot_bytes();
    const int chunk = pass.first_chunk + reading_.chunk;
    const unsigned char* own = nullptr;
    if (pass.own >= 0)
      own = keeps_own_ ? own_chunk(pass.own) + chunk * kOwnBytes : slot + kOtherBytes;
    const int64_t columns =
        task_->other[pass.other].columns - static_cast<int64_t>(chunk) * kChunkColumns<E>;
    advance(reading_);
    return {own, slot, columns < kChunkColumns<E> ? static_cast<int>(columns) : kChunkColumns<E>};
  }

  // Ends a task: its memory may be used for another one.
  TORCH_EXT_DEVICE void finish() {
    wait_for_copies<0>();
    block_barrier();
  }

 private:
  struct Position {
    int head = 0, tile = 0;  // of the walk; head = walk_.heads at its end
    int pass = 0, chunk = 0, slot = 0;
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
      const Matrix<E> x = task_->own[n];
      if (!x) continue;
      for (int chunk = 0; chunk < chunks_of<E>(x.columns); ++chunk)
        copy_chunk<E, kOwn, kThreads>(own_chunk(n) + chunk * kOwnBytes, x, 0, own_row_, chunk);
    }
  }
  TORCH_EXT_DEVICE void advance(Position& at) const {
    at.slot = (at.slot + 1) % kSlots;
    if (++at.chunk < task_->passes[at.pass].chunks) return;
    at.chunk = 0;
    if (++at.pass < task_->pass_count) return;
    at.pass = 0;
    if (++at.tile < walk_.end) return;
    at.tile = walk_.begin;
    ++at.head;
  }
  // Starts copying into the slot that was read longest ago. An empty group keeps the count.
  TORCH_EXT_DEVICE void fill() {
    if (task_->pass_count > 0 && filling_.head < walk_.heads) {
      const Pass pass = task_->passes[filling_.pass];
      const int chunk = pass.first_chunk + filling_.chunk;
      unsigned char* slot = slots_ + filling_.slot * slot_bytes();
      copy_chunk<E, kOther, kThreads>(slot, task_->other[pass.other], filling_.head,
                                      static_cast<int64_t>(filling_.tile) * kOther, chunk);
      if (pass.own >= 0 && !keeps_own_)
        copy_chunk<E, kOwn, kThreads>(slot + kOtherBytes, task_->own[pass.own], 0, own_row_, chunk);
      advance(filling_);
    }
    commit_copies();
  }

  TaskMatrices<E>* task_;
  unsigned char* slots_;
  bool keeps_own_;
  int64_t own_row_ = 0;
  TileWalk walk_;
  Position filling_, reading_;
};

}  // namespace torch_ext::cuda
