"""Labels in the formats of other tools."""

from typing import Literal

FormatName = Literal["coco", "label-studio", "voc", "parquet", "npz"]

ID = "{id}"
"""What stands for an image's id where images are said to be."""
