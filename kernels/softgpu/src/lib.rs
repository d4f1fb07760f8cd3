//! Software CUDA device for tests.
