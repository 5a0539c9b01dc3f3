"""What only a machine with an NVIDIA GPU can show: that kernels and loops compute there what they compute on the host, and how fast."""
