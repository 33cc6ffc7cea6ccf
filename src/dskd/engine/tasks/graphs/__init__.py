"""Classify the nodes of graphs: students that learn online from each other, or from a teacher.

The networks are those of PyTorch Geometric, which the extra ``graphs`` installs.
"""
