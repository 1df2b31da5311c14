#!/usr/bin/env bash
# Runs Tymbal in a container, on folders of this machine:
#
#   containers/run.sh prepare audio -o spectrograms/store
#   containers/run.sh pretrain spectrograms/store -o runs/first --size small
#
# The folders that it sees are audio (read only), spectrograms and runs. They are those of the present folder, or:
#   TYMBAL_AUDIO, TYMBAL_SPECTROGRAMS, TYMBAL_RUNS
#   TYMBAL_IMAGE    tymbal:cuda, tymbal:cpu, or the .sif file of Apptainer
#   TYMBAL_ENGINE   docker, podman or apptainer; the first of them that is installed
#   TYMBAL_GPU      yes, no; yes where nvidia-smi finds one
set -euo pipefail

folder() {
    mkdir -p "$1"
    (cd "$1" && pwd)
}

audio=$(folder "${TYMBAL_AUDIO:-audio}")
spectrograms=$(folder "${TYMBAL_SPECTROGRAMS:-spectrograms}")
runs=$(folder "${TYMBAL_RUNS:-runs}")

engine=${TYMBAL_ENGINE:-}
for candidate in docker podman apptainer; do
    if [[ -z $engine ]] && command -v "$candidate" >/dev/null; then
        engine=$candidate
    fi
done
gpu=${TYMBAL_GPU:-}
if [[ -z $gpu ]]; then
    gpu=no
    if nvidia-smi -L >/dev/null 2>&1; then
        gpu=yes
    fi
fi
if [[ $gpu == yes ]]; then build=cuda; else build=cpu; fi

common=(--rm --init --stop-timeout 180 --shm-size 2g
    -v "$audio:/data/audio:ro" -v "$spectrograms:/data/spectrograms" -v "$runs:/data/runs"
    -e OMP_NUM_THREADS -e HF_HUB_OFFLINE)
if [[ -t 0 && -t 1 ]]; then
    common+=(-it)
fi

case "$engine" in
docker)
    if [[ $gpu == yes ]]; then common+=(--gpus all); fi
    exec docker run "${common[@]}" --user "$(id -u):$(id -g)" "${TYMBAL_IMAGE:-tymbal:$build}" "$@"
    ;;
podman)
    if [[ $gpu == yes ]]; then common+=(--device nvidia.com/gpu=all); fi
    exec podman run "${common[@]}" --userns keep-id "${TYMBAL_IMAGE:-tymbal:$build}" "$@"
    ;;
apptainer)
    options=(--pwd /data --bind "$audio:/data/audio:ro,$spectrograms:/data/spectrograms,$runs:/data/runs")
    if [[ $gpu == yes ]]; then options+=(--nv); fi
    exec apptainer run "${options[@]}" "${TYMBAL_IMAGE:-tymbal.sif}" "$@"
    ;;
*)
    echo "There is none of docker, podman and apptainer: install one, or name it in TYMBAL_ENGINE." >&2
    exit 2
    ;;
esac
