"""The check of a GPU, `bash bench/gpu_check.sh`: correctness and speed of every kernel (docs/gpu-check.md).

The driver (driver, sections, pool, process, record, package) needs only Python, so that it survives failures
of its workers. A worker imports torch and runs cases consecutively (worker, and the modules that it imports).
"""
