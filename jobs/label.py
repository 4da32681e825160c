"""`brnf label` as a job: a mask for every image. Stopped, it goes on when submitted again.

ray job submit --working-dir . -- python jobs/label.py --run s3://bucket/brnf --shards s3://bucket/val --out s3://bucket/labels
"""

import sys

from brnf.cli import main

main(["label", *sys.argv[1:]])
