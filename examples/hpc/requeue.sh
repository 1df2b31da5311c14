# Sourced by the batch scripts beside it (bash 4 or newer).
#
#   to_scratch STORE     prints where STORE is to be read from: a copy on the node's own disk, if it has one for the job
#   run_step COMMAND…    runs it as a step of the job; where the time is up before its end, it is asked to save, and the
#                        job queues itself again
#
# Slurm sends SIGUSR1 to the batch shell some time before it kills the job (#SBATCH --signal=B:USR1@seconds). The shell
# passes it on to the step, in which tymbal finishes its training step, writes a checkpoint and ends with status 75: the
# same command continues. Where a job is cancelled or preempted, Slurm sends SIGTERM to the step itself; a checkpoint is
# written then, too, but whether the job comes back is for Slurm to say, not for this script.

run_again=75

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

run_step() {
    local status interrupted
    if [[ -n $asked ]]; then
        say "the time was up before the step began: ask for more (--time), or do without TYMBAL_SCRATCH"
        exit 1
    fi
    if [[ -n ${SLURM_JOB_NODELIST:-} ]]; then
        read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
        export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
    fi
    # A task that fails takes the others with it after --wait seconds; those that saved and end are not to be killed.
    srun --kill-on-bad-exit=0 --wait=120 bash -c "$as_one_of_many" step "$@" &
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
    if ((status == run_again)) && [[ -n $asked ]]; then
        requeue
    fi
    return "$status"
}

requeue() {
    local restarts=${SLURM_RESTART_COUNT:-0}
    if ((restarts >= ${TYMBAL_MAX_RESTARTS:-100})); then
        say "queued again $restarts times already (TYMBAL_MAX_RESTARTS). The same command continues."
        exit "$run_again"
    fi
    if ! scontrol requeue "$SLURM_JOB_ID"; then
        say "this cluster does not let a job queue itself again. Submit it once more: it continues."
        exit "$run_again"
    fi
    say "saved, and queued again"
    exit 0
}
