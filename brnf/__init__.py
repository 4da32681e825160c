"""brnf: segmentation masks from images that carry only tags, with normalizing flows, on a laptop or a Ray cluster."""

__version__ = "0.1.0"
