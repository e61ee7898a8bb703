# shellcheck shell=bash
# usage: abort_test.sh MPIEXEC FLAG RANKS PROGRAM. The job must end with the code of rank 1's problem and one line that says who and why.
stderr=$("$@" 2>&1 >/dev/null)
code=$?
echo "exit code $code, stderr:"
echo "$stderr"
[ $code -eq 7 ] || { echo "expected exit code 7"; exit 1; }
lines=$(grep -c '^longspan: ' <<<"$stderr")
[ "$lines" -eq 1 ] || { echo "expected one line of longspan, got $lines"; exit 1; }
grep -qxE "longspan: \[rank 1 [^] ]+\] cannot write o\.h5: seen No space left on device; free some space" <<<"$stderr" ||
  { echo "the line does not say who and why"; exit 1; }
