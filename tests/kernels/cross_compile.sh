#!/usr/bin/env bash
# usage: cross_compile.sh SOURCE_FOLDER HIGHWAY_INCLUDE_FOLDER SCRATCH_FOLDER
# Compiles the CPU kernels for 64-bit Arm (NEON). Skips (exit code 77) where Debian's cross compiler is not installed.
set -euo pipefail
source_folder=$1 highway=$2 scratch=$3
compiler=aarch64-linux-gnu-g++
if ! command -v "$compiler" >/dev/null; then
  echo "skipped: no $compiler here (Debian: g++-aarch64-linux-gnu)"
  exit 77
fi
mkdir -p "$scratch"
ln -sfn "$highway/hwy" "$scratch/hwy"  # alone: the other headers beside it are of another machine
for file in "$source_folder"/kernels/cpu/*.cpp; do
  "$compiler" -std=c++20 -O1 -Wall -Wextra -Werror -Wno-missing-field-initializers -ffp-contract=off \
    -I"$source_folder" -I"$source_folder/src" -I"$scratch" -c "$file" -o "$scratch/$(basename "$file").o"
done
