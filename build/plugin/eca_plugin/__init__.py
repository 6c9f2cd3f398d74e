"""The three custom operators of the network's graphs as GPU kernels in the Triton language, and as TensorRT plugins."""

NAMESPACE = "eca"  # of the operators: in ONNX, in TensorRT and in PyTorch; here, for it needs neither of them
