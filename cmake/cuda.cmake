# CUDA: finds the compiler, and generates the files that instantiate the kernels.
#
# Torch's own description of CUDA (find_package(Torch), CUDAExtension) is not used: the kernels know
# nothing of torch, and are built against a torch without CUDA too.
#
# Sets TORCH_EXT_HAVE_CUDA, TORCH_EXT_CUDA_VERSION ("13.0") and TORCH_EXT_CUDA_CODE ("sm_80 sm_90a").

set(TORCH_EXT_CUDA AUTO CACHE STRING "CUDA kernels: AUTO (where nvcc is found), ON or OFF")
set_property(CACHE TORCH_EXT_CUDA PROPERTY STRINGS AUTO ON OFF)
set(TORCH_EXT_CUDA_ARCHITECTURES 80 90a CACHE STRING "What to compile CUDA kernels for, as in 80;90a")

# ---- The compiler --------------------------------------------------------------------------------

# Leaves it in CMAKE_CUDA_COMPILER if it works. CUDACXX, the PATH, CUDA_HOME and CUDA_PATH may name it.
function(find_cuda_compiler)
  if(CMAKE_CUDA_COMPILER)
    return()
  endif()
  unset(CMAKE_CUDA_COMPILER CACHE)  # what an earlier search did not find may be there now
  if(NOT DEFINED ENV{CUDACXX})
    find_program(nvcc nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin
                 NO_CACHE)
    if(NOT nvcc)
      return()
    endif()
    set(ENV{CUDACXX} ${nvcc})
  endif()
  include(CheckLanguage)
  check_language(CUDA)
endfunction()

set(TORCH_EXT_HAVE_CUDA FALSE)
set(TORCH_EXT_CUDA_VERSION "")
set(TORCH_EXT_CUDA_CODE "")
if(TORCH_EXT_CUDA)
  # The code for the newest architecture without a letter is kept as PTX too, which later processors
  # can run; that for one with a letter, such as 90a, runs on no other.
  set(CMAKE_CUDA_ARCHITECTURES ${TORCH_EXT_CUDA_ARCHITECTURES})
  list(FILTER CMAKE_CUDA_ARCHITECTURES INCLUDE REGEX "^[0-9]+$")
  list(SORT CMAKE_CUDA_ARCHITECTURES COMPARE NATURAL ORDER DESCENDING)
  list(POP_FRONT CMAKE_CUDA_ARCHITECTURES cuda_ptx)
  set(CMAKE_CUDA_ARCHITECTURES ${TORCH_EXT_CUDA_ARCHITECTURES})
  list(REMOVE_ITEM CMAKE_CUDA_ARCHITECTURES "${cuda_ptx}")
  list(TRANSFORM CMAKE_CUDA_ARCHITECTURES APPEND -real)
  list(APPEND CMAKE_CUDA_ARCHITECTURES ${cuda_ptx})
  if(NOT DEFINED CMAKE_CUDA_HOST_COMPILER AND NOT DEFINED ENV{CUDAHOSTCXX})
    set(CMAKE_CUDA_HOST_COMPILER ${CMAKE_CXX_COMPILER})
  endif()
  find_cuda_compiler()
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
  endif()
  # Earlier ones pass 4 KiB of parameters to a kernel; the second order has more.
  if(CMAKE_CUDA_COMPILER AND CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.1)
    set(TORCH_EXT_HAVE_CUDA TRUE)
  elseif(TORCH_EXT_CUDA STREQUAL AUTO)
    message(STATUS "CUDA: no nvcc of 12.1 or later that works; the library is for the CPU alone")
  else()
    message(FATAL_ERROR "TORCH_EXT_CUDA is ${TORCH_EXT_CUDA}, but there is no nvcc of 12.1 or later "
                        "that works; CUDACXX may name one")
  endif()
endif()

if(TORCH_EXT_HAVE_CUDA)
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_EXTENSIONS OFF)
  set(CMAKE_CUDA_FLAGS_RELEASE "-O3 -DNDEBUG")
  set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
  string(REGEX MATCH "^[0-9]+\\.[0-9]+" TORCH_EXT_CUDA_VERSION ${CMAKE_CUDA_COMPILER_VERSION})
  list(TRANSFORM TORCH_EXT_CUDA_ARCHITECTURES PREPEND sm_ OUTPUT_VARIABLE TORCH_EXT_CUDA_CODE)
  list(JOIN TORCH_EXT_CUDA_CODE " " TORCH_EXT_CUDA_CODE)
  message(STATUS "CUDA ${CMAKE_CUDA_COMPILER_VERSION}: ${TORCH_EXT_CUDA_CODE}")
  # What ptxas says of registers and spills lies beside each object file, for tools/check_spills.py.
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${PROJECT_SOURCE_DIR}/cmake/keep_ptxas_report.sh)
endif()

# ---- Instantiations ------------------------------------------------------------------------------

