#!/usr/bin/env bash
# keep_ptxas_report.sh NVCC …: runs the compiler; what ptxas reports goes to OBJECT.ptxas, the rest
# of its messages where they always go.
set -uo pipefail

object=/dev/null
previous=
for argument in "$@"; do
  [[ $previous == -o ]] && object=$argument
  previous=$argument
done
messages=$("$@" 2>&1)
status=$?
is_report='^ptxas info|^ +[0-9]+ bytes stack frame|^$'
[[ $object == *.o ]] && grep -E "$is_report" <<< "$messages" > "$object.ptxas"
grep -vE "$is_report" <<< "$messages" >&2
exit $status
