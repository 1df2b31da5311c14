# Sourced by the batch scripts beside it (bash 4 or newer).
#
#   to_scratch STORE     prints where STORE is to be read from: a copy on the node's own disk, if it has one for the job
#   run_step OUTPUT COMMAND…
#                        runs it as a step of the job; where the time is up before its end, it is asked to save in the
#                        folder OUTPUT, and the job queues itself again
#   add_checksums STORE  writes STORE.sha256 beside a store; where the time is up, as a step
#
# Slurm sends SIGUSR1 to the batch shell some time before it kills the job (#SBATCH --signal=B:USR1@seconds). The shell
# passes it on to the step, in which tymbal finishes its training step, writes a checkpoint and ends with status 75: the
# same command continues. Jobs that saved nothing, time after time, are not queued again for ever. Where a job is
# cancelled or preempted, Slurm sends SIGTERM to the step itself; a checkpoint is written then, too, but whether the job
# comes back is for Slurm to say, not for this script.

run_again=75
# Status of what the signal has killed: tymbal while it starts, before it can save, or after it has finished.
killed=$((128 + $(kill -l USR1)))

# What `tymbal` is: TYMBAL="apptainer run --nv $HOME/tymbal.sif", for example.
read -r -a tymbal <<<"${TYMBAL:-tymbal}"

# Nodes without a network shall not wait for one.
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
# Since Slurm 22.05 a step does not take this over from its job.
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"

asked= step=
on_usr1() {
    asked=yes
    if [[ -n $step ]]; then
        kill -USR1 "$step" || true
    fi
}
trap on_usr1 USR1

say() {
    echo "$(date '+%F %T') job ${SLURM_JOB_ID}: $*" >&2
}

to_scratch() {
    local store=$1 scratch=${TYMBAL_SCRATCH:-${SLURM_TMPDIR:-}} copy
    if [[ -z $scratch || ! -f $store/store.json ]]; then
        echo "$store"
        return
    fi
    # The same folder for every job with this store: what is there already is not copied again.
    copy=$scratch/tymbal/$(basename "$store")-$(realpath "$store" | cksum | cut -d ' ' -f 1)
    say "copying $store to $copy"
    # Once on each node; the lock is for jobs that share one.
    srun --nodes="${SLURM_JOB_NUM_NODES:-1}" --ntasks="${SLURM_JOB_NUM_NODES:-1}" --ntasks-per-node=1 bash -c '
        set -e
        mkdir -p "$2"
        exec flock "$2.lock" rsync -a --partial --delete "$1/" "$2/"
    ' copy "$store" "$copy" >&2
    echo "$copy"
}

# Several tasks train together, and learn of each other as torchrun would tell them. Unlike under torchrun, each gets the
# signal from Slurm, and its exit status reaches the batch script.
as_one_of_many='
if [ "${SLURM_NTASKS:-1}" -gt 1 ]; then
    export RANK="$SLURM_PROCID" LOCAL_RANK="$SLURM_LOCALID" WORLD_SIZE="$SLURM_NTASKS"
fi
exec "$@"'

# What is saved of an output: checkpoints, finished shards, checksums.
saved() {
    { find "$1/checkpoints" "$1/work" "$1/store/work" "$1.sha256.partial" -maxdepth 1 \
        -regex '.*/\(checkpoint-[0-9]+\|[0-9]+\.json\|.*\.sha256\.partial\)' -printf '%p %s\n' 2>/dev/null || true; } | sort
}

# Runs a command in the background and waits for its end, also where signals come; gives its status.
follow() {
    local status interrupted
    "$@" &
    step=$!
    # A trapped signal ends `wait`, not the step. SIGTERM goes to the step by itself; the shell stays to see how it ends.
    trap 'interrupted=yes; on_usr1' USR1
    trap 'interrupted=yes' TERM
    interrupted=yes
    while [[ -n $interrupted ]]; do
        interrupted=
        wait "$step" && status=0 || status=$?
    done
    step=
    trap on_usr1 USR1
    trap - TERM
    return "$status"
}

run_step() {
    local output=$1 status before
    shift
    if [[ -n $asked ]]; then
        say "the time was up before the step began: ask for more (--time), or do without TYMBAL_SCRATCH"
        exit 1
    fi
    if [[ -n ${SLURM_JOB_NODELIST:-} ]]; then
        read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
        export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
    fi
    before=$(saved "$output")
    # A task that fails takes the others with it after --wait seconds; those that saved and end are not to be killed.
    follow srun --kill-on-bad-exit=0 --wait=120 bash -c "$as_one_of_many" step "$@" && status=0 || status=$?
    if ((status == run_again || status == killed)) && [[ -n $asked ]]; then
        requeue "$output" "$before"
    fi
    return "$status"
}

# Hashes the files that are not in the list yet, which gets its name when it has all of them.
hash_files() {
    local file line list=$2.sha256.partial
    local -A listed=()
    trap 'exit "$run_again"' USR1
    cd "$1"
    if [[ -f $list ]]; then
        if [[ -n $(find "$2" -type f -newer "$list" -print -quit) ]]; then
            rm "$list" # the store has been mended since
        elif [[ -n $(tail -c 1 "$list") ]]; then
            sed -i '$d' "$list" # a kill has cut the last line
        fi
    fi
    touch "$list"
    while IFS= read -r line; do listed[${line:66}]=yes; done <"$list"
    while IFS= read -r -d '' file; do
        [[ -n ${listed[$file]:-} ]] || sha256sum "$file" >>"$list"
    done < <(find "$2" -type f -print0 | sort -z)
    mv "$list" "$2.sha256"
}

add_checksums() {
    local status before
    before=$(saved "$1")
    say "adding up checksums"
    if [[ -n $asked ]]; then
        requeue "$1" "before it was prepared"
    fi
    follow hash_files "$(dirname "$1")" "$(basename "$1")" && status=0 || status=$?
    if ((status != 0)) && [[ -n $asked ]]; then
        requeue "$1" "$before"
    fi
    return "$status"
}

# Puts the job into the queue again: requeue OUTPUT BEFORE, where BEFORE is what was saved when it began.
requeue() {
    local restarts=${SLURM_RESTART_COUNT:-0} how="saved, and queued again" idle=0
    local note=${1%/}.idle-$SLURM_JOB_ID
    if [[ $(saved "$1") == "$2" ]]; then
        read -r idle < <(cat "$note" 2>/dev/null || echo 0)
        idle=$((idle + 1)) how="nothing was saved before the time was up; queued again"
        mkdir -p "$(dirname "$note")"
        echo "$idle" >"$note"
    else
        rm -f "$note"
    fi
    if ((idle >= ${TYMBAL_MAX_IDLE:-3})); then
        rm -f "$note"
        say "the time was up $idle times before anything was saved: ask for more (--time), or a longer notice" \
            "(--signal=B:USR1@600), or try a smaller model. The same command continues."
        exit "$run_again"
    fi
    if ((restarts >= ${TYMBAL_MAX_RESTARTS:-100})); then
        say "queued again $restarts times already (TYMBAL_MAX_RESTARTS). The same command continues."
        exit "$run_again"
    fi
    if ! scontrol requeue "$SLURM_JOB_ID"; then
        say "this cluster does not let a job queue itself again. Submit it once more: it continues."
        exit "$run_again"
    fi
    say "$how"
    exit 0
}
