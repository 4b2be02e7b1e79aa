#!/usr/bin/env bash
# find_python_headers.sh PYTHON FOLDER: makes Python.h available, which torch.compile needs (this
# library does not).
#
# Without root the headers are unpacked into FOLDER, where `make test` lets the compiler look for them.
set -euo pipefail

python=$1
folder=$2
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
headers=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')

is_available() { [ -e "$headers/Python.h" ] || [ -e "$folder/usr/include/python$version/Python.h" ]; }

is_available && exit
"$(dirname "$0")/system_package.sh" "libpython$version-dev" "$folder" || true
is_available && exit
cat >&2 << EOF
torch_ext: the tests of torch.compile need $headers/Python.h, and it could neither be installed nor
downloaded.
Install the package python$version-dev (Fedora: python3-devel) and try again.
EOF
exit 1
