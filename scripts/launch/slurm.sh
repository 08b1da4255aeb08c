#!/bin/bash
# A Slurm array: `sbatch --array=0-15 scripts/launch/slurm.sh build --data ... --out /shared/cache.zarr`. Each task is one
# more process of the build; a task that ends early, is preempted or never starts is made up for by the others.
#SBATCH --job-name=gdkd-cache
#SBATCH --gpus=1
#SBATCH --cpus-per-task=12
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --output=gdkd-cache-%A-%a.log
set -euo pipefail

# Of an array, tasks stand as torchrun's ranks do, so that each begins with other shards.
export TORCHELASTIC_RUN_ID="${SLURM_ARRAY_JOB_ID:-alone}"
export RANK="${SLURM_ARRAY_TASK_ID:-0}" WORLD_SIZE="${SLURM_ARRAY_TASK_COUNT:-1}" LOCAL_RANK=0 LOCAL_WORLD_SIZE=1
RANK=$((RANK - ${SLURM_ARRAY_TASK_MIN:-0}))
exec gdkd-cache "$@" --workers "${SLURM_CPUS_PER_TASK:-8}"
