"""The embedded Triton Inference Server: NVIDIA's own binary, on a CPU, on loopback."""
