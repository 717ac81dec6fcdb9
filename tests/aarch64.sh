#!/bin/sh
# Set up what tests/rebuild/test_aarch64.py runs: a 64-bit ARM Python under QEMU, and the compiled part for it.
#
#     sh tests/aarch64.sh FOLDER [PYTHON]
#
# FOLDER takes about 700 MB: Debian's packages, downloaded and unpacked there (nothing is installed, no root needed), and
# aarch64 wheels from PyPI. PYTHON is one of 3.11 or later, with pip. Needs Debian 12 on x86-64, or the like of it, with apt and dpkg.
set -eu
folder=$(mkdir -p "$1" && cd "$1" && pwd)
python=${2:-python3}
here=$(cd "$(dirname "$0")/.." && pwd)
cd "$folder"
rm -rf tools root site ready

# unpack ARCHITECTURE TARGET PACKAGE...: with lists and caches of their own, so that the machine's stay as they are.
unpack() {
    architecture=$1 target=$2
    shift 2
    state=$folder/apt-$architecture
    mkdir -p "$state/lists/partial" "$state/cache/archives/partial" "$state/debs" "$target"
    : > "$state/status"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm main" \
        > "$state/sources.list"
    cat > "$state/apt.conf" <<END
APT::Architecture "$architecture";
APT::Architectures "$architecture";
Dir::State "$state";
Dir::State::status "$state/status";
Dir::Cache "$state/cache";
Dir::Etc::sourcelist "$state/sources.list";
Dir::Etc::sourceparts "/dev/null";
APT::Sandbox::User "$(id -un)";
END
    APT_CONFIG="$state/apt.conf" apt-get -qq update
    (cd "$state/debs" && rm -f ./*.deb && APT_CONFIG="$state/apt.conf" apt-get -qq download "$@")
    for package in "$state"/debs/*.deb; do dpkg -x "$package" "$target"; done
}

unpack amd64 tools qemu-user-static gcc-12-aarch64-linux-gnu cpp-12-aarch64-linux-gnu binutils-aarch64-linux-gnu \
    libbinutils binutils-common libisl23 libmpc3 libmpfr6 libgmp10 libjansson4 libzstd1 zlib1g \
    libgcc-12-dev-arm64-cross libgcc-s1-arm64-cross libc6-dev-arm64-cross libc6-arm64-cross linux-libc-dev-arm64-cross
unpack arm64 root python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libc6 libgcc-s1 libstdc++6 zlib1g \
    libexpat1 libssl3 libffi8 libbz2-1.0 liblzma5 libuuid1 libcrypt1
"$python" -m pip install --quiet --target site --only-binary=:all: --python-version 3.11 --implementation cp \
    --platform manylinux_2_28_aarch64 --platform manylinux2014_aarch64 --platform manylinux_2_17_aarch64 \
    -c "$here/constraints.txt" numpy safetensors click rich
# Of the C library the compiled part needs memcpy and memset, which the interpreter has loaded.
mkdir -p built
flags=$("$python" -c "import tomllib; tool = tomllib.load(open('$here/pyproject.toml', 'rb'))['tool']
print(*tool['setuptools']['ext-modules'][0]['extra-compile-args'])")
# shellcheck disable=SC2086
LD_LIBRARY_PATH=tools/usr/lib/x86_64-linux-gnu tools/usr/bin/aarch64-linux-gnu-gcc-12 -Btools/usr/bin/aarch64-linux-gnu- \
    -Itools/usr/aarch64-linux-gnu/include -shared -fPIC -nostdlib $flags \
    "$here"/subcompress/native/native.c "$here"/subcompress/native/coder.c -lgcc -o built/_native.so
rm -rf apt-amd64 apt-arm64
touch ready
echo "ready: $python -m pytest -m slow tests/rebuild/test_aarch64.py"
