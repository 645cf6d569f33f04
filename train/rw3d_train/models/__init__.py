"""Networks: 2D segmentation and Point Transformer V3; see the modules."""
