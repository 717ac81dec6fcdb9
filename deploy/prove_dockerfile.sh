#!/bin/sh
# Run the steps of the Dockerfile in clean roots of Debian, without a daemon, and print the image's size:
#
#     sudo sh deploy/prove_dockerfile.sh [TARGET [FOLDER]]
#
# TARGET is a stage of the Dockerfile, `serve` by default. FOLDER, a new one under /tmp by default, takes about 2 GB and
# is removed at the end, unless it was given. Needs root, Debian's debootstrap, its archive and PyPI. The stages run in
# buildah, which lives in a root of its own. The image they begin from, python:3.11-slim-bookworm, comes from a registry;
# in its place stands Debian bookworm with its Python 3.11, made as small as Debian's slim images are. If $MODELS is a
# folder, a server in the image serves its files, and is asked.
set -eu
target=${1:-serve}
folder=${2:-$(mktemp -d /tmp/clean-root.XXXXXX)}
given=${2:-}
here=$(cd "$(dirname "$0")/.." && pwd)
mirror=${MIRROR:-http://deb.debian.org/debian}
tools=$folder/tools
base=$folder/base
mkdir -p "$folder"

mounted() { awk -v at="$1" '$2 == at || index($2, at "/") == 1 { print $2 }' /proc/mounts | sort -r; }
leave() {
    mounted "$tools" | while read -r place; do umount -l "$place"; done
    if [ -z "$given" ]; then rm -rf --one-file-system "$folder"; fi
}
trap leave EXIT
trap 'exit 1' INT TERM

# The root that buildah runs in.
if [ ! -e "$folder/tools.ready" ]; then
    debootstrap --variant=minbase --include=ca-certificates bookworm "$tools" "$mirror" > "$folder/tools.log"
    cp /etc/resolv.conf "$tools/etc/resolv.conf"
    chroot "$tools" sh -c 'apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -q -y \
        --no-install-recommends install buildah netavark' >> "$folder/tools.log" 2>&1
    touch "$folder/tools.ready"
fi

# What stands for python:3.11-slim-bookworm. A virtual environment in /usr/local lies where that image has its Python.
if [ ! -e "$folder/base.ready" ]; then
    debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv bookworm "$base" "$mirror" \
        > "$folder/base.log"
    chroot "$base" python3 -m venv /usr/local
    rm -rf "$base"/var/cache/apt/* "$base"/var/lib/apt/lists/* "$base"/usr/share/doc "$base"/usr/share/man \
        "$base"/usr/share/locale "$base"/usr/share/info "$base"/var/log/*
    touch "$folder/base.ready"
fi

mkdir -p "$tools/src" "$tools/base"
mount --bind "$tools" "$tools" # buildah takes the root for a mount of its own
mount --make-private "$tools"
mount -t proc proc "$tools/proc"
mount -t sysfs -o ro sys "$tools/sys"
mount --rbind /dev "$tools/dev"
mount --make-rslave "$tools/dev"
mount --bind -o ro "$here" "$tools/src"
mount --bind -o ro "$base" "$tools/base"
# Certificates and wheels of this machine, where it has its own.
cp -L /etc/ssl/certs/ca-certificates.crt "$tools/etc/certificates.crt"
printf '[global]\ncert = /etc/certificates.crt\n' > "$tools/etc/pip.conf"
set -- --volume /etc/certificates.crt:/etc/certificates.crt:ro --volume /etc/pip.conf:/etc/pip.conf:ro
if [ -d "${PIP_FIND_LINKS:-}" ]; then
    mkdir -p "$tools/wheels-here"
    mount --bind -o ro "$PIP_FIND_LINKS" "$tools/wheels-here"
    printf 'find-links = /wheels-here\n' >> "$tools/etc/pip.conf"
    set -- "$@" --volume /wheels-here:/wheels-here:ro
fi

buildah() { chroot "$tools" buildah --storage-driver vfs "$@"; }
if ! buildah images --quiet localhost/python > /dev/null 2>&1; then
    name=$(buildah from scratch)
    buildah add -q "$name" /base / > /dev/null
    buildah commit -q "$name" localhost/python > /dev/null
    buildah rm "$name" > /dev/null
fi
buildah bud --isolation chroot --network host --format docker --build-arg PYTHON=localhost/python "$@" \
    --target "$target" --tag "localhost/$target" /src

# What the image does: it says its version, and a server is ready as a user that is not root.
name=$(buildah from "localhost/$target")
root=$tools$(buildah mount "$name")
size=$(du -s --block-size=1000000 --apparent-size "$root" | cut -f 1)
mkdir -p "$root/proc" "$root/dev"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --make-rslave "$root/dev"
chroot --userspec=10001:10001 "$root" /usr/local/bin/subcompress --version
if [ -d "${MODELS:-}" ]; then
    cp "$MODELS"/* "$root/models/"
    python3 "$here/deploy/ask_server.py" \
        chroot --userspec=10001:10001 "$root" /usr/local/bin/subcompress serve /models --host 0.0.0.0
fi
echo "image $target: $size MB, of which the base is $(du -s --block-size=1000000 --apparent-size "$base" | cut -f 1) MB"
