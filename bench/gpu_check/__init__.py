"""The check of a GPU, `bash bench/gpu_check.sh`: is everything right there, and how fast (docs/gpu-check.md).

The driver (check, sections, pool, process, record, package) needs Python alone, so that it outlives what it
starts; the worker imports torch and runs one case after another (worker, and what that imports).
"""
