// require_isa LEVEL PROGRAM [ARGUMENT...]: becomes PROGRAM if this processor can run code compiled
// for LEVEL, else says so and exits with 77. PROGRAM cannot ask for itself: its static initialisers
// may already use the instructions.
#include <unistd.h>

#include <cstdio>
#include <string_view>

#include "cpu/isa.h"

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: require_isa LEVEL PROGRAM [ARGUMENT...]\n");
    return 2;
  }
  const std::string_view level = argv[1];
  const bool supported = level == "avx512_bf16" ? torch_ext::cpu::has_avx512_bf16()
                         : level == "avx512"    ? torch_ext::cpu::has_avx512()
                         : level == "avx2"      ? torch_ext::cpu::has_avx2()
                                                : false;
  if (!supported) {
    std::printf("skipped: this processor cannot run %s code\n", argv[1]);
    return 77;
  }
  execv(argv[2], argv + 2);
  std::perror(argv[2]);
  return 2;
}
