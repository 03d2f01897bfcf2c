"""Triton kernels of KrADagrad's operators, installed as ``kradagrad_ext.triton_kernels``.

They import torch, triton and the standard library only, nothing else of this project.
"""
