"""The three custom operators of the network's graphs as GPU kernels in the Triton language, and as TensorRT plugins."""
