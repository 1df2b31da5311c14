#!/bin/sh
# reconstruction.yaml as a command line: sh reconstruction.sh recordings run
set -e
tymbal pretrain "$1" -o "$2" --objective reconstruction --size tiny \
    --window 1 --group-pattern '(site_[a-z]+)/' --validation 0.1 \
    --time-masks 2 --time-mask-width 24 --frequency-masks 2 --frequency-mask-width 24
