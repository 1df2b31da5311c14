#!/bin/sh
# The first process of a container: sets what Tymbal needs, then becomes it, so that signals reach it.
#
#   pretrain store -o run     a verb of tymbal
#   torchrun …, python …, sh  these, as they are
set -eu

# glibc hands every large buffer back to the kernel, and faulting its pages in again costs more than the arithmetic.
# `tymbal` sets this for itself; here it holds for torchrun, python and all that they start, too.
export MALLOC_MMAP_MAX_="${MALLOC_MMAP_MAX_:-0}"
export MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-100000000000}"

# Run under the number of whoever runs it, the process has neither a home for its caches nor a name; PyTorch asks for both.
if [ ! -w "${HOME:-/nowhere}" ]; then
    HOME=$(mktemp -d "${TMPDIR:-/tmp}/home.XXXXXX")
    export HOME
fi
if [ -z "${USER:-}" ]; then
    USER=$(id -un 2>/dev/null) || USER=user$(id -u)
    export USER
fi
export LOGNAME="${LOGNAME:-$USER}"

case "${1:-}" in
sh | bash | python | python3 | torchrun | accelerate) ;;
*) set -- tymbal "$@" ;;
esac
exec "$@"
