// In place of NVIDIA's header, which the pinned compiler does not bring: nothing of it is used.
