#!/bin/sh
# Installs Tymbal into /opt/tymbal with the versions of constraints.txt, in two steps so that the first can be cached.
#
#   install.sh torch [INDEX]        PyTorch; from the package index of a build of it, or from the usual one
#   install.sh tymbal cuda|cpu      the rest; fails where PyTorch is not that build
set -eu

home=${TYMBAL_HOME:-/opt/tymbal}

pip_install() {
    "$home/bin/python" -m pip install --no-cache-dir --disable-pip-version-check -c constraints.txt "$@"
}

case "$1" in
torch)
    python -m venv "$home"
    torch=$(grep '^torch==' constraints.txt)
    case "${2:-}" in
    '' | usual) pip_install "$torch" ;;
    # What it depends on comes with the second step: such an index has few versions of it.
    *) pip_install --no-deps --index-url "$2" "$torch" ;;
    esac
    ;;
tymbal)
    pip_install .
    "$home/bin/python" -c '
import sys, torch
there = "cpu" if torch.version.cuda is None else "cuda"
if there != sys.argv[1]:
    sys.exit(
        f"TORCH={sys.argv[1]} was asked for, but PyTorch {torch.__version__} is a build for {there}. Give the package "
        f"index of the other build as TORCH_INDEX: the installation page of PyTorch names it behind --index-url."
    )
' "$2"
    ;;
*)
    echo "install.sh torch [INDEX] | tymbal cuda|cpu" >&2
    exit 2
    ;;
esac
