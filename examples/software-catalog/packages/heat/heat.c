/* Heat in a bar: u_t = u_xx on [0, 1], u = 0 at both ends, u = sin(pi x) at first. It decays as exp(-pi^2 t).
 * Usage: heat [CELLS]. Every process has a share of the cells and swaps its edges with its neighbours each step. */
#include <math.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

static const double PI = 3.14159265358979323846;
static const double END_TIME = 0.1;

int main(int argc, char **argv)
{
    int rank, size;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);

    int cells = argc > 1 ? atoi(argv[1]) : 200;
    if (cells < size) {
        if (rank == 0)
            fprintf(stderr, "heat: %d cells are too few for %d processes\n", cells, size);
        MPI_Finalize();
        return 2;
    }
    double dx = 1.0 / (cells + 1);
    long steps = (long)ceil(END_TIME / (0.4 * dx * dx));
    double ratio = END_TIME / steps / (dx * dx);

    /* cells first..first+count-1 are this process's; u[0] and u[count+1] are its neighbours' edges */
    int first = (int)((long)cells * rank / size);
    int count = (int)((long)cells * (rank + 1) / size) - first;
    double *u = calloc(count + 2, sizeof *u), *next = calloc(count + 2, sizeof *next);
    for (int i = 1; i <= count; i++)
        u[i] = sin(PI * (first + i) * dx);

    int left = rank > 0 ? rank - 1 : MPI_PROC_NULL, right = rank < size - 1 ? rank + 1 : MPI_PROC_NULL;
    for (long step = 0; step < steps; step++) {
        MPI_Sendrecv(&u[1], 1, MPI_DOUBLE, left, 0, &u[count + 1], 1, MPI_DOUBLE, right, 0, MPI_COMM_WORLD,
                     MPI_STATUS_IGNORE);
        MPI_Sendrecv(&u[count], 1, MPI_DOUBLE, right, 1, &u[0], 1, MPI_DOUBLE, left, 1, MPI_COMM_WORLD,
                     MPI_STATUS_IGNORE);
        for (int i = 1; i <= count; i++)
            next[i] = u[i] + ratio * (u[i - 1] - 2 * u[i] + u[i + 1]);
        double *old = u;
        u = next;
        next = old;
        if (left == MPI_PROC_NULL)
            u[0] = 0;
        if (right == MPI_PROC_NULL)
            u[count + 1] = 0;
    }

    double error = 0, worst;
    for (int i = 1; i <= count; i++)
        error = fmax(error, fabs(u[i] - exp(-PI * PI * END_TIME) * sin(PI * (first + i) * dx)));
    MPI_Reduce(&error, &worst, 1, MPI_DOUBLE, MPI_MAX, 0, MPI_COMM_WORLD);
    if (rank == 0)
        printf("heat: %d cells, %ld steps, %d processes; largest error %.2e\n", cells, steps, size, worst);

    free(u);
    free(next);
    MPI_Finalize();
    return 0;
}
