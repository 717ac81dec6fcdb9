#!/bin/sh
# Install what `make dist` has built into fresh environments, without an index and without a compiler, and use it:
#
#     sh deploy/prove_install.sh [DIST [WHEELS]]
#
# DIST is dist/ by default. WHEELS is a folder of the dependencies' wheels; without it, they are downloaded from PyPI into
# a new folder under /tmp first, at the versions of constraints.txt. The last lines say what was proved.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
dist=$(cd "${1:-$here/dist}" && pwd)
folder=$(mktemp -d /tmp/prove-install.XXXXXX)
trap 'rm -rf "$folder"' EXIT
python=${PYTHON:-python3}
wheels=${2:-$folder/wheels}
compiled=$(echo "$dist"/subcompress-*-abi3-*.whl)
unset PYTHONPATH

if [ ! -d "$wheels" ]; then
    mkdir "$wheels"
    for wheel in "$dist"/*-py3-none-any.whl; do
        "$python" -m pip download --quiet --only-binary :all: -c "$here/constraints.txt" --dest "$wheels" "$wheel"
    done
    rm "$wheels"/subcompress*
fi

# fresh NAME REQUIREMENT [FOLDER]: an environment with nothing but that, from DIST or a folder of other wheels of ours.
fresh() {
    "$python" -m venv "$folder/$1"
    # No compiler, no configuration of pip, no index.
    env -i PATH="$folder/$1/bin" CC=/nonexistent PIP_CONFIG_FILE=/dev/null "$folder/$1/bin/python" -m pip install --quiet \
        --disable-pip-version-check --no-index --find-links "${3:-$dist}" --find-links "$wheels" \
        -c "$here/constraints.txt" "$2"
}

# use NAME ARGUMENTS...: the command of an environment, in a folder of its own.
use() {
    name=$1
    shift
    (cd "$folder" && env -i PATH="$folder/$name/bin" OMP_NUM_THREADS=1 "$folder/$name/bin/subcompress" "$@")
}

file=$here/tests/golden/lenet.safetensors

fresh server subcompress-server
if "$folder/server/bin/python" -c 'import torch' 2> /dev/null; then echo "torch is in the server's environment"; exit 1; fi
use server info "$file" > "$folder/info"
use server unpack "$file" -o server.safetensors
use server doctor > "$folder/doctor" || { cat "$folder/doctor"; exit 1; }
if use server fit --model lenet --data digits --d 9 -o run 2> "$folder/refused"; then exit 1; fi
cat "$folder/refused"
mkdir "$folder/models"
cp "$here/examples/web/digit.onnx" "$folder/models/"
"$python" "$here/deploy/ask_server.py" env -i PATH="$folder/server/bin" "$folder/server/bin/subcompress" serve "$folder/models"
server=$(du -s --block-size=1000000 "$folder/server/lib" | cut -f 1)
rm -rf "$folder/server"

fresh full subcompress
"$folder/full/bin/python" -c 'import torch, onnx, safetensors, huggingface_hub, click, onnxruntime'
use full info "$file" > "$folder/info-full"
cmp "$folder/info" "$folder/info-full"
use full unpack "$file" -o full.safetensors
cmp "$folder/server.safetensors" "$folder/full.safetensors"
use full unpack "$file" --self-unfolding -o full.onnx
full=$(du -s --block-size=1000000 "$folder/full/lib" | cut -f 1)

# The pure wheel is what pip takes where no compiled one fits: another processor, another system.
mkdir "$folder/pure"
cp "$dist"/subcompress-*-py3-none-any.whl "$folder/pure/"
"$folder/full/bin/python" -m pip uninstall --quiet --yes subcompress
env -i PATH="$folder/full/bin" CC=/nonexistent PIP_CONFIG_FILE=/dev/null "$folder/full/bin/python" -m pip install --quiet \
    --disable-pip-version-check --no-index --find-links "$folder/pure" --find-links "$wheels" subcompress
use full unpack "$file" -o pure.safetensors
cmp "$folder/server.safetensors" "$folder/pure.safetensors"

echo "$(basename "$compiled"): installed without an index and a compiler; the same weights from every wheel"
echo "environments: subcompress $full MB, subcompress-server $server MB without torch"
