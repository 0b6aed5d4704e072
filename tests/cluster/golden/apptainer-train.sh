#!/bin/bash
# iteration-1/train: one stage of the run in /scratch/ada/runs/my 32b
#
# Written by `megatron-vr submit`, which writes it anew each time: lasting changes go into a site
# file or a site's own template (slurm/README.md of megatron-vr). To submit it by hand:
#   sbatch '/scratch/ada/runs/my 32b/slurm/scripts/iteration-1.train.sh'
#
#SBATCH --job-name=vr-0123abcd:iteration-1/train
#SBATCH --output='/scratch/ada/runs/my 32b/slurm/logs/iteration-1.train-%j.log'
#SBATCH --open-mode=append
#SBATCH --chdir=/home/ada/work
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --partition=gpu
#SBATCH --account=my-project
#SBATCH --constraint=a100
#SBATCH --signal=B:USR1@900
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --export=ALL
#SBATCH --propagate=NONE
#SBATCH --requeue
#SBATCH --gpus-per-node=8
#SBATCH --mail-type=FAIL

# ---- The environment ----------------------------------------------------------------------------

# That of whoever submitted this (--export=ALL), and then:
environment() {
    # A launch that was going on there is none of ours.
    unset RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_RANK MASTER_ADDR MASTER_PORT
    ulimit -c 0  # no core files of many GB
    type module > /dev/null 2>&1 || source /etc/profile
    module load apptainer/1.3 || fail 1 'failed at `module load apptainer/1.3`'
    # The site's own setup:
ulimit -n 65536
export APPTAINER_CACHEDIR=$HOME/.apptainer-cache
    export PYTHONUNBUFFERED="${PYTHONUNBUFFERED-1}"
    export PYTHONFAULTHANDLER="${PYTHONFAULTHANDLER-1}"
    export NCCL_DEBUG="${NCCL_DEBUG-WARN}"
    export TORCH_NCCL_ASYNC_ERROR_HANDLING="${TORCH_NCCL_ASYNC_ERROR_HANDLING-3}"
    export TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC="${TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC-900}"
    export TORCH_NCCL_DUMP_ON_TIMEOUT="${TORCH_NCCL_DUMP_ON_TIMEOUT-1}"
    export TORCH_FR_BUFFER_SIZE="${TORCH_FR_BUFFER_SIZE-2000}"
    # What each rank waited for when NCCL hung, for torch's flight-recorder analyser.
    export TORCH_NCCL_DEBUG_INFO_TEMP_FILE=$state/nccl-trace-$starts-
    export TORCH_FR_DUMP_TEMP_FILE=$TORCH_NCCL_DEBUG_INFO_TEMP_FILE
    export HF_HOME=/lustre/huggingface
}

# ---- The work -----------------------------------------------------------------------------------

settings='/scratch/ada/runs/my 32b/slurm/settings.yaml'
megatron_vr=(apptainer exec --nv --pwd /home/ada/work --bind '/scratch/ada/runs/my 32b:/scratch/ada/runs/my 32b' --bind /home/ada/work:/home/ada/work --bind /lustre/models:/lustre/models --writable-tmpfs /lustre/images/megatron-vr.sif env -u RANK -u LOCAL_RANK -u WORLD_SIZE -u LOCAL_WORLD_SIZE -u GROUP_RANK -u MASTER_ADDR -u MASTER_PORT megatron-vr)
# How each command is started. One that saved and left does not end the others, and none waits for
# ever for one that died.
srun=(srun --export=ALL --input=none --mpi=none --cpu-bind=none --ntasks-per-node=1
    --kill-on-bad-exit=0 --wait=900
    --unbuffered
)

