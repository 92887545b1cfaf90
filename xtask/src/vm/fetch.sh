#!/usr/bin/env bash
# Unpacks Debian's qemu and the kernel of the series $1 below the directory $2, unless they are there. Nothing is installed:
# qemu's packages would take away other versions of its tools, and a kernel's would change how the machine boots.
set -euo pipefail
series=$1 vm=$2
mkdir -p "$vm"
cd "$vm"

# Packages are downloaded to ./new and unpacked to ./new/root.
fetch() {
    (cd new && { apt-get -o APT::Sandbox::User=root download -qq "$@" || { apt-get update -qq && apt-get -o APT::Sandbox::User=root download -qq "$@"; }; })
    for package in new/*.deb; do dpkg-deb -x "$package" new/root; done
}

if [ ! -e machine ]; then
    echo "unpacking Debian's qemu to $vm/machine"
    rm -rf new && mkdir -p new
    # With it what it needs and this machine does not have.
    mapfile -t packages < <(apt-get install --simulate --no-install-recommends qemu-system-x86 | awk '/^Inst/ { print $2 }')
    fetch busybox-static qemu-system-x86 "${packages[@]}"
    mv new/root machine
fi
if [ ! -e "$series" ]; then
    echo "unpacking Debian's Linux $series to $vm/$series"
    rm -rf new && mkdir -p new
    case $series in
        6.1) meta=linux-image-amd64 ;; # of Debian 12
        *) meta=linux-image-$series-amd64 ;;
    esac
    image=$(apt-cache depends "$meta" | awk '/Depends: linux-image/ { print $2 }')
    [ -n "$image" ] || { echo "Debian has no $meta; see \`apt-cache search linux-image\`" >&2; exit 1; }
    fetch "$image"
    machine/bin/busybox depmod -b "$PWD/new/root" "${image#linux-image-}"
    mv new/root "$series"
fi
rm -rf new
