"""Sparse labels made from dense ones: points, scribbles and coarse polygons."""
