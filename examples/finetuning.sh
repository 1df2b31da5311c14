#!/bin/sh
# The recipe of finetuning.yaml with flags: sh finetuning.sh LABELLED PRETRAINED OUTPUT
set -eu
labelled=$1 pretrained=$2 output=$3

tymbal prepare "$labelled" -o "$output/store" --window 1.0

tymbal finetune "$output/store" -o "$output/classifier" --from "$pretrained" \
  --epochs 50 --learning-rate 5e-5 --schedule cosine --warmup 3 --weight-decay 0 --adam-beta2 0.999 \
  --batch-size 1 --accumulate 4 --clip-norm 1.0 \
  --train 3 --best-by accuracy --keep-checkpoints 2 --seed 42
