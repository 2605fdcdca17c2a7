"""Several processes as one run: joining, preemption, and the loss of a process."""
