"""The gateway: images in, labels out, in front of Triton Inference Server."""