work() {
    # The address by which Slurm itself reaches the first node.
    local address
    address=$(scontrol --oneliner show node "$first_node" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')

    "${srun[@]}" --job-name=work --nodes=2 --ntasks=2 \
        bash -c 'exec "$@" --node-rank "$SLURM_NODEID"' launcher \
        "${megatron_vr[@]}" stage "$settings" iteration-1/train \
        --nodes 2 --processes 8 --meet "${address:-$first_node}:$port" &
    code_of $!
}

# ---- How this job is told to stop, starts again and ends ----------------------------------------

state='/scratch/ada/runs/my 32b/slurm/state/iteration-1.train'-$SLURM_JOB_ID  # kept when the job starts again
log='/scratch/ada/runs/my 32b/slurm/logs/iteration-1.train'-$SLURM_JOB_ID.log
cancelled='/scratch/ada/runs/my 32b/slurm/cancelled'
starts=${SLURM_RESTART_COUNT:-0}  # without the first
restarts=20
limit=86400  # 0: none
failed_nodes=2
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
first_node=${nodes%%$'\n'*}
# Below the ports that the kernel gives away; 32 for each job, told apart where jobs share a node.
port=$((10000 + SLURM_JOB_ID % 218 * 32))

say() { printf '%s job %s: %s\n' "$(date '+%F %T')" "$SLURM_JOB_ID" "$*"; }

# CODE TEXT: the job has failed.
fail() {
    printf 'megatron-vr: %s %s; nodes: %s; log: %s\n' iteration-1/train "$2" "${nodes//$'\n'/ }" "$log"
    exit "$1"
}

# SECONDS; a signal ends it early.
pause() { sleep "$1" & wait $!; }

# COMMAND…: until it works, for some minutes; the controller may be busy or restarting.
persist() {
    local try
    for try in 1 2 3 4 5 6 7 8; do
        "$@" && return
        say "failed (attempt $try): $*" >&2
        pause $((try * 5))
    done
    return 1
}

# NAME: numbers of the steps of this name.
step_numbers() {
    squeue --noheader --steps --jobs="$SLURM_JOB_ID" --format='%i %j' |
        while read -r number name; do [[ $name == "$1" ]] && echo "$number"; done
}

# NAME: SIGTERM to a step, in the background. Again and again: it may only be starting.
teller=
tell() {
    [[ -n $teller ]] && return
    {
        trap '' USR1 TERM
        while kill -0 $$ 2> /dev/null; do
            # scancel complains of nodes of the job that have no task of the step.
            for number in $(step_numbers "$1"); do scancel --signal=TERM "$number" 2> /dev/null; done
            sleep 20
        done
    } &
    teller=$!
    disown
}
told() {
    [[ -n $teller ]] && kill -KILL "$teller" 2> /dev/null
    teller=
}

# Once a node is judged bad, processes that do not end by themselves hang on it: they are killed.
watcher=
watch_nodes() {
    {
        trap '' USR1 TERM
        while kill -0 $$ 2> /dev/null && [[ ! -s $MEGATRON_VR_FAILED_NODES ]]; do sleep 2; done
        sleep 60
        kill -0 $$ 2> /dev/null || exit
        say "a node failed: ending what is left"
        # Step by step: SIGKILL to the job would cancel it.
        for number in $(step_numbers work; step_numbers servers); do scancel "$number"; done
    } &
    watcher=$!
    disown
}

# Slurm's signals to this script: USR1 before the time limit, TERM before it takes the nodes away.
asked=
on_signal() {
    [[ -n $asked ]] && return
    asked=$1
    say "$asked: telling iteration-1/train to save"
    tell work
}
trap 'on_signal "the time limit is near"' USR1
trap 'on_signal "Slurm asks this job to stop"' TERM

# PID…: until one of these has ended.
one_ended() {
    local pid
    while true; do
        for pid in "$@"; do kill -0 "$pid" 2> /dev/null || return 0; done
        pause 1
    done
}

# PID: wait for it; its exit code. Signals interrupt `wait`.
code_of() {
    while kill -0 "$1" 2> /dev/null; do wait "$1"; done
    wait "$1"
}

# What the work wrote of bad nodes since this start, as in "gpu-17 rank 5 was killed by SIGKILL":
# adds the nodes to the list in `excluded`, and tells whether there is a new one.
read_failed_nodes() {
    local node reason found=1
    [[ -e $MEGATRON_VR_FAILED_NODES ]] || return 1
    while read -r node reason || [[ -n $node ]]; do
        if ! grep -qxF -e "$node" <<< "$nodes"; then
            say "'$node' ($reason) is not a node of this job, and is not excluded"
        elif ! grep -qxF -e "$node" "$state/excluded"; then
            echo "$node" >> "$state/excluded"
            say "node $node failed: $reason"
            found=0
        fi
    done < "$MEGATRON_VR_FAILED_NODES"
    return "$found"
}

# The nodes in `excluded` are none of this job's from now on, beside those that its flags exclude.
exclude() {
    local before
    before=$(scontrol --oneliner show job "$SLURM_JOB_ID" | sed -n 's/.* ExcNodeList=\([^ ]*\).*/\1/p')
    [[ $before == "(null)" ]] && before=
    scontrol update "JobId=$SLURM_JOB_ID" "ExcNodeList=${before:+$before,}$(paste -sd, "$state/excluded")"
}

# `megatron-vr cancel` marks the run, or single jobs of it.
is_cancelled() { [[ -e $cancelled || -e $state/cancelled ]]; }

# Slurm's word for this job into `now`: RUNNING, unless Slurm itself ends it. Fails, and `now` is
# unknown, where Slurm does not answer.
ask() {
    local told
    if told=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T 2>&1); then
        now=${told##*$'\n'}
    elif [[ $told == *"Invalid job id"* ]]; then
        now=
    else
        now=unknown
        say "Slurm does not answer: ${told//$'\n'/; }" >&2
        return 1
    fi
}

# TIMES: asks so often (0: for ever) until Slurm answers, or the time limit is near. While the
# controller is away nobody else can have the nodes.
await() {
    local try
    for ((try = 1; $1 == 0 || try <= $1; try++)); do
        ask && return
        ((limit && SECONDS > limit - 30)) && return
        pause $((try < 4 ? try * 5 : 20))
    done
}

# CODE: where Slurm itself ends this job, or starts it again, nothing is left to do here.
leave_to_slurm() {
    [[ $now == RUNNING || $now == unknown ]] && return
    say "Slurm itself ends this job (${now:-gone}), or starts it again; exit code $1"
    read_failed_nodes
    [[ -s $state/excluded ]] && exclude
    exit "$1"
}

# REASON: the same job once more, without the excluded nodes. As long as this script runs, Slurm
# does not start it.
again() {
    local refused=0
    ((starts < restarts)) || fail 75 "$1, and has started again $starts times, as often as cluster.restarts allows; what it saved is kept"
    trap '' USR1 TERM
    while true; do
        # Each time: Slurm would requeue even a job that was cancelled a moment ago.
        await 0
        leave_to_slurm 75
        is_cancelled && fail 75 "$1, and was cancelled"
        scontrol requeue "$SLURM_JOB_ID" && break
        ((++refused < 8)) || fail 1 "$1, but Slurm does not let it start again"
        pause $((1 << refused))
    done
    [[ -s $state/excluded ]] && persist exclude
    sleep 1  # what Slurm says of it comes first
    say "$1; it starts again ($((starts + 1)) of $restarts times)"
    exit 75
}

# CODE: the end of the work, whose exit code this is.
finish() {
    local code=$1
    told
    [[ -n $watcher ]] && kill -KILL "$watcher" 2> /dev/null
    ((code == 0)) && { say "done"; exit 0; }
    # 143: ended by SIGTERM before it could handle it.
    if ((code == 75 || code == 143)) || [[ -s $MEGATRON_VR_FAILED_NODES ]]; then
        await 0
    else
        await 8
    fi
    leave_to_slurm "$code"
    is_cancelled && fail "$code" "ended with exit code $code after it was cancelled"
    if read_failed_nodes; then
        (($(wc -l < "$state/excluded") <= failed_nodes)) ||
            fail "$code" "lost more nodes ($(paste -sd' ' "$state/excluded")) than cluster.failed_nodes=$failed_nodes allows"
        again "without node $(paste -sd" " "$state/excluded"), which failed"
    fi
    ((code == 75 || code == 143)) && again "saved and stopped (${asked:-it was told to})"
    fail "$code" "failed with exit code $code"
}

begin() {
    mkdir -p "$state" || fail 1 "cannot write to $state"
    touch "$state/excluded"
    export MEGATRON_VR_FAILED_NODES=$state/failed-nodes-$starts
    is_cancelled && fail 1 "does not start: it was cancelled"
    ((starts <= restarts)) || fail 1 "was started again $starts times, more than cluster.restarts=$restarts allows"
    # Slurm 22.05 forgets the GPUs of a job if a node goes down while it is being requeued.
    [[ -z ${SLURM_GPUS_ON_NODE:-} && -e $state/had-gpus ]] && again "Slurm gave it no GPUs this time"
    [[ -n ${SLURM_GPUS_ON_NODE:-} ]] && touch "$state/had-gpus"
    watch_nodes
    say "start $((starts + 1)) on ${nodes//$'\n'/ }"
}

begin
environment
[[ -n $asked ]] && finish 75  # told to stop before any work
work
finish $?
