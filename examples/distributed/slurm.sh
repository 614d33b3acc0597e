#!/bin/bash
# One model on four GPUs of each of two nodes. Two minutes before its time is up the run is told, saves its step and ends
# with exit code 75; it is then queued again and goes on where it stopped. A process that fails ends all within 30 s.
# sbatch examples/distributed/slurm.sh run.yaml
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append

# srun starts the processes; that they are one run is said by the address where they meet.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # since Slurm 22.05 srun no longer asks for them by itself

# To spread optimizer states and gradients by DeepSpeed:
# export ACCELERATE_USE_DEEPSPEED=true ACCELERATE_DEEPSPEED_CONFIG_FILE=examples/distributed/deepspeed_zero2.json

# The output folder must lie where all nodes see it. windows_per_step counts the windows of all eight processes.
srun climafuse train "$1" --resume
code=$?
if [ $code -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit $code
