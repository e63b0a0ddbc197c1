"""MLC's format, run here: the reference runtime on stock Apache TVM.

To learn how the format works, read in this order: `config` (what a model is), `model` (the decoder
that a library holds), `matmul` (its kernels), `library` (compiled once, for all users), `bundles`
(directories, checked), `machine` (a library that runs) and `engine` (all of it together).
`cross_compile` checks that the same decoder compiles for phones.
"""
