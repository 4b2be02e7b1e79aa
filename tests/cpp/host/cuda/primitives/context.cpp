#include "cuda/primitives/context.h"

#ifdef __x86_64__
asm(R"(
.text
.globl torch_ext_switch_stack
.hidden torch_ext_switch_stack
.type torch_ext_switch_stack, @function
torch_ext_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size torch_ext_switch_stack, . - torch_ext_switch_stack
)");
#endif
