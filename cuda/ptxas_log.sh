#!/bin/sh
# ptxas_log.sh <log folder> <compiler> <arguments>...: runs the compiler, keeps what it says in <log folder>/<object>.log
# and passes everything on except ptxas's registers-and-spills report, so that warnings stay visible in the build.
log_dir=$1
shift
object=unknown
previous=
for argument in "$@"; do
  [ "$previous" = "-o" ] && object=$(basename "$argument" .o)
  previous=$argument
done
log=$log_dir/$object.log
"$@" >"$log" 2>&1
status=$?
grep -v -e '^ptxas info' -e 'bytes stack frame' "$log" >&2
exit "$status"
