#!/bin/sh
# solve.sh [PROCESSES [CELLS]]: solve the heat equation, each process with its share of the bar.
set -eu
# A container may well be run by root, which Open MPI asks to be confirmed.
if [ "$(id -u)" -eq 0 ]; then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
exec mpirun --oversubscribe -np "${1:-2}" heat "${2:-200}"