# add_cuda_instantiations(<operator> <header> <declaration> <dtype>... [SIZES <size>...]
#                         [ARCHITECTURES <architecture>...])
#
# Generates a file for each dtype (float, double, BFloat16, Float16), and size where there are any,
# that includes <header> and instantiates <declaration>, with their names in the places of @dtype@
# and @size@:
#   add_cuda_instantiations(forward cuda/forward/tiled.h
#                           "void tiled<@dtype@, @size@>(const ForwardProblem&, const Launch&)"
#                           BFloat16 Float16 SIZES 64 128)
# Each is compiled by nvcc, for ARCHITECTURES alone where these are given (for none of them where
# none was asked for), and as C++ for the tests.
function(add_cuda_instantiations operator header declaration)
  cmake_parse_arguments(PARSE_ARGV 3 arg "" "" "SIZES;ARCHITECTURES")
  cmake_path(GET header STEM stem)
  if(NOT arg_SIZES)
    set(arg_SIZES "-")
  endif()
  foreach(dtype IN LISTS arg_UNPARSED_ARGUMENTS)
    foreach(size IN LISTS arg_SIZES)
      string(CONFIGURE "${declaration}" instantiation @ONLY)
      set(file ${PROJECT_BINARY_DIR}/cuda/${operator}/${stem}_${dtype}_${size})
      string(REPLACE "_-" "" file ${file})
      foreach(extension IN ITEMS cu cpp)
        file(CONFIGURE OUTPUT ${file}.${extension} @ONLY CONTENT
"#include \"@header@\"\n\nnamespace torch_ext::cuda {\ntemplate @instantiation@;\n}\n")
      endforeach()
      set_property(GLOBAL APPEND PROPERTY cuda_host_instantiations ${file}.cpp)
      if(arg_ARCHITECTURES)
        foreach(architecture IN LISTS arg_ARCHITECTURES)
          set_property(GLOBAL APPEND PROPERTY cuda_instantiations_${architecture} ${file}.cu)
        endforeach()
      else()
        set_property(GLOBAL APPEND PROPERTY cuda_instantiations ${file}.cu)
      endif()
    endforeach()
  endforeach()
endfunction()

include(${PROJECT_SOURCE_DIR}/csrc/cuda/kernels.cmake)

# ---- What every CUDA target has in common --------------------------------------------------------

# Plans and the choice between kernels; with the host implementation of the primitives, tests run
# these too.
find_sources(cuda_plans csrc/cuda/*.cpp csrc/cuda/*/*.cpp)

add_library(torch_ext_cuda_options INTERFACE)
target_link_libraries(torch_ext_cuda_options INTERFACE torch_ext_options)
target_compile_options(
  torch_ext_cuda_options INTERFACE "$<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr;-Xptxas=-v>")
foreach(architecture IN LISTS TORCH_EXT_CUDA_ARCHITECTURES)
  string(TOUPPER TORCH_EXT_HAVE_SM_${architecture} definition)
  target_compile_definitions(torch_ext_cuda_options INTERFACE ${definition})
endforeach()

# ---- The kernels ---------------------------------------------------------------------------------

# Links to `target` what nvcc and the plans make.
function(link_cuda_kernels target)
  find_sources(sources csrc/cuda/*.cu csrc/cuda/*/*.cu)
  get_property(instantiations GLOBAL PROPERTY cuda_instantiations)
  add_library(cuda_kernels OBJECT ${cuda_plans} ${sources} ${instantiations})
  target_link_libraries(cuda_kernels PRIVATE torch_ext_cuda_options)
  target_link_libraries(${target} PRIVATE cuda_kernels)
  foreach(architecture IN LISTS TORCH_EXT_CUDA_ARCHITECTURES)
    get_property(instantiations GLOBAL PROPERTY cuda_instantiations_${architecture})
    if(instantiations)
      add_library(cuda_kernels_${architecture} OBJECT ${instantiations})
      target_link_libraries(cuda_kernels_${architecture} PRIVATE torch_ext_cuda_options)
      set_target_properties(
        cuda_kernels_${architecture} PROPERTIES CUDA_ARCHITECTURES ${architecture}-real)
      target_link_libraries(${target} PRIVATE cuda_kernels_${architecture})
    endif()
  endforeach()
  # The runtime is part of the library, unseen by others: torch may bring another one. The driver is
  # looked for when the first kernel is launched, so the library loads where there is none.
  find_package(CUDAToolkit REQUIRED)
  target_link_libraries(${target} PRIVATE $<LINK_ONLY:CUDA::cudart_static>)
  target_link_options(${target} PRIVATE -Wl,--exclude-libs,libcudart_static.a)
  set_target_properties(${target} PROPERTIES LINKER_LANGUAGE CXX)
endfunction()

# The tests' build of all kernels: C++ on the host implementation of the primitives.
function(add_cuda_host target)
  find_sources(primitives tests/cpp/host/*.cpp tests/cpp/host/cuda/primitives/*.cpp)
  get_property(instantiations GLOBAL PROPERTY cuda_host_instantiations)
  add_library(${target} OBJECT ${cuda_plans} ${primitives} ${instantiations})
  # First: its headers stand in for those of csrc/cuda/primitives.
  target_include_directories(${target} BEFORE PUBLIC tests/cpp/host csrc)
  target_link_libraries(${target} PUBLIC torch_ext_cuda_options)
endfunction()
