# Defines the target torch::torch from what Python knows about its torch, and TORCH_VERSION.
#
# find_package(Torch) is not used: it drags in the CUDA toolkit, and breaks where torch has CUDA and
# the machine has not.

find_package(Python 3.10 REQUIRED COMPONENTS Interpreter)
execute_process(
  COMMAND ${Python_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/torch_info.py
  OUTPUT_VARIABLE torch_info
  ERROR_VARIABLE torch_error
  RESULT_VARIABLE torch_result)
if(NOT torch_result EQUAL 0)
  message(FATAL_ERROR "${torch_error}")
endif()
foreach(key IN ITEMS version include lib cxx11_abi openmp)
  string(REGEX MATCH "(^|\n)${key}=([^\n]*)" line "${torch_info}")
  set(torch_${key} "${CMAKE_MATCH_2}")
endforeach()
string(REGEX REPLACE "\\+.*" "" TORCH_VERSION "${torch_version}")
message(STATUS "torch ${torch_version}: ${torch_lib}")
if(TORCH_VERSION VERSION_LESS 2.11)
  message(FATAL_ERROR "torch_ext needs torch 2.11 or later; ${Python_EXECUTABLE} has ${torch_version}")
endif()
if(TORCH_VERSION VERSION_GREATER_EQUAL 2.14)
  message(WARNING "torch_ext is tested with torch 2.11 to 2.13; this is torch ${torch_version}")
endif()

# Threads: code compiled with -fopenmp must run on the OpenMP runtime that torch has loaded, or there
# are two pools and torch.set_num_threads governs only one. So the wheel's own copy is linked, by its
# own name.
include(CheckCXXSourceCompiles)
set(CMAKE_REQUIRED_FLAGS -fopenmp)
check_cxx_source_compiles(
  "#include <omp.h>\nint main() { return omp_get_max_threads() == 0; }" COMPILER_HAS_OPENMP)
unset(CMAKE_REQUIRED_FLAGS)
if(NOT COMPILER_HAS_OPENMP)
  message(FATAL_ERROR "${CMAKE_CXX_COMPILER} cannot compile with -fopenmp; install g++ and set CXX=g++")
endif()
if(CMAKE_CXX_COMPILER_ID MATCHES Clang)
  message(WARNING "Clang brings an OpenMP runtime of its own beside torch's: torch.set_num_threads "
                  "will not reach this library. Build with GCC.")
endif()

add_library(torch::torch INTERFACE IMPORTED)
target_include_directories(torch::torch INTERFACE ${torch_include})
target_compile_definitions(torch::torch INTERFACE _GLIBCXX_USE_CXX11_ABI=${torch_cxx11_abi})
target_compile_options(torch::torch INTERFACE -fopenmp)
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
  # Found by GCC in torch's headers, after inlining.
  target_compile_options(torch::torch INTERFACE -Wno-maybe-uninitialized)
endif()
# Kept even where no symbol is used: what registers operators must stay loaded.
target_link_libraries(
  torch::torch INTERFACE -Wl,--no-as-needed ${torch_lib}/libtorch.so ${torch_lib}/libtorch_cpu.so
                         ${torch_lib}/libc10.so)
if(torch_openmp)
  target_link_libraries(torch::torch INTERFACE ${torch_openmp})
else()
  target_link_libraries(torch::torch INTERFACE -fopenmp)
endif()
