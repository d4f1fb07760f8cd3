//! libnccl.so of the software device.
