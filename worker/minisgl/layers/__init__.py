"""Layers of a transformer under tensor parallelism (Shoeybi et al. 2019, section 3).

A column-parallel layer holds some of the output features, a row-parallel layer some of the input features, so
that a pair of them needs one all-reduce. Shapes name T tokens in the batch, whatever requests they belong to.
"""
