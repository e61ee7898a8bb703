# Installs Longspan into the build tree and uses it from a folder that sees neither its sources nor its build. Settings come from CMakeLists.txt.
set -euo pipefail

fail() { echo "FAILED: $*"; exit 1; }

prefix=$BUILD/tests/package/prefix
rm -rf "$prefix"
"$CMAKE" --install "$BUILD" --prefix "$prefix" >/dev/null

echo "-- the installed files"
said=$("$prefix/bin/longspan" --version) || fail "the installed program does not start"
grep -q "^longspan  *$VERSION$" <<<"$said" || fail "longspan --version says: $said"
[ -f "$prefix/share/longspan/configs/longformer.ini" ] || fail "the configs are missing"
targets=$(find "$prefix" -name 'longspan*.cmake')
! grep -h -v '^#' $targets | grep -i -e hdf5 -e boost -e nlohmann || fail "users of the library need what only the program needs"
! grep -F "$SOURCE" $targets || fail "the package points into the source tree"

elsewhere=$(mktemp -d)
trap 'rm -rf "$elsewhere"' EXIT
cp -r "$SOURCE/tests/package/example" "$SOURCE/tests/package/headers" "$elsewhere"
cd "$elsewhere"
for project in headers example; do
  echo "-- $project"
  "$CMAKE" -S $project -B $project/build -DCMAKE_PREFIX_PATH="$prefix" >log 2>&1 || fail "cmake: $(cat log)"
  "$CMAKE" --build $project/build >log 2>&1 || fail "build: $(cat log)"
done

for ranks in 1 3; do
  echo "-- the example on $ranks ranks"
  lines=$("$MPIRUN" -n $ranks example/build/attend) || fail "exit code $?: $lines"
  echo "$lines"
  [ "$(grep -c 'as expected$' <<<"$lines")" -eq $ranks ] || fail "not every rank has said that all is as expected"
done
grep -qv ' 0 bytes' <<<"$lines" || fail "three ranks exchanged nothing"
