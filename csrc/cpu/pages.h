// Memory that is written for the first time.
#pragma once

#include <cstdint>

namespace torch_ext::cpu {

// Asks for huge pages inside large memory, before it is written. The system maps fresh memory page
// by page when it is first touched, and with 4 KiB pages that takes longer than the arithmetic of
// many problems. Pages that reach beyond the memory are left as they are, so that it takes no more
// of them. Does nothing where the system has no such pages.
void prefer_huge_pages(void* start, int64_t bytes);

}  // namespace torch_ext::cpu
