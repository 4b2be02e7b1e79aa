#include "cpu/pages.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace torch_ext::cpu {

#ifdef MADV_HUGEPAGE

void prefer_huge_pages(void* start, int64_t bytes) {
  constexpr uintptr_t kPage = 2 << 20;
  constexpr int64_t kSmallest = 2 * kPage;  // holds one such page wherever it starts
  if (bytes < kSmallest) return;
  const uintptr_t address = reinterpret_cast<uintptr_t>(start);
  const uintptr_t first = (address + kPage - 1) / kPage * kPage;
  const uintptr_t end = (address + static_cast<uintptr_t>(bytes)) / kPage * kPage;
  // Only advice: a refusal changes nothing but the time.
  (void)madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
}

#else

void prefer_huge_pages(void*, int64_t) {}

#endif

}  // namespace torch_ext::cpu
