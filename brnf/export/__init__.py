"""Labels in the formats of other tools."""

from typing import Literal

FormatName = Literal["coco", "label-studio", "voc", "parquet", "npz"]
