"""Triton kernels of KrADagrad's operators, installed as ``kradagrad_ext.triton_kernels``.

They import only torch, triton and the standard library, and nothing else of this project.
"""
