"""MLC's format, run here: the reference runtime on stock Apache TVM.

Read `config` (what a model is), `model` (the decoder that MLC's library would hold), `matmul` and
`attention` (its kernels), `library` (compiled once, for all users), `bundles` (directories, checked)
and `engine` (all of it together), in this order.
"""
