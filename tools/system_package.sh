#!/usr/bin/env bash
# system_package.sh PACKAGE [FOLDER]: installs a Debian package as root or with passwordless sudo; where
# neither is allowed, downloads it and unpacks it into FOLDER. Status 1 where nothing worked.
set -euo pipefail

package=$1
folder=${2:-}

command -v apt-get > /dev/null && command -v dpkg > /dev/null || exit 1

install_as_root() {
  local as_root=()
  if [ "$(id -u)" != 0 ]; then
    sudo -n true 2> /dev/null || return 1
    as_root=(sudo -n)
  fi
  echo "torch_ext: installing the system package $package"
  ${as_root[@]+"${as_root[@]}"} apt-get update --quiet || true
  ${as_root[@]+"${as_root[@]}"} env DEBIAN_FRONTEND=noninteractive \
    apt-get install --quiet --yes --no-install-recommends "$package"
}

# With package lists of our own: the system's may be missing, and only root may refresh them.
unpack() {
  [ -n "$folder" ] || return 1
  echo "torch_ext: unpacking the system package $package into $folder"
  mkdir -p "$folder/apt/lists/partial" "$folder/apt/cache/archives/partial"
  local apt options
  apt=$(cd "$folder/apt" && pwd)
  options=(-o "Dir::State::Lists=$apt/lists" -o "Dir::Cache=$apt/cache" -o APT::Sandbox::User=)
  apt-get "${options[@]}" update --quiet &&
    (cd "$apt" && apt-get "${options[@]}" download "$package") &&
    dpkg -x "$apt/$package"_*.deb "$folder" &&
    rm -rf "$apt"
}

install_as_root || unpack
