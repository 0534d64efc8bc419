#!/bin/sh
# Compiler launcher: runs the command, and keeps what it prints (ptxas -v) beside the object.
for argument in "$@"; do
  [ "$previous" = "-o" ] && object=$argument
  previous=$argument
done
"$@" 2>"$object.report"
status=$?
grep -v -e '^ptxas info' -e '^ *[0-9]* bytes stack frame' -e '^$' "$object.report" >&2
exit $status
