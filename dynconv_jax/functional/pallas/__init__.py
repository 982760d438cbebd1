"""Kernels of our own, written in Pallas: some for TPUs, some for GPUs."""
