#!/usr/bin/env bash
# Train a recipe on several machines under SLURM; a run that was preempted goes on by itself:
#   sbatch recipes/accelerate/slurm.sh recipe.yaml --per_device_train_batch_size 2
# The script is read where you type this. `output_dir` lies on a file system that all machines share; with folders of
# their own, give `--save_on_each_node true`. CONFIG is another file of recipes/accelerate, PROCESSES the processes of a
# machine: sbatch --export=ALL,CONFIG=recipes/accelerate/fsdp.yaml ...
#SBATCH --job-name=hf-interp
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1 # a launcher, which starts a process for each GPU
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=12:00:00
#SBATCH --requeue # back into the queue after a preemption or the loss of a machine
#SBATCH --signal=B:USR1@120 # two minutes before the time is up
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
set -euo pipefail

hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export CONFIG=${CONFIG:-recipes/accelerate/ddp.yaml}
export PROCESSES=${PROCESSES:-${SLURM_GPUS_ON_NODE:-1}}
export HOST=${hosts%%$'\n'*} # the first machine, where all processes meet
export PORT=$((20000 + SLURM_JOB_ID % 20000))

# The time is up before the run is: into the queue again. What was read since the last checkpoint is read once more.
trap 'scontrol requeue "$SLURM_JOB_ID"' USR1

# `wait` ends at a signal, `srun` in the foreground would not. `auto`: from the last whole checkpoint, if there is one.
# shellcheck disable=SC2016 # each machine fills in its own number
srun --kill-on-bad-exit=1 bash -c 'exec accelerate launch --config_file "$CONFIG" \
    --num_machines "$SLURM_JOB_NUM_NODES" --machine_rank "$SLURM_NODEID" \
    --num_processes "$((SLURM_JOB_NUM_NODES * PROCESSES))" \
    --rdzv_backend static --main_process_ip "$HOST" --main_process_port "$PORT" \
    -m hf_interp.train "$@"' launch "$@" --resume_from_checkpoint auto &
wait $!
