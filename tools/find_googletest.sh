#!/usr/bin/env bash
# find_googletest.sh FOLDER: makes GoogleTest available, from the system or, without root, unpacked
# into FOLDER.
#
# FOLDER/usr is a prefix that CMake searches; it holds nothing where the system has GoogleTest.
set -euo pipefail

folder=$1
package=libgtest-dev

# Whether a test compiles and links with GoogleTest from the system or from FOLDER.
is_available() {
  local program status=0 prefix=$folder/usr library
  library=$prefix/lib/$(${CXX:-c++} -print-multiarch 2> /dev/null || true)
  program=$(mktemp)
  printf '#include <gtest/gtest.h>\nTEST(A, B) {}\n' |
    ${CXX:-c++} -std=c++20 -x c++ - -isystem "$prefix/include" -L"$library" -L"$prefix/lib" \
      -lgtest -lgtest_main -pthread -o "$program" 2> /dev/null || status=1
  rm -f "$program"
  return $status
}

is_available && exit
"$(dirname "$0")/system_package.sh" "$package" "$folder" || true
is_available && exit
cat >&2 << EOF
torch_ext: the C++ tests need GoogleTest, and it could neither be installed nor downloaded.
Install the package $package (Fedora: gtest-devel, Arch: gtest) and try again.
EOF
exit 1
