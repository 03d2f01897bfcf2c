"""Triton kernels of KrADagrad's operators, installed as ``kradagrad_ext.triton_kernels``.

``plan/`` makes their launches on the host. Both import only torch, triton and the standard library, and
nothing else of this project.
"""
