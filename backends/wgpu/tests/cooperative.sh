#!/usr/bin/env bash
# Runs a program on a software adapter that has cooperative matrices: Mesa 26.1 or newer, from Debian testing.
#
#     cooperative.sh [--root FOLDER] PROGRAM [ARGUMENT...]
#
# For the tests of this crate without a GPU that has them:
#
#     cargo test -p resflow-wgpu --no-run      # prints the names of the test programs
#     backends/wgpu/tests/cooperative.sh target/debug/deps/resflow_wgpu-... cooperative
#
# The first call makes a small Debian testing (about 600 MB, some minutes) in FOLDER, later calls reuse it; to renew it, remove
# it. FOLDER is RESFLOW_COOPERATIVE_ROOT or, without that, resflow-cooperative in the user's cache. The packages come from the
# mirror that apt of this system is set up for. The program sees the repository and its own folder, read-only and under their
# usual names, runs in the crate's folder as under `cargo test`, and sees no other driver than Mesa's software Vulkan.
#
# Not a part of CI: it needs root, debootstrap, and a Debian (or a relative) with apt as the host.
set -euo pipefail

say() { echo "cooperative.sh: $*" >&2; }
fail() { say "$*"; exit 2; }

root=${RESFLOW_COOPERATIVE_ROOT:-${XDG_CACHE_HOME:-$HOME/.cache}/resflow-cooperative}
if [[ ${1:-} == --root ]]; then
    root=${2:?a folder must follow --root}
    shift 2
fi
[[ $# -ge 1 ]] || fail "usage: cooperative.sh [--root FOLDER] PROGRAM [ARGUMENT...]"
program=$(command -v -- "$1") || fail "there is no program $1"
program=$(realpath -- "$program")
shift
[[ $EUID -eq 0 ]] || fail "needs root, for chroot and mount"
package=$(realpath -- "$(dirname -- "${BASH_SOURCE[0]}")/..")
repository=$(realpath -- "$package/../..")

# Debian's own archive among the sources of apt, without its security and backports archives
mirror() {
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | sed -n 1p
}

bootstrap() {
    command -v debootstrap >/dev/null || fail "needs debootstrap: apt-get install debootstrap"
    local new=$1.new uri
    uri=$(mirror)
    [[ -n $uri ]] || fail "apt knows no archive of Debian; is its list empty? try apt-get update"
    say "making a Debian testing in $1"
    rm -rf --one-file-system -- "$new"
    mkdir -p -- "$new"
    debootstrap --variant=minbase testing "$new" "$uri" >&2
    DEBIAN_FRONTEND=noninteractive chroot "$new" \
        apt-get install -y --no-install-recommends libvulkan1 mesa-vulkan-drivers >&2
    chroot "$new" apt-get clean
    mv -- "$new" "$1" # whole or not at all: a call that was cut off leaves only the folder .new
}

[[ -d $root ]] || bootstrap "$root"
root=$(realpath -- "$root")
version=$(chroot "$root" dpkg-query --show --showformat='${Version}' mesa-vulkan-drivers)
dpkg --compare-versions "$version" ge 26.1 || fail "Mesa $version in $root is older than 26.1: remove the folder to renew it"
say "Mesa $version"

# The mounts are in a name space of their own and end with the program
export root program package repository
exec unshare --mount --propagation private bash -euo pipefail -c '
    bind() { mkdir -p -- "$root$1"; mount --rbind -- "$1" "$root$1"; }
    bind /proc
    bind /dev
    bind /sys
    mount -t tmpfs tmpfs "$root/tmp"
    for folder in "$repository" "$(dirname -- "$program")"; do
        bind "$folder"
        mount -o remount,bind,ro -- "$root$folder"
    done
    missing=$(chroot "$root" ldd "$program" | sed -n "s/ => not found//p" || true)
    [[ -z $missing ]] || echo "cooperative.sh: missing in the chroot: $missing" >&2
    unset VK_DRIVER_FILES VK_ICD_FILENAMES XDG_RUNTIME_DIR XDG_CACHE_HOME LD_LIBRARY_PATH
    export HOME=/root # where Mesa keeps the kernels that it has compiled
    exec chroot "$root" /bin/sh -c "cd \"\$1\" && shift && exec \"\$@\"" sh "$package" "$program" "$@"
' bash "$@"
