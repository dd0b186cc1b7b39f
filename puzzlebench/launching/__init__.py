"""Library jobs on one device or many: in this process, under torchrun, as Ray tasks, as a Slurm array."""
