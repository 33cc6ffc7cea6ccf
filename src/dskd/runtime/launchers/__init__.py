"""Start tasks elsewhere: in other processes of this machine, on a Ray cluster, or through Slurm."""
